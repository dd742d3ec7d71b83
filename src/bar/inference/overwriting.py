"""Do ReLUs and sums in place where possible; a signal has memory from the start for channels that are added later."""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.inference.operations import add_gathered_, add_slices_, make_room, scale_and_shift
from bar.inference.sums import PARTS, SUMS, calls, channels_and_sums, is_relu, module_of
from bar.network import IN_PLACE_OPERATORS, name_in_place_results
from bar.surgery import slices

_LANES = 16  # features that a convolution computes together on a CPU (AVX-512, float32)
_COPY = 10  # multiply-adds that take as long on a CPU as copying a channel of a pixel, measured
_NEW = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Linear)


def overwrite(plain: fx.GraphModule) -> None:
    """Rewrite a graph so that ReLUs and sums write into the memory of what nothing reads any more.

    What the network itself does in place is first done out of place. Where it cannot be, the graph stays as it is.
    """
    if _write_nothing(plain):
        _Overwriting(plain).rewrite()
    plain.recompile()


def _write_nothing(plain: fx.GraphModule) -> bool:
    """Do out of place what the network does in place; whether all of it could be."""
    could = True
    for node in name_in_place_results(plain):
        if node.op == "call_module":
            plain.get_submodule(node.target).inplace = False
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.target in IN_PLACE_OPERATORS:
            node.target = IN_PLACE_OPERATORS[node.target]
        else:
            home = Tensor if node.op == "call_method" else torch
            name = str(getattr(node.target, "__name__", node.target)).removesuffix("_")
            could &= hasattr(home, name)
            if hasattr(home, name):
                node.target = name if node.op == "call_method" else getattr(torch, name)
    return could


def _is_new(node: fx.Node) -> bool:
    """Whether a node certainly returns memory of its own, and neither its input nor a view of that."""
    module = module_of(node)
    return is_relu(node) or calls(node, SUMS) or (isinstance(module, _NEW) and not getattr(module, "inplace", False))


