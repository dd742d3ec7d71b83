"""Standard streams that are closed, full or not read any more."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from bar.errors import BarError, printable


def reserve() -> None:
    """Where a standard stream is closed, no file may be opened in its place: it would get what is written there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def discard(*streams: TextIO | None) -> None:
    """What is left in a stream goes nowhere, or Python complains of it at its end."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def answers_alone() -> Iterator[None]:
    """Where a user's files run: they print to standard error, since standard output is for the answer, and end nothing.

    Raises
    ------
    BarError
        If one of them calls sys.exit.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # of rich
            raise
        raise BarError(f"a file of yours has ended the program: sys.exit({error.code!r})") from error


def fail(message: str, code: int = 2) -> None:
    """End with a line on standard error and an exit code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        discard(sys.stdout)
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("bar: " + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)
