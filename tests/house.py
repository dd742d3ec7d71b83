"""Is the house in order? Part of `make lint`: functions that are too complex, files that are too long.

What was too large when this check was made is listed, with its size then: it may shrink, not grow. What fits by now
must leave the list.
"""

import sys
from pathlib import Path

from radon.complexity import cc_visit

MOST_COMPLEX, LONGEST = 15, 450
COMPLEX: dict[str, int] = {
    "runs.py:_run": 24,
    "runs.py:read": 20,
    "storage.py:save": 18,
    "storage.py:_built": 21,
    "storage.py:_put": 16,
    "storage.py:_graph": 32,
}
LONG: dict[str, int] = {
    "book.py": 480,
    "cli.py": 580,
    "compare.py": 1181,
    "runs.py": 491,
    "storage.py": 614,
    "surgery/gated.py": 465,
    "training.py": 505,
}


def main(root: Path) -> int:
    """Print what is wrong, a line each; the number of lines."""
    complexity, length = {}, {}
    for path in sorted(root.rglob("*.py")):
        text, name = path.read_text("utf-8"), path.relative_to(root).as_posix()
        length[name] = text.count("\n")
        for block in cc_visit(text):
            for each in (block, *getattr(block, "methods", ())):
                if each.letter != "C":  # of a class, radon gives the mean of its methods
                    complexity[f"{name}:{each.fullname}"] = each.complexity
    wrong = 0
    for what, sizes, most, listed in (
        ("complexity", complexity, MOST_COMPLEX, COMPLEX), ("lines", length, LONGEST, LONG),
    ):  # fmt: skip
        for name, size in sizes.items():
            if size > listed.get(name, most):
                print(f"{name}: {what} {size}, more than {listed.get(name, most)}")
                wrong += 1
        for name in [name for name in listed if sizes.get(name, 0) <= most]:
            print(f"{name}: {what} {sizes.get(name, 0)}: take it from the list in tests/house.py")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1] / "src" / "bar") > 0)
