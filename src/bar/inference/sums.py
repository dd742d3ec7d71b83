"""What the sums of a graph are made of: which channels of which signals each of them adds."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from bar.inference.plain import is_ordinary

SUMS = (operator.add, torch.add, torch.cat, torch.index_add)
PARTS = (torch.narrow, torch.index_select)


def channels_and_sums(graph: fx.Graph) -> tuple[dict[fx.Node, list], dict[fx.Node, tuple]]:
    """Follow channels through a graph.

    Returns
    -------
    signals : dict
        Node -> its channels, each a tuple of (node that brought it, channel of that).
    sums : dict
        Node -> the signal that it adds to, and the others, with the channels that theirs are added to.
    """
    signals: dict[fx.Node, list] = {}
    sums: dict[fx.Node, tuple[fx.Node, dict[fx.Node, list[int]]]] = {}
    for node in graph.nodes:
        if not calls(node, SUMS + PARTS):
            width = _width(node, signals)
            if width is not None:
                signals[node] = [((node, c),) for c in range(width)]
            continue
        channels = _rearranged(node, signals)
        if channels is None:
            continue
        signals[node] = channels
        if calls(node, SUMS) and not all(calls(user, SUMS + PARTS) for user in node.users):
            found = _summands(channels, signals)
            signals[node] = [((node, c),) for c in range(len(channels))]
            if found:
                sums[node] = found
    return signals, sums


def module_of(node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, if it computes what its class in torch does."""
    module = node.graph.owning_module.get_submodule(node.target) if node.op == "call_module" else None
    return module if module is not None and is_ordinary(module) else None


def calls(node: fx.Node, functions: tuple) -> bool:
    return node.op == "call_function" and node.target in functions and not node.kwargs


def is_relu(node: fx.Node) -> bool:
    module = module_of(node)
    if module is not None:
        return isinstance(module, nn.ReLU) and not module.inplace
    if len(node.args) != 1 or any(node.kwargs.values()):  # torch.fx writes F.relu(x) as F.relu(x, inplace=False)
        return False
    function = node.op == "call_function" and node.target in (F.relu, torch.relu)
    return function or (node.op, node.target) == ("call_method", "relu")


def _width(node: fx.Node, signals: dict[fx.Node, list]) -> int | None:
    """How many channels a node returns, if it is one of those that bring or keep channels."""
    module = module_of(node)
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    kept = is_relu(node) or isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
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
        same = len(parts) == 2 and len(parts[0]) == len(parts[1])  # a single channel is added to each
        return [a + b for a, b in zip(*parts, strict=True)] if same else None
    return _along_channels(node, parts) if tuple(dim) == (1,) else None


def _along_channels(node: fx.Node, parts: list[list]) -> list:
    """The channels of a cat, narrow, index_select or index_add in dimension 1."""
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
