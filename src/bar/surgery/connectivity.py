"""Mixed connectivity: sums of signals that hold different channels (figures 4 and 5, supplement 2)."""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from bar.network import Network


def same_width(network: Network, keep: dict[fx.Node, Tensor], spaces: dict[fx.Node, fx.Node]) -> dict[fx.Node, Tensor]:
    """Widen what is live, so that all nodes of a signal have the same channels, except those that have none at all."""
    union: dict[fx.Node, Tensor] = {}
    for node, k in keep.items():
        union[spaces[node]] = union.get(spaces[node], torch.zeros_like(k)) | k
    return {node: union[spaces[node]] if k.any() else k for node, k in keep.items()}


def order_of_features(
    network: Network, keep: dict[fx.Node, Tensor], spaces: dict[fx.Node, fx.Node]
) -> dict[fx.Node, Tensor]:
    """For each convolution, the features it keeps, in an order that makes sums cheap.

    Channels of a residual signal are ordered by the first convolution that writes them, so that what a block reads is a
    prefix of the signal. Within that order every writer in turn makes the channels that it refines adjacent, as in a
    Gray code: they go to the end of one stretch and to the start of the next, and to the end of the last, where the
    writer's new channels follow. Two writers then always meet in one slice; each further one at most doubles that.
    """
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in network.convs.values():
        writers.setdefault(spaces[node], []).append(node)
    order = {}
    for nodes in writers.values():
        unborn = torch.ones_like(keep[nodes[0]])
        stretches: list[Tensor] = []
        for n in nodes:
            split: list[Tensor] = []
            for i, channels in enumerate(reversed(stretches)):
                parts = [channels[keep[n][channels]], channels[~keep[n][channels]]]  # from the end of the signal
                split += parts if i % 2 == 0 else parts[::-1]
            stretches = [s for s in [*reversed(split), (keep[n] & unborn).nonzero().flatten()] if len(s)]
            unborn = unborn & ~keep[n]
        rank = torch.cat([*stretches, torch.empty(0, dtype=torch.long)])
        for n in nodes:
            order[n] = rank[keep[n][rank]]
    return order


_SLICES = 3  # a sum of up to this many slices is done slice by slice; with more, index_add copies less


def slices(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Group pairs (place, entry) into slices (first place, first entry, length), in which both count up by one.

    Place is the position of a channel in the sum, entry that of the channel which is added there.

    Examples
    --------
    >>> slices([(4, 0), (5, 1), (6, 2), (1, 3), (2, 4)])
    [(4, 0, 3), (1, 3, 2)]
    """
    found: list[tuple[int, int, int]] = []
    for place, entry in pairs:
        if found and (place, entry) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((place, entry, 1))
    return found


def mixed_add(graph: fx.Graph, index, first: tuple[fx.Node, Tensor], second: tuple[fx.Node, Tensor]):
    """Add two signals that hold different channels: figure 4's cases, and their mixture (supp. 2).

    Where both have a channel the values are summed; the rest of either is passed on. `index` makes a constant of the
    graph. Returns the node of the sum and the original channels that it holds: the first signal's in their order, then
    the new ones of the second.
    """
    (base, have), (delta, refined) = first, second
    if torch.equal(have, refined):
        return graph.call_function(operator.add, (base, delta)), have
    where = {c: i for i, c in enumerate(have.tolist())}
    common = [i for i, c in enumerate(refined.tolist()) if c in where]
    new = [i for i, c in enumerate(refined.tolist()) if c not in where]

    if common + new != list(range(len(refined))):
        delta = graph.call_function(torch.index_select, (delta, 1, index(torch.tensor(common + new))))
    target = [where[c] for c in refined[common].tolist()]
    pieces = _refined(graph, index, (base, len(have)), (delta, len(refined)), target)
    if new:
        pieces.append(_take(graph, delta, len(common), len(refined), len(refined)))
    out = pieces[0] if len(pieces) == 1 else graph.call_function(torch.cat, (pieces, 1))
    return out, torch.cat([have, refined[new]])


def _refined(graph: fx.Graph, index, whole: tuple, part: tuple, target: list[int]) -> list[fx.Node]:
    """The pieces of a signal, with the first channels of another added to those in `target`; both with their widths."""
    (base, width), (delta, entries) = whole, part
    stretches = slices((place, entry) for entry, place in enumerate(target))
    if target != sorted(target) or len(stretches) > _SLICES:
        shared = _take(graph, delta, 0, len(target), entries)
        return [graph.call_function(torch.index_add, (base, 1, index(torch.tensor(target)), shared))]
    pieces, end = [], 0
    for place, entry, length in stretches:
        pieces += [_take(graph, base, end, place, width)] if place > end else []
        end = place + length
        shared = _take(graph, delta, entry, entry + length, entries)
        pieces.append(graph.call_function(operator.add, (_take(graph, base, place, end, width), shared)))
    return pieces + ([_take(graph, base, end, width, width)] if end < width else [])


def _take(graph: fx.Graph, node: fx.Node, start: int, stop: int, width: int) -> fx.Node:
    """The channels from start to stop of a signal of that width."""
    if (start, stop) == (0, width):
        return node
    return graph.call_function(torch.narrow, (node, 1, start, stop - start))
