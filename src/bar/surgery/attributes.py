"""Attributes of a user's model that tracing has made constants of: a change takes effect, or is refused."""

import contextlib
import operator
import sys
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.network import Network, trace

_TORCHS = frozenset(vars(nn.Module()))  # hooks, submodules and the mode
_TAKE_EFFECT = ("p", "eps", "momentum")  # of layers, which are read at each call
_MOST, _DEEPEST = 1000, 4  # of a container: its items, and what is in them
_STATES = 64  # that are known to compute the same


class Attributes:
    """Remembers what the modules keep whose forward has been traced, and the options of the layers that it calls.

    Parameters
    ----------
    network : bar.network.Network
        What tracing found.
    model : nn.Module
        The user's model.
    """

    def __init__(self, network: Network, model: nn.Module) -> None:
        self.network, self.model = network, model
        body = network.module
        called = {node.target: body.get_submodule(node.target) for node in body.graph.find_nodes(op="call_module")}
        prefixes = tuple(f"{name}." for name in called)
        self._traced = [
            module
            for name, module in model.named_modules()
            # of a layer that is seen as a plain one, see `bar.network.views`, the forward has been traced
            if not f"{name}.".startswith(prefixes) or (name in called and called[name] is not module)
        ]
        self._layers = [layer for layer in called.values() if type(layer).__module__.startswith("torch.nn")]
        self._read: set[tuple[int, str]] | None = None  # what forward reads, as far as that has been of interest
        self._now = self._state()
        self._known = {self._now}
        self._seen = self._objects()

    def check(self) -> bool:
        """Whether layers have other options by now, so that the network must be built anew.

        Raises
        ------
        BarError
            If an attribute has changed, and the model now computes something else than what was traced.
        """
        if all(
            len(own) == number
            and all(own.get(key) is value for key, value in objects)
            and all(key in own and _frozen(own[key]) == content for key, content in contents)
            for own, number, objects, contents in self._seen
        ):
            return False  # which is quick
        state = self._state()
        if state not in self._known:
            self._retrace(state)
            state = self._state()  # of fewer attributes
            self._known = {state} | (self._known if len(self._known) < _STATES else set())
        before, self._now, self._seen = self._now, state, self._objects()
        return before[1] != state[1]

    def _watched(self) -> Iterator[tuple[dict, list[str]]]:
        """The attributes of each module that has been traced, and of each layer; and which of them matter."""
        for place, module in enumerate(self._traced):
            read = self._read
            every = read is None or (place, "") in read
            yield vars(module), [k for k in vars(module) if k not in _TORCHS and (every or (place, k) in read)]
        for layer in self._layers:
            yield vars(layer), [k for k in vars(layer) if k not in _TORCHS and k not in _TAKE_EFFECT]

    def _objects(self) -> list[tuple[dict, int, list, list]]:
        """Of each module, its attributes, how many they are, those that cannot change in themselves, and the others."""
        return [
            (
                own,
                len(own),
                [(key, own[key]) for key in keys if _is_fixed(own[key])],
                [(key, _frozen(own[key])) for key in keys if not _is_fixed(own[key])],
            )
            for own, keys in self._watched()
        ]

    def _state(self) -> tuple[tuple, tuple]:
        """What modules keep that has been traced, and the options of layers."""
        parts = [tuple((key, _frozen(own[key])) for key in keys) for own, keys in self._watched()]
        return tuple(parts[: len(self._traced)]), tuple(parts[len(self._traced) :])

    def _retrace(self, state: tuple[tuple, tuple]) -> None:
        """Refuse a state with which the model computes something else; note what its forward reads."""
        try:
            with _spied(self._traced) as read:
                alike = self._alike(self._trace())
            if not alike:  # perhaps since modules are of other classes while they are watched
                alike = self._alike(self._trace())
        except BarError:
            alike = False
        if not alike:
            raise BarError(
                f"{self._difference(state)} now, with which the network computes something else than when the gates "
                "were put in: call bar.gate on it anew, or let forward read a buffer"
            )
        self._read = read

    def _difference(self, state: tuple[tuple, tuple]) -> str:
        """The first attribute that is another than before."""
        modules = [*self._traced, *self._layers]
        for module, before, after in zip(modules, self._now[0] + self._now[1], state[0] + state[1], strict=True):
            for key in [key for key, value in after if (key, value) not in before] + [k for k, _ in before]:
                value = vars(module).get(key)
                if key not in vars(module) or dict(before).get(key) != dict(after).get(key):
                    plain = isinstance(value, bool | int | float | str)
                    what = repr(value) if plain else f"another {type(value).__name__}"
                    return f"the attribute {key!r} of {type(module).__name__} is {what}"
        return "the attributes of the network are others"

    def _trace(self) -> Network:
        sizes = self.network.input_sizes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they have been said
            if len(sizes) == 1:
                return trace(self.model, sizes[0])
            return trace(self.model, example_inputs=self.network.example_inputs())

    def _alike(self, anew: Network) -> bool:
        """Whether a network computes the same, as far as parameters and layers are the same."""
        old, new = self.network.module, anew.module
        if old.code != new.code:
            return False
        parts = [([*n.kinds.values()], [*n.shapes.values()]) for n in (self.network, anew)]
        for node in new.graph.find_nodes(op="get_attr"):
            parts.append(tuple(operator.attrgetter(node.target)(m) for m in (old, new)))
        for node in new.graph.find_nodes(op="call_module"):  # dropouts of F.dropout, and views
            parts.append(tuple(m.get_submodule(node.target).extra_repr() for m in (old, new)))
        return parts[0] == parts[1] and all(_equal(a, b) for a, b in parts[2:])


def _equal(a, b) -> bool:
    if isinstance(a, nn.Parameter) or isinstance(b, nn.Parameter):
        return a is b
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b


def _frozen(value, left: int = _DEEPEST):
    """What can be compared with a later state: numbers, texts, what is in containers, and which objects these are."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if left and isinstance(value, list | tuple | dict | set) and len(value) <= _MOST:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return type(value), tuple(_frozen(part, left - 1) for part in parts)
    own = getattr(value, "__dict__", None)
    if left and type(own) is dict and not isinstance(value, type | nn.Module | Tensor):
        return id(value), _frozen(own, left - 1)
    return id(value)


def _is_fixed(value) -> bool:
    """Whether something else would be another object."""
    if type(value) is tuple:
        return all(map(_is_fixed, value))
    return isinstance(value, bool | int | float | str | None | Tensor | nn.Module | type | torch.dtype | torch.device)


@contextlib.contextmanager
def _spied(modules: list[nn.Module]) -> Iterator[set[tuple[int, str]]]:
    """Note which attributes of modules are read: place and name; the name is empty, if that may be any of them."""
    read: set[tuple[int, str]] = set()
    kinds = [type(module) for module in modules]
    try:
        for place, (module, kind) in enumerate(zip(modules, kinds, strict=True)):
            try:
                module.__class__ = _spy(kind, place, read)
            except Exception:  # classes may forbid subclasses, or another class
                read.add((place, ""))
        yield read
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


def _spy(kind: type, place: int, read: set[tuple[int, str]]) -> type:
    """A subclass whose objects note what is read of them."""

    def noted(self, name: str):
        if name != "__dict__":
            read.add((place, name))
        elif sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] not in (
            "bar",
            "torch",
            "copy",
            "copyreg",
        ):
            read.add((place, ""))
        return super(spy, self).__getattribute__(name)

    names = {"__getattribute__": noted, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    spy = type(kind)(kind.__name__, (kind,), names)
    return spy
