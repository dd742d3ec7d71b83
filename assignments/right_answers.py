"""Right answers that go another way than the masters', made from the student versions: none may lose a point.

A file of `right/ASSIGNMENT` has one for each cell, below `# %% NAME`.
"""

import re
from pathlib import Path

from masters import HERE, NAMES


def cells(path: Path) -> dict[str, str]:
    """The answers of a file, by the names of their cells."""
    _, *parts = re.split(r"^# %% (\w+)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return {name: source.strip("\n") for name, source in zip(parts[::2], parts[1::2], strict=True)}


# for each assignment: what is different, and the answers
RIGHT = {
    name: {path.stem.replace("_", " "): cells(path) for path in sorted((HERE / "right" / name).glob("*.py"))}
    for name in NAMES
}
