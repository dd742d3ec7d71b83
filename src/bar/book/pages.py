"""Checks and additions to a notebook that has run: a figure for each caption, and the parameters that it ran with."""

import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

from bar.errors import BarError

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


def show_parameters(notebook: nbformat.NotebookNode, given: Mapping[str, object], defaults: Mapping[str, str]) -> None:
    """Insert a cell that says what the page ran with, below the cell of parameters (and that of papermill)."""
    where = [
        number
        for number, cell in enumerate(notebook.cells)
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
    ]
    if where and defaults:
        values = [
            f"`` {name} = {given[name]!r} `` (given)" if name in given else f"`` {name} = {default} ``"
            for name, default in defaults.items()
        ]
        cell = nbformat.v4.new_markdown_cell(f"This page ran with {', '.join(values)}.", id="ran-with")
        notebook.cells.insert(where[-1] + 1, cell)
