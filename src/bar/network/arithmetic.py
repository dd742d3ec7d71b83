"""Operations that join signals, move channels, or give each channel something of its own; see `bar.network.kinds`."""

import functools
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from bar.network.kinds import Operation, Repeating


class Offset(Operation):
    """Acts on each channel by itself, but makes something else of zero, such as a sigmoid: then always present."""

    starved = True

    def forwards(self, network, node, inputs, join):
        """None: whatever goes in, something comes out."""
        return None

    def rebuild(self, wiring, node, parts):
        """On all channels that are read, zeros where one is missing."""
        (source,) = self.sources(node)
        channels = wiring.keep[node].nonzero().flatten()
        return wiring.unchanged(node, wiring.taken(source, channels)), channels


class Joint(Operation):
    """Joins signals number by number, perhaps of one channel or one pixel, which counts for all."""

    def sources(self, node):
        return [a for a in node.args if isinstance(a, fx.Node)]

    def fits(self, shapes, node, fixed):
        """Each signal that a gate affects has the channels of the result, or one, in the same place."""
        shape = shapes[node]
        signals = [n for n in self.sources(node) if n not in fixed]
        # what is broadcast over images would be another signal for each number of them
        right = all(
            len(shapes[n]) == len(shape) and shapes[n][0] == shape[0] and shapes[n][1] in (1, shape[1]) for n in signals
        )
        return right and len(shape) > 1

    def axis(self, network, node: fx.Node, source: fx.Node) -> int | None:
        """Where a source has the channels of the result; None if it has one for all of them."""
        shape, its = network.shapes[node], network.shapes[source]
        axis = 1 - (len(shape) - len(its))
        return axis if axis >= 0 and its[axis] == shape[1] else None

    def each(self, network, node: fx.Node, inputs: list) -> list:
        """The values of the result's channels in each of the sources; None where they are always present."""
        found = []
        for source, values in zip(self.sources(node), inputs, strict=True):
            if source in network.fixed or values is None:
                found.append(None)
            elif self.axis(network, node, source) is None:
                found.append(values.repeat_interleave(network.features(node), -1))
            else:
                found.append(values)
        return found

    def backwards(self, network, node, wanted):
        """Each channel reads the same channel of all, or the only one."""
        return [
            wanted if self.axis(network, node, n) == 1 and n not in network.fixed
            else wanted.amax().expand(network.features(n))
            for n in self.sources(node)
        ]  # fmt: skip

    def rebuild(self, wiring, node, parts):
        """On all channels that are live, zeros where one of the signals misses one."""
        channels = self.channels(wiring, node)
        twins = {n: wiring.operand(n, self.axis(wiring.network, node, n), channels) for n in self.sources(node)}
        return wiring.joint(node, twins), channels

    def channels(self, wiring, node: fx.Node) -> Tensor:
        """The channels of the result: in the order of the first signal that has them."""
        keep = wiring.keep[node]
        for n in self.sources(node):
            if n not in wiring.network.fixed and n in wiring.held and self.axis(wiring.network, node, n) == 1:
                have = wiring.held[n][1]
                rest = keep.clone()
                rest[have] = False
                return torch.cat([have[keep[have]], rest.nonzero().flatten()])
        return keep.nonzero().flatten()


class Merge(Joint):
    """Zero where all signals are, such as a difference."""

    def forwards(self, network, node, inputs, join):
        """A channel that is always present in one of them is always present in the result."""
        found = self.each(network, node, inputs)
        return None if any(p is None for p in found) else functools.reduce(join, found)


class Product(Joint):
    """Zero where one of the signals is."""

    def forwards(self, network, node, inputs, join):
        """Present where all of them are."""
        found = [p for p in self.each(network, node, inputs) if p is not None]
        if len(found) == 2 and found[0] is found[1]:
            return found[0]
        return functools.reduce(operator.mul, found) if found else None


