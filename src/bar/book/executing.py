"""Running notebooks, and storing the outputs that the tests compare."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import matplotlib
import nbformat
import papermill

from bar.errors import BarError

KERNEL = "python3"


def execute(path: Path, parameters: Mapping[str, object]) -> nbformat.NotebookNode:
    """Run a notebook from the first to the last cell; if one fails, show it on stderr and raise a BarError."""
    try:
        with _environment_of_kernels():
            notebook = papermill.execute_notebook(
                path,
                None,
                parameters=dict(parameters),
                kernel_name=KERNEL,
                cwd=path.parent,
                progress_bar=sys.stderr.isatty(),
                extra_arguments=[
                    "--log-level=CRITICAL",  # or each kernel warns that it talks over a local socket
                    '--InlineBackend.figure_formats={"svg"}',  # sharp on any screen, and in print
                ],
            )
    except papermill.PapermillExecutionError as error:
        injected = bool(parameters)  # as a cell of its own, which the notebook on disk does not have
        where = f"{path.name}, cell {error.cell_index - injected}"
        print(f"\n{where}:\n\n{_indent(error.source)}\n\n{_plain(error.traceback)}\n", file=sys.stderr)
        raise BarError(f"{where} failed: {error.ename}: {error.evalue}") from None
    except RuntimeError as error:  # the kernel died (DeadKernelError), for want of memory, say
        raise BarError(f"{path.name}: {error}") from error
    notebook.metadata.pop("papermill", None)  # it names the path on this machine
    return notebook


def store_outputs(notebooks: str | Path = "notebooks") -> None:
    """Run every notebook and store in it the outputs that the tests compare, and nothing else.

    What is printed, and the text of a cell's last value, is stored. Cells with the tag ``nbval-ignore-output``
    (figures, times) are stored as if they had never run.

    Parameters
    ----------
    notebooks : path
        The folder of the notebooks, which are changed in place.

    Raises
    ------
    BarError
        If a cell fails, or if a cell without that tag draws a figure or writes to the error stream.
    """
    for path in sorted(Path(notebooks).glob("*.ipynb")):
        print(path.name, "...", flush=True)
        notebook = execute(path, {})
        for number, cell in enumerate(notebook.cells):
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
            if cell.metadata.get("tags") == []:
                del cell.metadata["tags"]
            if cell.cell_type != "code":
                continue
            if "nbval-ignore-output" in cell.metadata.get("tags", []):
                cell.outputs, cell.execution_count = [], None
            for output in cell.outputs:
                data = output.get("data", {})
                if output.output_type == "stream" and output.name == "stderr":
                    raise BarError(f"{path.name}, cell {number}, writes to the error stream: {output.text[:200]!r}")
                if any(kind != "text/plain" for kind in data):
                    raise BarError(
                        f"{path.name}, cell {number}, shows {', '.join(data)}, of which the tests can compare only "
                        "the text: print what matters, or give the cell the tag nbval-ignore-output"
                    )
        notebook.metadata = nbformat.from_dict(
            {
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
                "language_info": {"name": "python"},
            }
        )
        nbformat.write(notebook, path)


@contextlib.contextmanager
def _environment_of_kernels() -> Iterator[None]:
    """Let kernels draw figures into the notebook, in the style of the book, whatever the user's environment says."""
    wanted = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(Path(matplotlib.get_data_path()) / "matplotlibrc"),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _plain(traceback: Iterable[str]) -> str:
    """A traceback without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
