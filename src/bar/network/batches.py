"""Sizes are numbers while a network is recorded; the number of images must not become one of them."""

import operator

import torch
from torch import Tensor, fx, nn

from bar.network.checks import Refusal, path_of, place_of
from bar.network.recording import Recording, record

BATCHES = (2, 3)  # how many images a network is recorded with: what differs is a multiple of that


def frozen_sizes(model: nn.Module, inputs: list[Tensor], leaves: dict[str, str], first: Recording) -> dict:
    """Where a recording holds the number of images: node -> its arguments, with `Times` there.

    Raises
    ------
    Refusal
        If the network does something else for another number of images.
    """
    second = record(model, inputs, leaves)
    ones, others = list(first.module.graph.nodes), list(second.module.graph.nodes)
    modules = dict(first.module.named_modules())
    found: dict[fx.Node, tuple] = {}
    twins: dict[fx.Node, fx.Node] = {}
    for one, other in zip(ones, others, strict=False):
        twins[other] = one
        held = fx.node.map_arg((other.args, other.kwargs), twins.get)
        try:
            if (one.op, _name(one)) != (other.op, _name(other)) or not _same_constant(one, first, second, other):
                raise ValueError
            both = _both((one.args, one.kwargs), held)
        except ValueError:
            raise _refusal(one, modules) from None
        if both != (one.args, one.kwargs):
            found[one] = both
        shapes = [
            v.shape if isinstance(v := r.values.get(n), Tensor) else None for r, n in ((first, one), (second, other))
        ]
        if one.target in ("view", "reshape") or one.target is torch.reshape:
            sizes = _sizes(*shapes)
            if one in found and sizes is not None:
                found[one] = ((one.args[0], *sizes) if one.op == "call_method" else (one.args[0], sizes), {})
    if len(ones) != len(others):
        raise _refusal(ones[-1] if len(ones) < len(others) else others[-1], modules)
    return found


def _refusal(node: fx.Node, modules: dict[str, nn.Module]) -> Refusal:
    return Refusal(f"{place_of(node, modules)} depends on how many images there are", path_of(node))


def _name(node: fx.Node):
    return str(node.target) if node.op in ("get_attr", "placeholder", "call_method") else node.target


def _same_constant(one: fx.Node, first: Recording, second: Recording, other: fx.Node) -> bool:
    if one.op != "get_attr":
        return True
    a, b = (operator.attrgetter(n.target)(r.module) for r, n in ((first, one), (second, other)))
    return a is b or not isinstance(a, Tensor) or (a.shape == b.shape and (a.is_meta or torch.equal(a, b)))


class Times:
    """A multiple of the number of images."""

    def __init__(self, factor: int) -> None:
        self.factor = factor


def _both(a, b):
    """Arguments that are the same in both recordings, with `Times` for multiples of the numbers of images."""
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*_both(_ends(a), _ends(b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return dict(_both([*a.items()], [*b.items()]))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        parts = [_both(x, y) for x, y in zip(a, b, strict=True)]  # a ValueError, if one is longer
        return tuple(parts) if isinstance(a, tuple) else parts
    return _number(a, b)


def _number(a, b):
    if a is b or (type(a) is type(b) and (a == b or repr(a) == repr(b))):  # NaN is not NaN
        return a
    if type(a) is type(b) is int and a * BATCHES[1] == b * BATCHES[0]:
        return Times(a // BATCHES[0])
    raise ValueError


def _ends(s: slice) -> tuple:
    return s.start, s.stop, s.step


def _sizes(a, b) -> tuple | None:
    """The sizes of a view for any number of images; None if two of them depend on it."""
    if a is None or b is None or len(a) != len(b):
        return None
    sizes = tuple(x if x == y else -1 for x, y in zip(a, b, strict=True))
    return sizes if sizes.count(-1) <= 1 else None


def thaw(module: fx.GraphModule, found: dict) -> None:
    """Compute the number of images, where a recording holds it as a number."""
    graph = module.graph
    images = next(iter(graph.find_nodes(op="placeholder")))
    sizes: dict[int, fx.Node] = {}

    def size(factor: int) -> fx.Node:
        if factor not in sizes:
            last = list(graph.find_nodes(op="placeholder"))[-1]
            with graph.inserting_after(sizes.get(1, last)):
                if factor == 1:
                    sizes[1] = graph.call_method("size", (images, 0))
                else:
                    one = size(1)
            if factor > 1:
                with graph.inserting_after(one):
                    sizes[factor] = graph.call_function(operator.mul, (one, factor))
        return sizes[factor]

    def thawed(value):
        if isinstance(value, Times):
            return size(value.factor)
        if isinstance(value, list | tuple):
            return type(value)(thawed(v) for v in value)
        if isinstance(value, dict):
            return {k: thawed(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*(thawed(v) for v in _ends(value)))
        return value

    for node, (args, kwargs) in found.items():
        if not node._erased:
            node.args, node.kwargs = thawed(args), thawed(kwargs)
