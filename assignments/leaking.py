"""What a student version gives away."""

from pathlib import Path

import masters
import nbformat


def leaks(course: Path, name: str) -> list[str]:
    """What a student version gives away, a line each: sources, outputs, metadata, other files.

    Parameters
    ----------
    course : Path
        The released course.
    name : str
        The assignment.

    Returns
    -------
    list of str
    """
    master, release = masters.read(course / "source", name), masters.read(course / "release", name)
    text = nbformat.writes(release, ensure_ascii=False)
    plain = "\n".join(cell.source for cell in release.cells)
    found = [f"{name}: it has the line {line!r}" for line in masters.secrets(master) if line in plain]
    found += [f"{name}: it has the mark {mark!r}" for mark in ("### BEGIN", "### END") if mark in text]
    for cell in release.cells:
        if cell.get("outputs") or cell.get("execution_count") or cell.get("attachments"):
            found.append(f"{name}: a cell has outputs or attachments")
        if set(cell.metadata) - {"nbgrader", "deletable", "editable"}:
            found.append(f"{name}: a cell has metadata {sorted(cell.metadata)}")
    if set(release.metadata) - {"kernelspec", "language_info"}:
        found.append(f"{name}: the notebook has metadata {sorted(release.metadata)}")
    allowed = {f"{name}.ipynb"} | {path.name for path in (masters.SOURCE / name).iterdir() if path.suffix == ".csv"}
    extra = {path.name for path in (course / "release" / name).rglob("*")} - allowed
    return found + [f"{name}: {extra} is among its files"] * bool(extra)
