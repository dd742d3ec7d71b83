"""Run the notebooks with parameters and make the book from what they gave.

The book shows only notebooks that ran from top to bottom, just now or in an earlier build from the very same things:
the notebook, its parameters, the package, records, data, versions and machine (`_fingerprint`). The first failing cell
ends the build and leaves no notebook behind that a book could be made from.
"""

import ast
import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions, version
from pathlib import Path

import filelock
import matplotlib
import torch

from . import data
from .errors import BarError, is_plain, nearest
from .machine import hardware

try:
    import nbformat
    import papermill
except ModuleNotFoundError as error:
    raise BarError(f"{error.name} is not installed: pip install 'bar-pruning[book]'") from error

SHOWN_VERSIONS = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "papermill", "jupyter-book")
KERNEL = "python3"
LOCK = ".lock"
NOTHING_TO_DRAW = "figure-if-recorded"  # tag of a cell that prints a line where no run is recorded that it could draw


def parse_parameters(assignments: Iterable[str]) -> dict[str, object]:
    """Read parameters as they are given on the command line.

    Parameters
    ----------
    assignments : iterable of str
        ``NAME=value`` each. Names may be in upper case, as in ``make book PRUNING_FACTOR=8``; values are Python
        literals, or text where they are none.

    Returns
    -------
    dict
        Lower-case names and their values.

    Raises
    ------
    BarError
        If something is not of the form ``NAME=value``.

    Examples
    --------
    >>> parse_parameters(["PRUNING_FACTOR=8", "dataset=digits", "gate_lr=1e-3"])
    {'pruning_factor': 8, 'dataset': 'digits', 'gate_lr': 0.001}
    """
    parameters: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier() or not text or not is_plain(text):
            raise BarError(f"cannot read the parameter {assignment!r:.200}: write NAME=value, such as PRUNING_FACTOR=8")
        try:
            value = ast.literal_eval(text)
            repr(value)  # of an int of thousands of digits there is none
            parameters[name.lower()] = list(value) if isinstance(value, tuple) else value  # papermill knows no tuples
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # as its documentation says
            parameters[name.lower()] = text
    return parameters


def build(
    parameters: Mapping[str, object] | None = None,
    notebooks: str | Path = "notebooks",
    book: str | Path = "book",
    *,
    fresh: bool = False,
) -> Path:
    """Run every notebook and build the book.

    What a notebook gave is kept in ``_cache`` in the folder of the book, and taken from there while nothing has changed
    that it was made from. Another build in the same folder waits until this one is done.

    Each page says below its cell of parameters what it ran with.

    Parameters
    ----------
    parameters : mapping, optional
        Values for the notebooks' parameters; each notebook is given those that its ``parameters`` cell names.
    notebooks, book : path
        The folders of the notebooks (``*.ipynb``, run in the order of their names, with this folder as the working
        directory) and of the book (``_config.yml``, ``_toc.yml``).
    fresh : bool
        Run all notebooks again, whatever has been kept.

    Returns
    -------
    Path
        The first page of the built book.

    Raises
    ------
    BarError
        Before anything runs, if a folder is missing, if the table of contents and the notebooks do not fit, if no
        notebook has a parameter of that name, or if a number is asked for and text is given. Later, if a cell fails
        (the cell and the traceback are shown on the error stream), if a cell with a figure's caption has drawn none, or
        if the book cannot be built without a warning.
    """
    notebooks, book = Path(notebooks), Path(book)
    paths = sorted(notebooks.glob("*.ipynb"))
    if not paths or not (book / "_config.yml").is_file():
        raise BarError(
            f"no notebooks in {str(notebooks)!r} or no _config.yml in {str(book)!r}: "
            "run this in the top folder of a copy of the repository"
        )
    _check_contents(paths, book)
    declared = {path: _declared(path) for path in paths}
    parameters = dict(parameters or {})
    _check_parameters(parameters, declared)

    with _alone(book):
        return _build(parameters, declared, book, fresh)


