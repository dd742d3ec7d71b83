"""Operations that only move values: what they do to channels is found by moving numbers, and written in one form.

A view, a transpose and another view may be a shuffle of channels; `x.chunk(2, 1)[0]` is half of the channels, and so
is `x[:, :8]`; `x.view(len(x), -1)` is `flatten(x, 1)`. Whatever the spelling, each value of the result is one of those
that went in. So each chain of such operations is run once on an image that holds the numbers 1, 2, 3, … (0: padding).
If channel j of what comes out is, as a whole, channel map[j] of what went in, the chain is replaced by one selection of
channels and perhaps one change of the shape of pixels. A chain that does something else to channels stays as it is.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

BATCH = 2  # images in what is moved
_METHODS = {
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "chunk", "split",
    "narrow", "flip", "select", "swapaxes", "movedim", "unbind", "tensor_split", "roll", "index_select", "contiguous",
    "split_with_sizes", "swapdims", "moveaxis", "repeat", "tile", "repeat_interleave",
}  # fmt: skip
_FUNCTIONS = {
    torch.reshape, torch.transpose, torch.permute, torch.flatten, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, torch.narrow, torch.flip, torch.select, torch.swapaxes, torch.movedim, torch.unbind, torch.roll,
    torch.index_select, torch.tensor_split, operator.getitem, F.pad, F.channel_shuffle, torch.channel_shuffle,
    torch.unflatten, torch.tile, torch.repeat_interleave,
}  # fmt: skip
_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


class _Move:
    """How channels and pixels of one signal become those of another."""

    def __init__(self, before: Tensor, after: Tensor) -> None:
        """Of numbered values; `channels` is None if channels are torn apart."""
        self.shape, self.channels, self.pixels = tuple(after.shape[2:]), None, None
        width = before.shape[1]
        area, count = before[0, 0].numel(), before[0].numel()
        self.columns = 1
        if after.ndim < 2 or len(after) != BATCH or after.numel() == 0:
            return
        if not torch.equal(after[1], torch.where(after[0] > 0, after[0] + count, 0.0)):
            return
        rows = after[0].reshape(after.shape[1], -1)
        if after.ndim == 2 and area > 1 and after.shape[1] % area == 0:
            rows, self.columns = after[0].reshape(-1, area), area
        places = rows.long() - 1
        inside = places >= 0
        channel = torch.where(inside, places // area, -1).amax(1)
        if ((places // area != channel[:, None]) & inside).any():
            return
        pixels = torch.where(inside, places % area, -1)
        some = channel >= 0
        if not some.any() or (pixels[some] != pixels[some][:1]).any():
            return
        self.channels, self.pixels = channel, pixels[some][0]
        self.all_channels = torch.equal(channel, torch.arange(width))
        self.all_pixels = torch.equal(self.pixels, torch.arange(area))
        if self.columns > 1 and not self.all_pixels:
            self.channels = None


def rewrite_movements(module: fx.GraphModule, values: dict[fx.Node, object]) -> None:
    """Write each chain of operations that move whole channels in one form; `values` are those of two images."""
    graph, modules = module.graph, dict(module.named_modules())
    transit: dict[fx.Node, tuple[fx.Node, object]] = {}  # inside a chain: where it began, and its numbers
    for node in list(graph.nodes):
        _unite(graph, node, module, values)
        source = _moved(node, modules)
        if source not in transit and (_is_flatten(node, modules) or not isinstance(values.get(source), Tensor)):
            continue
        anchor, numbers = transit.get(source) or (source, _numbered(values[source].shape))
        if numbers is None:
            continue
        try:
            after = _do(node, numbers, module, modules)
        except Exception:
            continue
        move = _Move(_numbered(values[anchor].shape), after) if isinstance(after, Tensor) else None
        if move is None or move.channels is None:
            transit[node] = anchor, after
            continue
        with graph.inserting_before(node):
            new = _canonical(graph, node, anchor, move, values)
        if new is None:
            transit[node] = anchor, after
        elif new is not node:
            _take_over(values, node, new)
            node.replace_all_uses_with(new)


def _is_flatten(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a layer that is in the one form already."""
    layer = modules[node.target] if node.op == "call_module" else None
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _take_over(values: dict, node: fx.Node, new: fx.Node) -> None:
    values[new] = values[node]
    new.meta.update({k: v for k, v in node.meta.items() if k == "nn_module_stack"})


def _numbered(shape) -> Tensor | None:
    """The numbers from 1 on, in the shape of a signal; None for what is none."""
    if len(shape) < 2 or shape[0] != BATCH or shape.numel() > 2**26:
        return None
    return torch.arange(1, shape.numel() + 1, dtype=torch.float64).view(shape)


