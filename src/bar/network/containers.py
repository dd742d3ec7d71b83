"""Lists, dicts and their like: those that signals are handed over in, and those that modules keep."""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import torch
from torch import fx, nn

from bar.network.checks import Refusal

_OWN = (dict, list, tuple, torch.Size, fx.immutable_collections.immutable_dict, fx.immutable_collections.immutable_list)


def call(value: object, path: str) -> tuple[tuple, dict] | None:
    """The arguments with which its class makes a container again.

    Parameters
    ----------
    value : object
        Whatever is given to a call, or returned.
    path : str
        The module in which that happens.

    Returns
    -------
    (tuple, dict) or None
        Arguments by position and by name; None if it is none, or one of Python's own, which `torch.fx` knows.

    Raises
    ------
    Refusal
        If what its class makes of these is something else.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> call(OrderedDict(out=1), ""), call({"out": 1}, "")
    ((({'out': 1},), {}), None)
    """
    if type(value) in _OWN:
        return None
    if is_dataclass(value) and not isinstance(value, type):
        made = (), {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    elif isinstance(value, dict):
        made = (dict(value),), {}
    elif isinstance(value, list | tuple):
        made = tuple(value) if hasattr(value, "_fields") else ([*value],), {}
    else:
        return None
    if not _makes(value, *made):
        raise refusal(value, path)
    return made


def refusal(value: object, path: str) -> Refusal:
    """The error for something that cannot be recorded."""
    where = f"module {path!r}" if path else "the network itself"
    return Refusal(
        f"in {where}, a {type(value).__name__} that is returned or passed on cannot be made again from what it holds: "
        "use a dict, a list, a tuple or a plain dataclass",
        path,
    )


def _makes(value, args: tuple, kwargs: dict) -> bool:
    """Whether a class makes the same of these."""
    try:
        return _same(_contents(value), _contents(type(value)(*args, **kwargs)))
    except Exception:  # a user's class may raise anything
        return False


def _contents(value) -> list:
    """Keys, items and attributes."""
    keys, items = [], []
    if isinstance(value, dict):
        keys, items = [*value], [*value.values()]
    elif isinstance(value, list | tuple):
        items = [*value]
    own = vars(value) if hasattr(type(value), "__dict__") and type(value).__dictoffset__ else {}
    parts = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else []
    return [*keys, *items, *own, *own.values(), *parts]


def _same(one: list, other: list) -> bool:
    """Whether these are the same objects, numbers or texts; what is a signal cannot be compared."""
    plain = (bool, int, float, str, type(None))
    return len(one) == len(other) and all(
        a is b or (type(a) is type(b) and isinstance(a, plain) and a == b) for a, b in zip(one, other, strict=True)
    )


_NOT_OURS = frozenset(vars(nn.Module())) - {"training"}  # hooks, submodules: torch keeps them


def kept(module: nn.Module) -> Iterator[tuple[str, list | dict | set | deque, list | dict | set | deque]]:
    """The lists, dicts, sets and deques that a module keeps, nested ones too: attribute, container, and its copy."""
    todo, seen = [(key, value) for key, value in vars(module).items() if key not in _NOT_OURS], set()
    while todo:
        key, value = todo.pop()
        if isinstance(value, list | dict | set | deque) and id(value) not in seen:
            seen.add(id(value))
            yield key, value, copy.copy(value)
            todo += [(key, part) for part in (value.values() if isinstance(value, dict) else value)]


def differs(container: list | dict | set | deque, before: list | dict | set | deque) -> bool:
    """Whether a container holds other objects than before, or in another order: by identity, not by equality."""
    if isinstance(container, dict):
        return [*map(id, (*container, *container.values()))] != [*map(id, (*before, *before.values()))]
    if isinstance(container, set):
        return {*map(id, container)} != {*map(id, before)}
    return [*map(id, container)] != [*map(id, before)]
