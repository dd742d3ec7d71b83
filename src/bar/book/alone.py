"""The first code of each notebook: where it stands alone, in Colab or a folder for downloads, it fetches what it needs.

The address that it fetches from is set in one place, ``launch_repository`` in ``book/_config.yml``; `write_first_cells`
puts it into the notebooks, which travel without that file. Without an address the cell fetches nothing.
"""

import re
from pathlib import Path

import nbformat
import yaml

from bar import files
from bar.errors import BarError

TAG = "alone"
# what a notebook has in its code, and the extra of the package that brings it
EXTRAS = {"figures import touch": "charts", "onnx": "onnx", "timm:": "timm"}
NEEDED = ("../results", "small.py")  # what some read beside themselves
CELL = """\
# Does nothing in a copy of the repository. Where this notebook stands alone, it
# fetches the repository, installs what is missing, and works in its folder.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

repository = "{repository}"  # launch_repository of book/_config.yml
installed = importlib.util.find_spec("bar") is not None
complete = installed{needed}
if repository and not complete:
    copy = Path(repository).name
    if not Path(copy).is_dir():
        git = ["git", "clone", "--quiet", "--depth", "1", repository, copy]
        subprocess.run(git, check=True)
    if not installed:
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"./{{copy}}{extras}"], check=True)
    os.chdir(Path(copy, "notebooks"))
elif not installed:
    sys.exit("bar is not installed: `make install` in its repository does that")\
"""


def repository(book: str | Path = "book") -> str:
    """Return the public address of the repository, from the configuration of the book; empty if none is set.

    Parameters
    ----------
    book : path
        The folder of the book.

    Raises
    ------
    BarError
        If something else than an address is set.
    """
    path = Path(book) / "_config.yml"
    written = yaml.safe_load(path.read_text("utf-8"))["sphinx"]["config"]["launch_repository"]
    address = str(written or "").rstrip("/")
    if address and not re.fullmatch(r"https://[\w.-]+(/[\w.-]+){2}", address):
        raise BarError(f"{path}: launch_repository is {written!r}: write https://github.com/OWNER/NAME, or nothing")
    return address


def first_cell(notebook: nbformat.NotebookNode, address: str) -> str:
    """Return the source of the first cell of code that a notebook is to have."""
    code = "\n".join(
        cell.source for cell in notebook.cells if cell.cell_type == "code" and TAG not in cell.metadata.get("tags", [])
    )
    extras = [extra for word, extra in EXTRAS.items() if word in code]
    needed = next((f' and Path("{place}").exists()' for place in NEEDED if f'"{place}' in code), "")
    brackets = f"[{','.join(extras)}]" if extras else ""
    return CELL.format(repository=address, needed=needed, extras=brackets)


def write_first_cells(notebooks: str | Path = "notebooks", book: str | Path = "book") -> None:
    """Write the first cell of code of every notebook, with the address that the book's configuration has.

    Parameters
    ----------
    notebooks, book : path
        Their folders; the notebooks are changed in place, where they have to be.

    Raises
    ------
    BarError
        If the configuration has something else than an address.
    """
    address = repository(book)
    for path in sorted(Path(notebooks).glob("*.ipynb")):
        text = path.read_text("utf-8")
        notebook = nbformat.reads(text, as_version=4)
        mine = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
        if not mine:
            metadata = {"tags": [TAG, "remove-cell"]}
            mine = [nbformat.v4.new_code_cell(id=TAG, metadata=metadata)]
            notebook.cells.insert(1, mine[0])  # below the title
        mine[0].source = first_cell(notebook, address)
        new = nbformat.writes(notebook) + "\n"
        if new != text:
            files.write_text(path, new)