def _moved(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What a node moves the values of, if it moves values."""
    if not is_movement(node, modules) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    others = [n for n in node.all_input_nodes if n is not node.args[0]]
    return node.args[0] if all(n.op == "get_attr" for n in others) else None


def is_movement(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node only moves values."""
    if node.op == "call_module":
        return isinstance(modules[node.target], _MODULES)
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


def _do(node: fx.Node, numbers, module: fx.GraphModule, modules: dict[str, nn.Module]):
    source = node.args[0]

    def value(n: fx.Node):
        return numbers if n is source else operator.attrgetter(n.target)(module).cpu()

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if node.op == "call_module":
        return modules[node.target](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _canonical(graph: fx.Graph, node: fx.Node, anchor: fx.Node, move: _Move, values: dict) -> fx.Node | None:
    """The same in one form; the node itself, if it is that already, None if there is no such form."""
    if not move.all_pixels:  # pixels are cut, turned or padded
        if move.all_channels and node.args[0] is anchor:
            return node
        return _cut(graph, node, anchor, move, values[anchor].shape[1])
    width = values[anchor].shape[1]
    new = anchor if move.all_channels else picked(graph, anchor, move.channels, width, values[anchor].ndim)
    shape = values[anchor].shape
    if move.columns > 1 or (len(move.shape) == 0 and len(shape) > 2):
        return graph.call_function(torch.flatten, (new, 1))
    if move.shape != tuple(shape[2:]):
        if len(shape) == 2:
            return graph.call_function(operator.getitem, (new, (slice(None), slice(None), *[None] * len(move.shape))))
        new = graph.call_function(torch.flatten, (new, 2)) if len(shape) != 3 else new
        new = new if len(move.shape) == 1 else graph.call_function(torch.unflatten, (new, 2, move.shape))
    if new is anchor:  # nothing was moved, as by contiguous()
        return node if node.args[0] is anchor and node.target == "contiguous" else anchor
    return new


def picked(graph: fx.Graph, source: fx.Node, channels: Tensor, width: int, ndim: int) -> fx.Node:
    """Some channels of a signal, -1 for one of zeros, as the simplest call that does it."""
    inside = channels[channels >= 0]
    low = int((channels >= 0).int().argmax())
    high = len(channels) - low - len(inside)
    first = int(inside[0])
    runs = torch.equal(inside, torch.arange(first, first + len(inside)))
    if runs and (channels[low : low + len(inside)] >= 0).all():
        new = source
        if len(inside) < width:
            new = graph.call_function(torch.narrow, (source, 1, first, len(inside)))
        return graph.call_function(F.pad, (new, (*[0, 0] * (ndim - 2), low, high))) if low or high else new
    if len(inside) < len(channels):
        source = graph.call_function(F.pad, (source, (*[0, 0] * (ndim - 2), 0, 1)))
        channels = torch.where(channels < 0, width, channels)
    return graph.call_function(operator.getitem, (source, (slice(None), channels.tolist())))


def _cut(graph: fx.Graph, node: fx.Node, anchor: fx.Node, move: _Move, width: int) -> fx.Node | None:
    """A selection of channels, and then one of pixels, where both are written as one index or one padding."""
    if node.args[0] is not anchor:
        return None
    ndim = len(move.shape) + 2
    if node.target is operator.getitem and isinstance(node.args[1], tuple) and Ellipsis not in node.args[1]:
        index = list(node.args[1])
        if len(index) < 2 or any(not isinstance(i, slice) for i in index):
            return None
        new = picked(graph, anchor, move.channels, width, ndim)
        return graph.call_function(operator.getitem, (new, (slice(None), slice(None), *index[2:])))
    if node.target is F.pad and not node.kwargs and len(node.args) == 2:
        new = picked(graph, anchor, move.channels, width, ndim)
        return graph.call_function(F.pad, (new, tuple(node.args[1][: 2 * len(move.shape)])))
    return None


def _unite(graph: fx.Graph, node: fx.Node, module: fx.GraphModule, values: dict) -> None:
    """Write index_add, with which pruned networks add signals of different channels, as a plain sum."""
    if node.target is not torch.index_add or len(node.args) != 4 or node.args[1] != 1 or node.kwargs:
        return
    base, _, index, delta = node.args
    places = operator.attrgetter(index.target)(module) if index.op == "get_attr" else None
    if places is None or len(places.unique()) != len(places):
        return
    channels = torch.full((values[base].shape[1],), -1)
    channels[places.cpu()] = torch.arange(len(places))
    with graph.inserting_before(node):
        wide = picked(graph, delta, channels, len(places), values[delta].ndim)
        new = graph.call_function(operator.add, (base, wide))
    values[wide] = values[base]
    _take_over(values, node, new)
    node.replace_all_uses_with(new)
