"""Building the book from its notebooks."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock
import nbformat

from bar import files
from bar.book import about, executing, keeping, pages
from bar.book import parameters as parameters_
from bar.errors import BarError

LOCK = ".lock"


def build(
    parameters: Mapping[str, object] | None = None,
    notebooks: str | Path = "notebooks",
    book: str | Path = "book",
    *,
    fresh: bool = False,
) -> Path:
    """Run every notebook and build the book.

    Notebooks that have run are kept in ``_cache`` in the folder of the book, and reused while nothing has changed that
    decides what they show. Another build in the same folder waits until this one is done.

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
    declared = {path: parameters_.declared_in(path) for path in paths}
    parameters = dict(parameters or {})
    parameters_.check(parameters, declared)

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
            runs[path.stem] = _run_or_reuse(
                path, given, defaults, kept / path.name, f"[{number}/{len(declared)}] {path.name}"
            )
            shutil.copyfile(kept / path.name, executed / path.name)
        (executed / "about_build.md").write_text(about.page(parameters, declared, runs), encoding="utf-8")
    except BaseException:  # Ctrl-C too: half of the notebooks would build, and look like a book
        shutil.rmtree(executed, ignore_errors=True)
        raise
    _render(book, built, unfinished)
    return built / "html" / "index.html"


def _run_or_reuse(path: Path, given: Mapping[str, object], defaults: Mapping[str, str], kept: Path, place: str) -> dict:
    """Run a notebook, or reuse the one that is kept if nothing has changed; returns when it ran and for how long."""
    fingerprint = keeping.fingerprint(path, given, defaults)
    run = keeping.run_of(kept)
    if run.get("fingerprint") == fingerprint:
        print(f"{place} is unchanged since {run['ended']}", flush=True)
        return run
    print(place, *(f"{k}={v}" for k, v in given.items()), "...", flush=True)
    start = time.perf_counter()
    notebook = executing.execute(path, given)
    run = {"fingerprint": fingerprint, "ended": about.now(), "seconds": time.perf_counter() - start}
    pages.check_figures(path, notebook, injected=bool(given))
    pages.show_answer(notebook)
    pages.show_parameters(path.name, notebook, given, defaults, run["seconds"])
    notebook.metadata["bar"] = run
    files.write_text(kept, nbformat.writes(notebook))
    print(f"{place} took {run['seconds']:.0f} s", flush=True)
    return run


def _render(book: Path, built: Path, unfinished: Path) -> None:
    """Build the pages in another folder, and move them into place once they are complete."""
    print("building the pages ...", flush=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    options = ["-q", "-W", "-n", "--keep-going", "--path-output", str(unfinished)]
    try:
        result = subprocess.run([*jupyter_book, *options, str(book)], check=False)
        if result.returncode:
            raise BarError(f"the notebooks ran, but building {str(book)!r} from them gave the warnings or errors above")
        if (unfinished / "_build").is_dir():
            os.replace(unfinished / "_build", built)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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


def _check_contents(paths: list[Path], book: Path) -> None:
    """Compare the table of contents with the notebooks, before any of them runs."""
    listed = set(re.findall(r"\b_executed/(\w+)", (book / "_toc.yml").read_text(encoding="utf-8"))) - {"about_build"}
    present = {path.stem for path in paths}
    if listed - present:
        raise BarError(f"{book / '_toc.yml'} lists notebooks that do not exist: {', '.join(sorted(listed - present))}")
    if present - listed:
        raise BarError(f"add to {book / '_toc.yml'}, as _executed/NAME: {', '.join(sorted(present - listed))}")