class Pick(Operation):
    """Some of the channels, in another order, or some more, of zeros."""

    def sources(self, node):
        return [node.args[0]]

    @staticmethod
    def written(node: fx.Node) -> bool:
        """Whether a node is one of the calls that `bar.network.movements.picked` makes."""
        if node.target is torch.narrow:
            return len(node.args) == 4 and node.args[1] == 1 and node.args[2] >= 0 and not node.kwargs
        if node.target is F.pad:
            sides = node.args[1] if len(node.args) == 2 and not node.kwargs else ()
            spatial = 2 * node.meta.get("ndim", 0) - 4
            return len(sides) == spatial + 2 and not any(sides[:spatial]) and min(sides) >= 0
        index = node.args[1]
        if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
            return False
        return isinstance(index[1], list) and min(map(_place, index[1]), default=-1) >= 0

    def channels(self, network, node: fx.Node) -> Tensor:
        """Which channel of the source each one is, -1 for zeros."""
        width = network.features(node.args[0])
        if node.target is torch.narrow:
            return torch.arange(node.args[2], node.args[2] + node.args[3])
        if node.target is F.pad:
            return F.pad(torch.arange(width), tuple(node.args[1][-2:]), value=-1)
        return torch.tensor(node.args[1][1])

    def fits(self, shapes, node, fixed):
        """Of a signal."""
        return len(shapes[node]) > 1 and len(shapes[node.args[0]]) == len(shapes[node])

    def forwards(self, network, node, inputs, join):
        """Those of the source."""
        (values,) = inputs
        channels = self.channels(network, node)
        if values is None:
            return None if (channels >= 0).all() else (channels >= 0).float()
        padded = F.pad(values, (0, 1)) if (channels < 0).any() else values
        return padded[..., channels.tolist()]

    def backwards(self, network, node, wanted):
        """For each channel of the source, the largest value of those that are it."""
        channels = self.channels(network, node)
        inside = channels >= 0
        read = torch.zeros(network.features(node.args[0]), dtype=wanted.dtype, device=wanted.device)
        places, values = channels[inside].to(wanted.device), wanted[inside]
        if wanted.dtype == torch.bool:
            return [read.byte().scatter_reduce(0, places, values.byte(), "amax").bool()]
        return [read.scatter_reduce(0, places, values, "amax")]

    def rebuild(self, wiring, node, parts):
        """What is left of them, in the order of the source: often no call at all."""
        twin, have = parts[0]
        place = torch.full((wiring.network.features(node.args[0]) + 1,), -1)
        place[have] = torch.arange(len(have))
        places = place[self.channels(wiring.network, node)]
        stays = (wiring.keep[node] & (places >= 0)).nonzero().flatten()
        stays = stays[places[stays].argsort(stable=True)]
        return wiring.chosen(twin, places[stays], len(have)), stays


def _place(channel: object) -> int:
    """A channel's place, -1 if it is counted from the end, or is no number."""
    return channel if type(channel) is int else -1


class Shuffle(Operation):
    """The pixels of several channels become those of one, as in super-resolution."""

    def fits(self, shapes, node, fixed):
        """Of a signal of images."""
        return len(shapes[node]) == 4

    def times(self, network, node: fx.Node) -> int:
        """How many channels make one."""
        return network.features(self.sources(node)[0]) // network.features(node)

    def sources(self, node):
        return node.all_input_nodes[:1]

    def forwards(self, network, node, inputs, join: Callable):
        """Present where one of them is."""
        (values,) = inputs
        times = self.times(network, node)
        return None if values is None else functools.reduce(join, [values[..., k::times] for k in range(times)])

    def backwards(self, network, node, wanted):
        """Each reads several."""
        return [wanted.repeat_interleave(self.times(network, node))]

    def rebuild(self, wiring, node, parts):
        """With all channels of those that are live, zeros for those that are missing."""
        channels = wiring.keep[node].nonzero().flatten()
        times = self.times(wiring.network, node)
        read = (channels[:, None] * times + torch.arange(times)).flatten()
        return wiring.unchanged(node, wiring.taken(self.sources(node)[0], read)), channels


class Unshuffle(Repeating):
    """The pixels of a channel become those of several."""

    def rebuild(self, wiring, node, parts):
        """As it is."""
        twin, have = parts[0]
        return wiring.unchanged(node, twin), self.copies(wiring.network, node, have)


class Filter(Operation):
    """A convolution of each channel with constant weights of its own, such as a blur."""

    def sources(self, node):
        return [node.args[0]]

    def fits(self, shapes, node, fixed):
        """As many filters as channels."""
        width = shapes[node][1]
        return shapes[node.args[0]][1] == width == shapes[node.args[1]][0] and shapes[node.args[1]][1] == 1

    def rebuild(self, wiring, node, parts):
        """With the weights of the live channels."""
        twin, have = wiring.narrowed(node, *parts[0])
        return wiring.filter(node, twin, have), have


class Slopes(Operation):
    """An activation with a parameter for each channel."""

    def rebuild(self, wiring, node, parts):
        """With those of the live channels."""
        twin, have = wiring.narrowed(node, *parts[0])
        return wiring.slopes(node, twin, have), have
