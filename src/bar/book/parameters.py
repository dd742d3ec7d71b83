"""The parameters of notebooks: reading those that are typed, and checking them against what notebooks declare."""

import ast
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import papermill

from bar.errors import BarError, is_plain, nearest


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
            repr(value)  # fails for an int of thousands of digits
            parameters[name.lower()] = list(value) if isinstance(value, tuple) else value  # papermill knows no tuples
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all that literal_eval may raise
            parameters[name.lower()] = text
    return parameters


def declared_in(path: Path) -> dict[str, str]:
    """Return names and default values (as source) of a notebook's parameters."""
    return {name: entry["default"] for name, entry in papermill.inspect_notebook(os.path.relpath(path)).items()}


def check(parameters: Mapping[str, object], declared: Mapping[Path, Mapping[str, str]]) -> None:
    """Raise a BarError for a parameter that no notebook has, or for no number where the default is a number."""
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


def texts(given: Mapping[str, object], declared: Mapping[str, str]) -> Iterator[str]:
    """Yield the texts among a notebook's parameters, each of which may name a file or folder that it reads."""
    for name, default in declared.items():
        with contextlib.suppress(SyntaxError, ValueError):  # a default that is computed
            value = given[name] if name in given else ast.literal_eval(default)
            yield from (
                text for text in (value if isinstance(value, list) else [value]) if text and isinstance(text, str)
            )