def _build(
    parameters: Mapping[str, object], declared: Mapping[Path, Mapping[str, str]], book: Path, fresh: bool
) -> Path:
    """`build`, after its checks and while no other build is at work in the folder."""
    executed, built, kept, unfinished = (book / name for name in ("_executed", "_build", "_cache", "_unfinished"))
    for folder in (executed, built, unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    executed.mkdir()
    for path in kept.glob("*" if fresh else "*.partial"):  # the latter if a build was killed
        if path.name != LOCK:
            path.unlink()
    runs: dict[str, dict] = {}
    try:
        for number, (path, defaults) in enumerate(declared.items(), start=1):
            given = {name: value for name, value in parameters.items() if name in defaults}
            place = f"[{number}/{len(declared)}] {path.name}"
            fingerprint = _fingerprint(path, given, defaults)
            run = _run_of(kept / path.name)
            if run.get("fingerprint") == fingerprint:
                print(f"{place} is unchanged since {run['ended']}", flush=True)
            else:
                print(place, *(f"{k}={v}" for k, v in given.items()), "...", flush=True)
                start = time.perf_counter()
                notebook = _execute(path, given)
                _check_figures(path, notebook, injected=bool(given))
                _show_parameters(notebook, given, defaults)
                run = {"fingerprint": fingerprint, "ended": _now(), "seconds": time.perf_counter() - start}
                notebook.metadata["bar"] = run
                partial = kept / f"{path.name}.{os.getpid()}.partial"
                nbformat.write(notebook, partial)
                os.replace(partial, kept / path.name)
                print(f"{place} took {run['seconds']:.0f} s", flush=True)
            shutil.copyfile(kept / path.name, executed / path.name)
            runs[path.stem] = run
        (executed / "about_build.md").write_text(_about(parameters, declared, runs), encoding="utf-8")
    except BaseException:  # Ctrl-C too: half of the notebooks would build, and look like a book
        shutil.rmtree(executed, ignore_errors=True)
        raise

    print("building the pages ...", flush=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    options = ["-q", "-W", "-n", "--keep-going", "--path-output", str(unfinished)]  # half of a book is none
    try:
        result = subprocess.run([*jupyter_book, *options, str(book)], check=False)
        if result.returncode:
            raise BarError(f"the notebooks ran, but building {str(book)!r} from them gave the warnings or errors above")
        if (unfinished / "_build").is_dir():
            os.replace(unfinished / "_build", built)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return built / "html" / "index.html"


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
        notebook = _execute(path, {})
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
def _alone(book: Path) -> Iterator[None]:
    """Keep two builds from mixing their pages in one folder: the second one waits."""
    (book / "_cache").mkdir(exist_ok=True)
    lock = filelock.FileLock(book / "_cache" / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"another build is at work in {book}; waiting for it ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _environment_of_kernels() -> Iterator[None]:
    """Figures are drawn into the notebook, in the style of the book, whatever the user's environment says."""
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


def _check_figures(path: Path, notebook: nbformat.NotebookNode, injected: bool) -> None:
    """Refuse a notebook with a figure's caption and no figure: the page would show the caption alone, or nothing.

    Where that is allowed, the page's text refers to no such figure, which Sphinx would not find.
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
                    text.source = _without(name, text.source)
        elif not drawn:
            raise BarError(f"{path.name}, cell {number - injected}, has drawn no figure, but is to draw one ({name})")


def _without(figure: str, text: str) -> str:
    """The text with words in place of each reference to a figure."""

    def words(found: re.Match) -> str:
        begins = re.search(r"(^|[.!?:]\s+)$", text[: found.start()])
        return f"{'The' if begins else 'the'} figure that is missing here"

    return re.sub(r"\{(?:numref|ref)\}`(?:[^`<]*<)?" + re.escape(figure) + ">?`", words, text)


def _show_parameters(notebook: nbformat.NotebookNode, given: Mapping[str, object], defaults: Mapping[str, str]) -> None:
    """Say on the page what it ran with, below the cell of parameters (and the one that papermill adds)."""
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


def _fingerprint(path: Path, given: Mapping[str, object], declared: Mapping[str, str]) -> str:
    """A hash of all that decides what a notebook shows."""
    known = hashlib.sha256(path.read_bytes())
    for source in sorted(Path(__file__).parent.rglob("*")):
        if source.suffix in (".py", ".csv"):
            known.update(source.relative_to(Path(__file__).parent).as_posix().encode() + source.read_bytes())
    installed = sorted(f"{each.name}=={each.version}" for each in distributions())
    records = [path.parent.parent / "results", path.parent.parent / "runs"]
    files = {file for folder in records for file in folder.rglob("*.json*")}
    for text in _texts(given, declared):  # a data set, a file of weights, other records
        for place in (path.parent / text, data.root_folder() / text):
            files |= {place, *place.rglob("*")}
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    facts = [dict(given), installed, platform.python_version(), _hardware(), stats]
    known.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return known.hexdigest()


def _texts(given: Mapping[str, object], declared: Mapping[str, str]) -> Iterator[str]:
    """The texts among a notebook's parameters, each of which may name what it reads."""
    for name, default in declared.items():
        with contextlib.suppress(SyntaxError, ValueError):  # a default that is computed
            value = given[name] if name in given else ast.literal_eval(default)
            yield from (
                text for text in (value if isinstance(value, list) else [value]) if text and isinstance(text, str)
            )


def _run_of(path: Path) -> dict:
    """When a notebook that was kept ran, for how long, and of what; empty if there is none that can be read."""
    try:
        return dict(nbformat.read(path, as_version=4).metadata["bar"])
    except (OSError, KeyError, ValueError, nbformat.ValidationError):
        return {}


def _execute(path: Path, parameters: Mapping[str, object]) -> nbformat.NotebookNode:
    """The notebook, run from the first to the last cell."""
    try:
        with _environment_of_kernels():
            notebook = papermill.execute_notebook(
                path,
                None,
                parameters=dict(parameters),
                kernel_name=KERNEL,
                cwd=path.parent,
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=CRITICAL"],  # or each kernel warns that it talks over a local socket
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


def _declared(path: Path) -> dict[str, str]:
    """Names and default values (as source) of a notebook's parameters."""
    return {name: entry["default"] for name, entry in papermill.inspect_notebook(os.path.relpath(path)).items()}


def _check_contents(paths: list[Path], book: Path) -> None:
    """Compare the table of contents with the notebooks before the first of them runs for nothing."""
    listed = set(re.findall(r"\b_executed/(\w+)", (book / "_toc.yml").read_text(encoding="utf-8"))) - {"about_build"}
    present = {path.stem for path in paths}
    if listed - present:
        raise BarError(f"{book / '_toc.yml'} lists notebooks that do not exist: {', '.join(sorted(listed - present))}")
    if present - listed:
        raise BarError(f"add to {book / '_toc.yml'}, as _executed/NAME: {', '.join(sorted(present - listed))}")


def _check_parameters(parameters: Mapping[str, object], declared: Mapping[Path, Mapping[str, str]]) -> None:
    """Refuse what no notebook would read, and text where a number is the default."""
    known = {name: default for defaults in declared.values() for name, default in defaults.items()}
    for name, value in parameters.items():
        if name not in known:
            raise BarError(f"no notebook has a parameter {name!r}; {nearest(name, known)}")
        try:
            default = ast.literal_eval(known[name])
        except (SyntaxError, ValueError):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        number = number and abs(value) <= sys.float_info.max  # not NaN, nor beyond all floats
        if type(default) in (int, float) and not number:
            raise BarError(f"{name}={value!s:.200}: a number is needed, such as the default {default}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _about(
    parameters: Mapping[str, object], declared: Mapping[Path, Mapping[str, str]], runs: Mapping[str, Mapping]
) -> str:
    """The page that says how this book was made."""
    facts = {
        "Built": _now(),
        "Commit": _commit(),
        **_hardware(),
        "System": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    names = sorted({name for defaults in declared.values() for name in defaults})
    settings = []
    for name in names:
        where = [path.stem.partition("_")[0] for path, defaults in declared.items() if name in defaults]
        defaults = {defaults[name] for defaults in declared.values() if name in defaults}
        value = " or ".join(f"`{default}`" for default in sorted(defaults))
        if name in parameters:
            value = f"**`{parameters[name]!r}`** (given)"
        settings.append((f"`{name}`", value, ", ".join(where)))
    times = [(f"{{doc}}`{stem}`", f"{run['seconds']:.1f}", run["ended"]) for stem, run in runs.items()]
    times.append(("all", f"{sum(run['seconds'] for run in runs.values()):.1f}", ""))
    return "\n\n".join(
        (
            "# About this build",
            "Every number and figure in the chapters that is not quoted from a paper, or read from a recorded run, was "
            "computed by the runs described here.",
            _table(("What", "This build"), facts.items()),
            "## Parameters",
            "What the notebooks ran with: values that were asked for are marked as given, the others are the defaults.",
            _table(("Parameter", "Value", "Chapters"), settings) if settings else "The notebooks have no parameters.",
            "## Run time",
            "A notebook runs again when anything has changed that it was made from: its text and parameters, the "
            "package, recorded runs, data, versions, or the machine.",
            _table(("Notebook", "Seconds", "Ran until"), times),
            "## Versions",
            _table(("Package", "Version"), ((name, version(name)) for name in SHOWN_VERSIONS)),
        )
    )


def _hardware() -> dict[str, str]:
    """Processor, memory and accelerator of this machine, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"Processor": hardware("cpu"), "Memory": f"{memory:.1f} GiB", "GPU": ", ".join(gpus) or "none"}


def _commit() -> str:
    """The commit that the book was built from, and whether files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git repository)"
    return f"`{head}`" + (" with changes that are not committed" if changed.strip() else "")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _plain(traceback: Iterable[str]) -> str:
    """A traceback without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
