"""The error a user's mistake raises."""

import difflib
from collections.abc import Iterable


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
        At most 200 characters of the message; of an error in the syntax, with its line.

    Examples
    --------
    >>> in_one_line(KeyError("width")), in_one_line(RuntimeError("sizes\\ndiffer"))
    ("KeyError: 'width'", 'RuntimeError: sizes differ')
    """
    where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split()):.200}{where}"


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
