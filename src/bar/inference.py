"""Rewrite a network for inference: batch norm folded, and what nobody reads any more overwritten (`fold`)."""

import copy
import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.errors import BarError
from bar.export import _plain
from bar.surgery import GatedNetwork, slices

_LANES = 16  # features that a convolution computes at once on a CPU (AVX-512, float32)
_COPY = 10  # multiply-adds that take as long on a CPU as copying a channel of a pixel, measured
_SUMS = (operator.add, torch.add, torch.cat, torch.index_add)
_PARTS = (torch.narrow, torch.index_select)
_NEW = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Linear)


def fold(network: nn.Module) -> fx.GraphModule:
    """Rewrite a network for inference: the same outputs in eval mode, in less time and memory.

    A batch norm that directly follows a convolution becomes part of it. What nobody reads any more is overwritten: by a
    ReLU its input, by a sum one of its summands, and in a sum of mixed connectivity only the channels that it refines.
    A residual signal is given room for the channels that later blocks bring, so that it need not be copied then.
    Weights are laid out in channels_last, and so is therefore what convolutions put out: on a CPU the faster way.

    Parameters
    ----------
    network : nn.Module
        From `bar.prune` or `bar.load`, or any CNN of one tensor in and one tensor out that `torch.fx` can trace. It is
        not changed, and no weight is shared with the result.

    Returns
    -------
    torch.fx.GraphModule
        For inference only: in eval mode, and no parameter requires a gradient. To fine-tune, store or `bar.export`,
        keep `network`.

    Raises
    ------
    BarError
        If the network is a gated one, or cannot be traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    >>> images = torch.rand(5, 1, 6, 6)
    >>> folded = fold(net)
    >>> [name for name, _ in folded.named_children()]
    ['0', '3', '4']
    >>> torch.allclose(folded(images), net(images), atol=1e-6)
    True
    """
    if isinstance(network, GatedNetwork):
        raise BarError("a gated network is not folded as it is: take the dead features out first, with bar.prune")
    plain = _plain(copy.deepcopy(network).eval().requires_grad_(False))
    _overwrite(plain)
    return plain.to(memory_format=torch.channels_last)


def make_room(signal: Tensor, channels: int) -> Tensor:
    """A copy of a signal with more channels behind its own, all zero."""
    return F.pad(signal, (0, 0, 0, 0, 0, channels - signal.shape[1]))


def add_slices_(signal: Tensor, delta: Tensor, stretches: list[tuple[int, int, int]]) -> Tensor:
    """Add in place, stretch by stretch of channels (first of the signal, first of delta, length)."""
    if signal.shape[2:] != delta.shape[2:] and stretches == [(0, 0, signal.shape[1])]:
        return signal + delta  # broadcast, as no pruned network does
    for place, entry, length in stretches:
        signal.narrow(1, place, length).add_(delta.narrow(1, entry, length))
    return signal


def add_gathered_(signal: Tensor, delta: Tensor, fetch: Tensor) -> Tensor:
    """Add in place: channel c of the signal fetches channel fetch[c] of delta, or zero, one past its last."""
    signal.narrow(1, 0, len(fetch)).add_(F.pad(delta, (0, 0, 0, 0, 0, 1))[:, fetch])
    return signal


