"""A method from a user's own file, ``path/to/file.py:Name``."""

import functools
import hashlib
import sys
import types
from pathlib import Path

from bar.errors import BarError, in_one_line, shown
from bar.methods.base import Method, Option

LARGEST = 2**20  # bytes of a file of source


def is_own(name: str) -> bool:
    """Whether the name of a method refers to a file of the user's."""
    return name.rpartition(":")[0].endswith(".py")


def load(name: str, source: str | None = None) -> tuple[type[Method], str]:
    """Run a user's file, and get the method from it.

    Parameters
    ----------
    name : str
        ``path/to/file.py:Name``.
    source : str, optional
        The SHA-256 that the file must have.

    Returns
    -------
    method : type
    source : str
        The SHA-256 of the file, in hexadecimal.

    Raises
    ------
    BarError
        If the file cannot be read or run, has changed, or if there is no method in it of that name.
    """
    path, _, wanted = name.rpartition(":")
    try:
        if not Path(path).is_file():
            raise BarError(f"there is no file {path!r:.200} to take the method {wanted!r:.60} from")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise BarError(f"cannot read {path!r:.200}: {error}") from error
    if len(content) > LARGEST:
        raise BarError(f"{path!r:.200} has more than {LARGEST:,} bytes")
    found = hashlib.sha256(content).hexdigest()
    if source is not None and source != found:
        raise BarError(f"{path} has changed since this run was configured: its SHA-256 is {found:.8}…")
    method = getattr(_run(path, content, found), wanted, None)
    if not isinstance(method, type):
        raise BarError(f"{path} has no class {wanted!r:.60}")
    if not issubclass(method, Method):
        raise BarError(f"{wanted} in {path} is not a method: its base must be bar.methods.Method or another method")
    try:
        _check(method)
    except (BarError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise BarError(f"{wanted} in {path} does not declare what a method must: {in_one_line(error)}") from error
    return method, found


@functools.lru_cache(maxsize=8)
def _run(path: str, content: bytes, digest: str) -> types.ModuleType:
    module = types.ModuleType(f"bar_method_{digest[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses, for one, look for it there
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise BarError(f"cannot run {path}: {in_one_line(error)}") from error
    return module


def _check(method: type[Method]) -> None:
    """What a class declares must be of the right kind; values in its presets must be values of its options."""
    for text in (method.name, method.title, method.summary):
        if not (isinstance(text, str) and text):
            raise BarError(f"name, title and summary must be texts, not {shown(text)}")
    if not all(isinstance(option, Option) for option in method.options):
        raise BarError("options must be a tuple of bar.methods.Option")
    if not method.metrics or set(method.metrics) - {"volume", "flops", "weights"}:
        raise BarError(f"metrics must be among volume and flops, or weights, not {shown(method.metrics)}")
    if not method.starts or set(method.starts) - {"scratch", "unpruned"}:
        raise BarError(f"starts must be among scratch and unpruned, not {shown(method.starts)}")
    for preset in ("paper", "quick"):
        values = method.defaults(preset)
        for option in method.options:
            option.value(values[option.name])
