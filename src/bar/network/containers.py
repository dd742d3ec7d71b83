"""Lists, dicts and their like: those that signals are handed over in, and those that modules keep."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator
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
    if isinstance(value, Written):
        return Refusal(
            f"in {where}, a list or dict is read again that module {value.path!r} has written into: let that module "
            "return what it makes",
            path,
        )
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


class Written:
    """What stands in a list or dict into which a module that is left whole has written: nobody knows what that is."""

    def __init__(self, path: str) -> None:
        self.path = path


def plain(value):
    """The same with lists, tuples and dicts of Python's own, made anew, which a module may write into.

    Examples
    --------
    >>> plain(fx.immutable_collections.immutable_list([1, (2, [3])]))
    [1, (2, [3])]
    """
    if type(value) in (list, fx.immutable_collections.immutable_list):
        return [plain(part) for part in value]
    if type(value) in (dict, fx.immutable_collections.immutable_dict):
        return {key: plain(part) for key, part in value.items()}
    return tuple(plain(part) for part in value) if type(value) is tuple else value


def _inside(value) -> Iterator[list | dict]:
    """The lists and dicts in what is given to a call, nested ones too, outer ones first."""
    if isinstance(value, list | dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _inside(part)


class Given:
    """The lists and dicts that are given to a call, which may write into them, and what is in them before."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self._pairs = [(one, copy.copy(one)) for one in _inside((args, kwargs))]

    def written(self) -> bool:
        """Whether one holds something else by now."""
        return any(differs(*pair) for pair in self._pairs)

    def restore(self) -> None:
        """Put what was in them there again."""
        for container, content in self._pairs:
            if differs(container, content):
                refill(container, content)

    def spoil(self, path: str) -> None:
        """Put something in them that no call takes, since only the module at a path knows what is there."""
        for container, content in self._pairs:
            gone = Written(path)
            refill(container, dict.fromkeys(content, gone) if isinstance(content, dict) else [gone] * len(content))


def refill(container: list | set | deque | dict, content: Iterable) -> None:
    """Put something else into a container."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


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
