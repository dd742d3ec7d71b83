"""Checks and additions to a notebook that has run.

A figure for each caption; the answer, below the question; what the page ran with, how long, and how to run it again.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import nbformat

from bar.errors import BarError

ANSWER = "answer"  # tag of a cell that prints the answer to the question of its page
NOTHING_TO_DRAW = "figure-if-recorded"  # tag of a cell that prints a line where no run is recorded to draw


def check_figures(path: Path, notebook: nbformat.NotebookNode, injected: bool) -> None:
    """Refuse a notebook in which a cell with a figure's caption has drawn no figure.

    Where the cell's tag allows that, words replace references to the figure, which Sphinx would not find.
    """
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or "figure" not in cell.metadata.get("mystnb", {}):
            continue
        drawn = any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))
        printed = any(output.output_type == "stream" and output.text.strip() for output in cell.outputs)
        name = cell.metadata["mystnb"]["figure"].get("name", "without a name")
        if not drawn and printed and NOTHING_TO_DRAW in cell.metadata.get("tags", []):
            for text in notebook.cells:
                if text.cell_type == "markdown":
                    text.source = _replace_references(name, text.source)
        elif not drawn:
            raise BarError(f"{path.name}, cell {number - injected}, has drawn no figure, but is to draw one ({name})")


def _replace_references(figure: str, text: str) -> str:
    """Return a text with words in place of each reference to a figure."""

    def words(found: re.Match) -> str:
        begins = re.search(r"(^|[.!?:]\s+)$", text[: found.start()])
        return f"{'The' if begins else 'the'} figure that is missing here"

    return re.sub(r"\{(?:numref|ref)\}`(?:[^`<]*<)?" + re.escape(figure) + ">?`", words, text)


def show_answer(notebook: nbformat.NotebookNode) -> None:
    """Put what the cell with the tag `ANSWER` has printed below the question, the second paragraph of the page."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and ANSWER in cell.metadata.get("tags", []):
            printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            first = notebook.cells[0]
            title, question, *others = first.source.split("\n\n")
            box = f"```{{admonition}} The answer\n:class: tip answer\n{' '.join(printed.split())}\n```"
            first.source = "\n\n".join((title, question, box, *others))
            cell.metadata["tags"] = [*cell.metadata["tags"], "remove-cell"]


def show_parameters(
    name: str,
    notebook: nbformat.NotebookNode,
    given: Mapping[str, object],
    defaults: Mapping[str, str],
    seconds: float,
) -> None:
    """Insert a cell that says what the page ran with, how long that took, and how to run it again.

    It stands below the cell of parameters (and that of papermill).
    """
    where = [
        number
        for number, cell in enumerate(notebook.cells)
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
    ]
    if where and defaults:
        values = [
            f"`` {each} = {given[each]!r} `` (given)" if each in given else f"`` {each} = {default} ``"
            for each, default in defaults.items()
        ]
        text = f"This page ran with {', '.join(values)}."
        first, default = next(iter(defaults.items()))
        again = shlex.quote(f"{first.upper()}={default}")
        text += (
            f"\n\nThat took {seconds:.0f} s. To run it again with other values: `` make book {again} `` for the book, "
        )
        text += (
            f"`` papermill {name} mine.ipynb -p {first} {shlex.quote(default)} `` in `notebooks/` for this page alone."
        )
        notebook.cells.insert(where[-1] + 1, nbformat.v4.new_markdown_cell(text, id="ran-with"))
