"""The error a user's mistake raises."""

import difflib
import os
import sys
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path


class BarError(ValueError):
    """A request that cannot be served; the message says what was wrong and what to do.

    The command line prints it as one line and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what a mistyped name may have meant.

    Parameters
    ----------
    name : str
        What was asked for.
    known : iterable of str
        What there is.

    Returns
    -------
    str
        A sentence for the end of an error message.

    Examples
    --------
    >>> nearest("digit", ["digits", "cifar10"])
    "did you mean 'digits'? Known: cifar10, digits"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "Known: " + ", ".join(known)


def is_plain(text: str) -> bool:
    """Whether a text can be written as UTF-8 and as a path: no NUL, nothing that the command line could not decode.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool

    Examples
    --------
    >>> is_plain("größe"), is_plain("a\\0b"), is_plain("\\udcff")
    (True, False, False)
    """
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object) -> str:
    """A value for a message, a very long one shortened (Python refuses to print an int of thousands of digits).

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        At most 60 characters of its repr, or the number of bits of a huge int.

    Examples
    --------
    >>> shown("flop"), shown(10**50)
    ("'flop'", 'a number of 167 bits')
    """
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.60}"


def in_one_line(error: BaseException) -> str:
    """The kind of an error in code that is not ours, and its message in one line.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str
        At most 200 characters of the message, and the line it comes from, as `line_of` finds it.

    Examples
    --------
    >>> in_one_line(KeyError("width")), in_one_line(RuntimeError("sizes\\ndiffer"))
    ("KeyError: 'width'", 'RuntimeError: sizes differ')
    """
    where = line_of(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split()):.200}" + (f" ({where})" if where else "")


def line_of(error: BaseException, installed: bool = False) -> str | None:
    """Where in a user's code an error comes from.

    Parameters
    ----------
    error : BaseException
        One that has been raised.
    installed : bool
        Whether code of installed packages counts as well, other than ours and PyTorch's.

    Returns
    -------
    str or None
        The line and its file: of an error in the syntax, its place; of others, the innermost line that is neither ours
        nor PyTorch's nor Python's own. None without one.

    Examples
    --------
    >>> try:
    ...     compile("width = = 8", "nets.py", "exec")
    ... except SyntaxError as error:
    ...     print(line_of(error))
    line 1 of nets.py
    """
    if isinstance(error, SyntaxError):
        places = [(error.filename or "", error.lineno)]
    else:
        not_theirs = {"bar", "torch", *sys.stdlib_module_names}
        places = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__", "").partition(".")[0] not in not_theirs
        ]
    not_counted = set() if installed else {"site-packages", "dist-packages"}
    places = [
        (file, line)
        for file, line in places
        if file and not file.startswith("<") and not_counted.isdisjoint(Path(file).parts)
    ]
    if not places:
        return None
    file, line = places[-1]
    return f"line {line} of {file.removeprefix(os.path.join(os.getcwd(), ''))}"


def printable(text: str) -> str:
    """A text with control characters escaped as in Python source, so that a terminal does not obey them.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> print(printable("größe\\x1b[31m"))
    größe\\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def allow(
    name: str,
    value: object,
    *,
    low: float | None = None,
    high: float = float("inf"),
    among: Collection[str] | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Refuse a parameter of a notebook that is not allowed, and say what is.

    Parameters
    ----------
    name : str
        What the parameter is called.
    value : object
        Its value, or a list of values, each of which is checked.
    low, high : float
        Bounds of a number; both are allowed. Without a lower bound, text is expected.
    among : collection of str, optional
        The words that are allowed.
    whole : bool
        Whether only whole numbers are allowed.
    optional : bool
        Whether None is allowed, too.

    Raises
    ------
    BarError
        If the value, or one of the list, is not allowed.

    Examples
    --------
    >>> allow("epochs", [10, 5, 2], low=0, whole=True)
    >>> allow("pruning_factor", 0.5, low=1)
    Traceback (most recent call last):
    bar.errors.BarError: pruning_factor is 0.5: a number from 1 on is allowed
    """
    if value is None and optional:
        return
    for one in value if isinstance(value, list | tuple) else [value]:
        if among is not None and (not isinstance(one, str) or one not in among):
            raise BarError(f"{name} is {one!r:.200}: {nearest(str(one), among)}")
        if among is None and not _fits(one, low, high, whole):
            bounds = f"from {low} on" if high == float("inf") else f"from {low} to {high}"
            what = "text" if low is None else f"a {'whole ' * whole}number {bounds}"
            raise BarError(f"{name} is {one!r:.200}: {what} is allowed{', or None' * optional}")


def _fits(value: object, low: float | None, high: float, whole: bool) -> bool:
    """Whether a value is a number within bounds, or, without a lower bound, a text."""
    if low is None:
        return isinstance(value, str)
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high
