"""Atomic writing: files are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bar.errors import BarError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError, as from a full disk or a missing folder, into a BarError that names the path."""
    try:
        yield
    except OSError as error:
        raise BarError(f"cannot write {path}: {error.strerror or error}") from error


def write(path: Path, *content: bytes | memoryview, previous: Path | None = None) -> None:
    """Write a file whole or not at all, also when the program is killed in between.

    Parameters
    ----------
    path : Path
        The file.
    *content : bytes
        What it holds, in pieces.
    previous : Path, optional
        The name under which to keep the file that was there before.

    Raises
    ------
    BarError
        If it cannot be written; the file that was there before is not lost.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path), replacing(path, partial, previous) as file:
        file.writelines(content)


@contextlib.contextmanager
def replacing(path: Path, partial: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file to fill, which takes the place of another once it is whole and on the disk; if not, nothing changes.

    Parameters
    ----------
    path : Path
        What it becomes.
    partial : Path
        What it is called until then, in the same folder; two that write at once need two names.
    previous : Path, optional
        The name under which the file is kept that was there before.

    Yields
    ------
    BinaryIO

    Raises
    ------
    OSError
        If it cannot be written; `writing` makes a BarError of it.
    """
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `write`."""
    write(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Add to the end of a text file; a BarError if that cannot be done."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