def scale_and_shift(signal: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm in eval mode as one multiply-add, scale and shift of shape (channels, 1, 1)."""
    n, channels, height, width = signal.shape
    if channels > 32 or signal.numel() < 2**16 or not signal.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(shift, signal, scale)
    # A loop over few channels is too short for a CPU: go along a whole row of pixels.
    rows = signal.permute(0, 2, 3, 1).view(n, height, width * channels)
    out = torch.addcmul(shift.flatten().repeat(width), rows, scale.flatten().repeat(width))
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)


def _module(node: fx.Node) -> nn.Module | None:
    return node.graph.owning_module.get_submodule(node.target) if node.op == "call_module" else None


def _calls(node: fx.Node, functions: tuple) -> bool:
    return node.op == "call_function" and node.target in functions and not node.kwargs


def _is_relu(node: fx.Node) -> bool:
    module = _module(node)
    if module is not None:
        return isinstance(module, nn.ReLU) and not module.inplace
    return len(node.args) == 1 and (
        _calls(node, (F.relu, torch.relu)) or (node.op == "call_method" and node.target == "relu")
    )


def _is_new(node: fx.Node) -> bool:
    """Whether a node certainly returns memory of its own, and neither its input nor a view of that."""
    module = _module(node)
    return _is_relu(node) or _calls(node, _SUMS) or (isinstance(module, _NEW) and not getattr(module, "inplace", False))


def _width(node: fx.Node, signals: dict[fx.Node, list]) -> int | None:
    """How many channels a node returns, if it is one of those that bring or keep channels."""
    module = _module(node)
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    kept = _is_relu(node) or isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    return len(signals[node.args[0]]) if kept and node.args[0] in signals else None


def _rearranged(node: fx.Node, signals: dict[fx.Node, list]) -> list | None:
    """Every channel of a sum, or of a part, as the channels of others that it is the sum of."""
    if node.target is torch.cat:
        sources, dim = node.args[0], node.args[1:]
        if isinstance(sources, fx.Node):  # what x.chunk() returns
            return None
    else:
        sources, dim = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"], node.args[1:2]
    if any(source not in signals for source in sources):
        return None
    parts = [signals[source] for source in sources]
    if node.target in (operator.add, torch.add):
        return [a + b for a, b in zip(*parts, strict=True)] if len(parts) == 2 else None
    if tuple(dim) != (1,):
        return None
    if node.target is torch.cat:
        return [channel for part in parts for channel in part]
    if node.target is torch.narrow:
        return parts[0][node.args[2] : node.args[2] + node.args[3]]
    index = getattr(node.graph.owning_module, node.args[2].target).tolist()
    if node.target is torch.index_select:
        return [parts[0][c] for c in index]
    total = list(parts[0])
    for c, channel in zip(index, parts[1], strict=True):
        total[c] = total[c] + channel
    return total


def _summands(channels: list, signals: dict[fx.Node, list]) -> tuple[fx.Node, dict[fx.Node, list[int]]] | None:
    """A sum as the signal that stays where it is, and the others, with the channels that theirs are added to."""
    places: dict[fx.Node, dict[int, int]] = {}
    for place, channel in enumerate(channels):
        for source, c in channel:
            if places.setdefault(source, {}).setdefault(c, place) != place or channel.count((source, c)) > 1:
                return None
    whole = {source: [where.get(c) for c in range(max(where) + 1)] for source, where in places.items()}
    base = next((s for s, where in whole.items() if where == list(range(len(signals[s])))), None)
    if base is None or len(whole) < 2 or any(None in where for where in whole.values()):
        return None
    return base, {source: where for source, where in whole.items() if source is not base}


def _overwrite(plain: fx.GraphModule) -> None:
    """Do in place what may be: ReLUs, and sums, the signal having room from the start for channels to come."""
    graph, nodes = plain.graph, list(plain.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    signals: dict[fx.Node, list] = {}  # node -> its channels, each a tuple of (node that brought it, channel of that)
    sums: dict[fx.Node, tuple[fx.Node, dict[fx.Node, list[int]]]] = {}
    for node in nodes:
        if _calls(node, _SUMS + _PARTS):
            channels = _rearranged(node, signals)
            width = None if channels is None else len(channels)
            if channels is not None and not all(_calls(user, _SUMS + _PARTS) for user in node.users):
                if _calls(node, _SUMS) and (found := _summands(channels, signals)):
                    sums[node] = found
                elif _calls(node, _PARTS):
                    signals[node] = channels
                    continue
            elif channels is not None:
                signals[node] = channels
                continue
        else:
            width = _width(node, signals)
        if width is not None:
            signals[node] = [((node, c),) for c in range(width)]

    def readers(node: fx.Node) -> Iterator[fx.Node]:
        for user in node.users:
            inside = _calls(user, _SUMS + _PARTS) and user not in sums
            yield from readers(user) if inside else [user]

    def last_read_by(node: fx.Node, reader: fx.Node) -> bool:
        return _is_new(node) and all(_is_new(r) and position[r] <= position[reader] for r in readers(node))

    def memory_of(node: fx.Node) -> fx.Node:
        """The node in whose memory a signal will be: its own, or through a ReLU in place that of another."""
        return relus.get(node, node)

    relus = {n: n.args[0] for n in nodes if _is_relu(n) and last_read_by(n.args[0], n)}
    kept = {root: last_read_by(base, root) for root, (base, _) in sums.items()}
    room = {root: len(signals[root]) for root in sums}
    for root in reversed(sums):
        base = memory_of(sums[root][0])
        if kept[root] and base in room:
            room[base] = room[root]

    memory: dict[fx.Node, fx.Node] = {}  # a signal -> what holds it, perhaps with room behind it
    new: dict[fx.Node, fx.Node] = {}

    def only_in(node: fx.Node, root: fx.Node) -> bool:
        """Whether a node is an ordinary convolution whose features go into a sum, and nowhere else."""
        ordinary = type(_module(node)) is nn.Conv2d and _module(node).groups == 1
        return ordinary and set(readers(node)) == {root} and sum(n.target == node.target for n in nodes) == 1

    def work(node: fx.Node, width: int) -> int:
        """Multiply-adds per pixel that a convolution takes when its features fill up to `width` with zeros."""
        return _module(node).weight[0].numel() * -(-width // _LANES) * _LANES

    def spread(node: fx.Node, places: list[int], width: int) -> None:
        """Let a convolution put its features where a sum has them, and zeros elsewhere."""
        conv = copy.deepcopy(_module(node))
        for name, old in conv.named_parameters():
            wider = old.new_zeros(width, *old.shape[1:])
            wider[places] = old
            setattr(conv, name, nn.Parameter(wider, requires_grad=False))
        conv.out_channels = width
        plain.set_submodule(node.target, conv)

    def attribute(name: str, tensor: Tensor) -> fx.Node:
        plain.register_buffer(name, tensor)
        return graph.get_attr(name)

    for node in nodes:
        module = _module(node)
        with graph.inserting_before(node):
            if node in relus:
                new[node] = graph.call_function(F.relu, node.args, {"inplace": True})
                if relus[node] in memory:
                    memory[node] = memory[relus[node]]
            elif node in sums:
                base, others = sums[node]
                here, width, wide = new.get(base, base), len(signals[base]), room[node]
                summands = {base: list(range(width))} | others
                extra = {n: work(n, wide) - work(n, len(places)) for n, places in summands.items()
                         if only_in(n, node) and len(places) == len(signals[n])}  # fmt: skip
                if kept[node] and base in memory:
                    here = memory[base]
                elif not kept[node] or wide > width:
                    if extra and min(extra.values()) <= _COPY * wide:
                        here = base = min(extra, key=extra.get)
                        spread(base, summands[base], wide)
                    else:
                        here = graph.call_function(make_room, (here, wide))
                del summands[base]
                for i, (other, places) in enumerate(summands.items()):
                    delta = new.get(other, other)
                    if extra.get(other) == 0 and places != list(range(len(places))):
                        spread(other, places, wide)
                        places = range(wide)
                    added = slices((c, entry) for entry, c in enumerate(places))
                    if len(added) > 2 + width // 24:  # where the two take equally long on a CPU
                        fetch = torch.full((max(place + length for place, _, length in added),), len(signals[other]))
                        for place, entry, length in added:
                            fetch[place : place + length] = torch.arange(entry, entry + length)
                        fetch = attribute(f"{node.name}_fetch{i}", fetch)
                        here = graph.call_function(add_gathered_, (here, delta, fetch))
                    else:
                        here = graph.call_function(add_slices_, (here, delta, added))
                memory[node] = here
                prefix = (here, 1, 0, len(signals[node]))
                new[node] = here if room[node] == len(signals[node]) else graph.call_function(torch.narrow, prefix)
            elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight)
                shift = (0 if module.bias is None else module.bias) - module.running_mean * scale
                name = node.target.replace(".", "_")
                scale, shift = (
                    attribute(f"{name}_{n}", t[:, None, None]) for n, t in (("scale", scale), ("shift", shift))
                )
                new[node] = graph.call_function(scale_and_shift, (node.args[0], scale, shift))
        if node in new:
            node.replace_all_uses_with(new[node])
    graph.eliminate_dead_code()
    plain.delete_all_unused_submodules()
    graph.lint()
    plain.recompile()
