"""The masters, and the submissions that are made of them."""

import copy
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "source"
NAMES = tuple(sorted(path.name for path in SOURCE.iterdir() if path.is_dir()))
REGION = re.compile(r"^[ \t]*### BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)^[ \t]*### END \1$", re.MULTILINE | re.DOTALL)


def read(folder: Path, name: str) -> NotebookNode:
    """The notebook of an assignment in a folder of assignments, as `source` or `release`."""
    return nbformat.read(folder / name / f"{name}.ipynb", 4)


def graded(cell: NotebookNode) -> dict:
    """What nbgrader knows about a cell; empty if nothing."""
    return cell.metadata.get("nbgrader", {})


def tests(notebook: NotebookNode) -> dict[str, int]:
    """The cells of tests, and their points."""
    cells = [graded(cell) for cell in notebook.cells]
    return {cell["grade_id"]: cell["points"] for cell in cells if cell.get("grade") and not cell["solution"]}


def written(notebook: NotebookNode) -> dict[str, int]:
    """The cells that a teacher grades by hand, and their points."""
    cells = [graded(cell) for cell in notebook.cells]
    return {cell["grade_id"]: cell["points"] for cell in cells if cell.get("grade") and cell["solution"]}


def secrets(master: NotebookNode) -> list[str]:
    """Lines that no student may see: of solutions, hidden tests and model answers, where they stand nowhere else."""
    hidden, shown = [], []
    for cell in master.cells:
        if graded(cell).get("solution") and cell.cell_type == "markdown":
            hidden += cell.source.split("\n")
            continue
        shown += REGION.sub("", cell.source).split("\n")
        hidden += [line for match in REGION.finditer(cell.source) for line in match[2].split("\n")]
    public = "\n".join(shown)
    return [line.strip() for line in hidden if len(line.strip()) > 12 and line.strip() not in public]


def answered(release: NotebookNode, master: NotebookNode) -> NotebookNode:
    """The student version with the answers of the master."""
    answers = {graded(cell)["grade_id"]: cell for cell in master.cells if graded(cell).get("solution")}
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        if graded(cell).get("solution"):
            cell.source = REGION.sub(lambda match: match[2].rstrip("\n"), answers[graded(cell)["grade_id"]].source)
    return notebook


def filled(release: NotebookNode, cells: dict[str, str]) -> NotebookNode:
    """The student version with these answers, by the names of their cells."""
    notebook = copy.deepcopy(release)
    for grade_id, source in cells.items():
        cell_of(notebook, grade_id).source = source
    return notebook


def cell_of(notebook: NotebookNode, grade_id: str) -> NotebookNode:
    """The cell with this name."""
    return next(cell for cell in notebook.cells if graded(cell).get("grade_id") == grade_id)