def _work(node: fx.Node, width: int) -> int:
    """Multiply-adds per pixel that a convolution takes when its features fill up to `width` with zeros."""
    return module_of(node).weight[0].numel() * -(-width // _LANES) * _LANES


class _Overwriting:
    """First decide for the whole graph what may be overwritten, then replace one node after the other.

    Attributes
    ----------
    in_place : dict
        ReLU -> its input, which it may overwrite.
    kept : dict of bool
        Sum -> whether it may overwrite its first signal.
    room : dict of int
        Sum -> how many channels its memory must have.
    memory : dict
        Signal -> what holds it, perhaps with room after it.
    new : dict
        Node of the old graph -> what replaces it.
    """

    def __init__(self, plain: fx.GraphModule) -> None:
        self.plain, self.graph, self.nodes = plain, plain.graph, list(plain.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.signals, self.sums = channels_and_sums(plain.graph)
        self.in_place = {n: n.args[0] for n in self.nodes if is_relu(n) and self._last_read_by(n.args[0], n)}
        self.kept = {root: self._last_read_by(base, root) for root, (base, _) in self.sums.items()}
        self.room = {root: len(self.signals[root]) for root in self.sums}
        for root in reversed(self.sums):
            base = self.sums[root][0]
            while base in self.in_place:  # several in a row, where blocks between them have been removed
                base = self.in_place[base]
            if self.kept[root] and base in self.room:
                self.room[base] = self.room[root]
        self.memory: dict[fx.Node, fx.Node] = {}
        self.new: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> None:
        for node in self.nodes:
            with self.graph.inserting_before(node):
                replacement = self._replacement(node)
            if replacement is not None:
                self.new[node] = replacement
                node.replace_all_uses_with(replacement)
        self.graph.eliminate_dead_code()
        self.plain.delete_all_unused_submodules()
        self.graph.lint()

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        for user in node.users:
            inside = calls(user, SUMS + PARTS) and user not in self.sums
            yield from self._readers(user) if inside else [user]

    def _last_read_by(self, node: fx.Node, reader: fx.Node) -> bool:
        last = self.position[reader]
        return _is_new(node) and all(_is_new(r) and self.position[r] <= last for r in self._readers(node))

    def _replacement(self, node: fx.Node) -> fx.Node | None:
        module = module_of(node)
        if node in self.in_place:
            if self.in_place[node] in self.memory:
                self.memory[node] = self.memory[self.in_place[node]]
            return self.graph.call_function(F.relu, node.args, {"inplace": True})
        if node in self.sums:
            return self._sum(node)
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            return self._batch_norm(node, module)
        return None

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> fx.Node:
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        name = node.target.replace(".", "_")
        scale = self._attribute(f"{name}_scale", scale[:, None, None])
        shift = self._attribute(f"{name}_shift", shift[:, None, None])
        return self.graph.call_function(scale_and_shift, (node.args[0], scale, shift))

    def _sum(self, node: fx.Node) -> fx.Node:
        base, others = self.sums[node]
        width, room = len(self.signals[base]), self.room[node]
        summands = {base: list(range(width))} | others
        extra = self._extra_work(node, summands)
        base, here = self._begin(node, summands, extra)
        del summands[base]
        for i, (other, places) in enumerate(summands.items()):
            if extra.get(other) == 0 and places != list(range(len(places))):
                self._spread(other, places, room)
                places = range(room)
            here = self._add(here, other, places, f"{node.name}_fetch{i}", most=2 + width // 24)
        self.memory[node] = here
        channels = len(self.signals[node])
        return here if room == channels else self.graph.call_function(torch.narrow, (here, 1, 0, channels))

    def _extra_work(self, root: fx.Node, summands: dict[fx.Node, list[int]]) -> dict[fx.Node, int]:
        """Convolutions whose features go only into this sum -> what it costs them to leave room for all of it."""
        return {
            node: _work(node, self.room[root]) - _work(node, len(places))
            for node, places in summands.items()
            if self._only_in(node, root) and len(places) == len(self.signals[node])
        }

    def _only_in(self, node: fx.Node, root: fx.Node) -> bool:
        """Whether a node is an ordinary convolution whose features go into a sum, and nowhere else."""
        module = module_of(node)
        ordinary = type(module) is nn.Conv2d and module.groups == 1
        called_once = sum(n.target == node.target for n in self.nodes) == 1
        return ordinary and set(self._readers(node)) == {root} and called_once

    def _begin(
        self, root: fx.Node, summands: dict[fx.Node, list[int]], extra: dict[fx.Node, int]
    ) -> tuple[fx.Node, fx.Node]:
        """The summand that a sum starts from, and the memory that it is in, with room for the others."""
        base = self.sums[root][0]
        here, room = self.new.get(base, base), self.room[root]
        if self.kept[root] and base in self.memory:
            return base, self.memory[base]
        if self.kept[root] and room <= len(self.signals[base]):
            return base, here
        if extra and min(extra.values()) <= _COPY * room:
            base = min(extra, key=extra.get)
            self._spread(base, summands[base], room)
            return base, base
        return base, self.graph.call_function(make_room, (here, room))

    def _add(self, here: fx.Node, other: fx.Node, places: Sequence[int], name: str, most: int) -> fx.Node:
        """Add channels at these places: in up to `most` slices, beyond which gathering is faster on a CPU."""
        delta = self.new.get(other, other)
        added = slices((c, entry) for entry, c in enumerate(places))
        if len(added) <= most:
            return self.graph.call_function(add_slices_, (here, delta, added))
        fetch = torch.full((max(place + length for place, _, length in added),), len(self.signals[other]))
        for place, entry, length in added:
            fetch[place : place + length] = torch.arange(entry, entry + length)
        return self.graph.call_function(add_gathered_, (here, delta, self._attribute(name, fetch)))

    def _spread(self, node: fx.Node, places: list[int], width: int) -> None:
        """Let a convolution put its features where a sum has them, and zeros elsewhere."""
        conv = copy.deepcopy(module_of(node))
        for name, old in conv.named_parameters():
            wider = old.new_zeros(width, *old.shape[1:])
            wider[places] = old
            setattr(conv, name, nn.Parameter(wider, requires_grad=False))
        conv.out_channels = width
        self.plain.set_submodule(node.target, conv)

    def _attribute(self, name: str, tensor: Tensor) -> fx.Node:
        while hasattr(self.plain, name):
            name += "_"
        self.plain.register_buffer(name, tensor)
        return self.graph.get_attr(name)
