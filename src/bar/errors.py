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
