"""What kinds of operations do to channels: forwards, backwards, and when some channels are gone.

Values of channels, such as "can be non-zero", are tensors of shape (channels,), or None for "always present".
"""

from collections.abc import Callable

import torch
from torch import Tensor, fx


class Operation:
    """What a kind of operation does; this base class acts on each channel by itself and keeps a zero channel at zero.

    `network` is a `bar.network.Network`, `node` one of its nodes, `wiring` the `bar.surgery.rewiring.Wiring` that
    rebuilds it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple:  # there is one of each
        return _named, (self.name,)

    def __repr__(self) -> str:
        return self.name

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose signals a node reads, in order; a node that adds a signal to itself names it twice."""
        return [a for a in node.args if isinstance(a, fx.Node)] or node.all_input_nodes

    starved = False  # whether something comes out even where nothing goes in, so that zeros must go in

    def fits(self, shapes: dict, node: fx.Node, fixed: set[fx.Node]) -> bool:
        """Whether the shapes are those of signals that the operation knows, (images, channels, ...)."""
        sources = self.sources(node)
        out, *others = (shapes[n] for n in (node, *sources))
        return len(sources) == 1 and len(out) > 1 and all(len(s) > 1 and s[:2] == out[:2] for s in others)

    def forwards(self, network, node: fx.Node, inputs: list, join: Callable):
        """The values of a node's channels, from those of its inputs; ``join(p, q)`` is that of a sum of two."""
        return inputs[0]

    def backwards(self, network, node: fx.Node, wanted: Tensor) -> list[Tensor]:
        """For each source, the values of its channels: the largest of those of the node's channels that read them."""
        return [wanted for _ in self.sources(node)]

    def rebuild(self, wiring, node: fx.Node, parts: list):
        """Put a smaller one into the new graph: its node there, and the original channels that this one holds.

        `parts` are the same of each source that has any live channel; there is at least one.
        """
        twin, held = wiring.narrowed(node, *parts[0])
        return wiring.unchanged(node, twin), held


class Input(Operation):
    """The images, whose channels are always present."""

    def forwards(self, network, node, inputs, join):
        return None


class Mixing(Operation):
    """A layer that makes new channels, each from all inputs (of its group)."""

    def fits(self, shapes, node, fixed):
        """One signal in, of as many dimensions."""
        (source,) = self.sources(node)
        return len(shapes[source]) == len(shapes[node]) > 1

    def forwards(self, network, node, inputs, join):
        """None: its channels are new."""
        return None

    def backwards(self, network, node, wanted):
        """Each output of a group reads all inputs of the group."""
        groups = network.groups(node)
        read = wanted.view(groups, -1).amax(1)
        return [read.repeat_interleave(network.features(n) // groups) for n in self.sources(node)]


class Convolution(Mixing):
    """A convolution that may have a gate."""

    def rebuild(self, wiring, node, parts):
        """From the live inputs to the live features; a grouped one becomes one convolution for each group."""
        twin, have = parts[0]
        old, stays = wiring.network.submodule(node), wiring.order[node]
        if old.groups == 1:
            return wiring.convolution(node, twin, stays, have), stays
        # The groups may keep different numbers of features, which one grouped convolution cannot have.
        inputs, outputs = old.in_channels // old.groups, old.out_channels // old.groups
        made = []
        for g in (have // inputs).unique().tolist():
            mine = stays[stays // outputs == g]
            if len(mine):
                read = wiring.select(twin, (have // inputs == g).nonzero().flatten())
                of_group = have[have // inputs == g] - g * inputs
                made.append((wiring.convolution(node, read, mine, of_group, f".{g}"), mine))
        return wiring.joined([twin for twin, _ in made]), torch.cat([mine for _, mine in made])


class Linear(Mixing):
    """A linear layer, whose outputs are never pruned."""

    starved = True

    def fits(self, shapes, node, fixed):
        """On columns."""
        return len(shapes[node]) == 2

    def rebuild(self, wiring, node, parts):
        """From the live inputs; from zeros, if there are none."""
        if not parts:
            return wiring.copied(node), torch.arange(wiring.network.features(node))
        return wiring.linear(node, *parts[0]), torch.arange(wiring.network.features(node))


class Opaque(Mixing):
    """Reads no gated feature, such as a softmax behind the last linear layer, or a constant: stays as it is."""

    def sources(self, node):
        return node.all_input_nodes

    def fits(self, shapes, node, fixed):
        return True

    def backwards(self, network, node, wanted):
        """Each output may read all inputs."""
        largest = wanted.amax() if len(wanted) else wanted.new_zeros(())
        return [largest.expand(network.features(n)) for n in self.sources(node)]

    def rebuild(self, wiring, node, parts):
        """As it is."""
        return wiring.copied(node), torch.arange(wiring.network.features(node))


class Whole(Opaque):
    """Mixes channels, or is unknown: what flows into it keeps all channels, and it is called as it is."""

    starved = True


class Repeating(Operation):
    """Makes one or more channels from each: a column for each pixel, or a depthwise convolution's features."""

    def fits(self, shapes, node, fixed):
        """A whole number of channels for each."""
        (source,) = self.sources(node)
        return min(len(shapes[source]), len(shapes[node])) > 1 and shapes[node][1] % shapes[source][1] == 0

    def times(self, network, node: fx.Node) -> int:
        """How many channels are made from each."""
        return network.features(node) // network.features(self.sources(node)[0])

    def forwards(self, network, node, inputs, join):
        """The value of each channel, for all that are made from it."""
        (values,) = inputs
        times = self.times(network, node)
        return values if values is None or times == 1 else values.repeat_interleave(times, -1)

    def backwards(self, network, node, wanted):
        """For each channel, the largest value of those made from it."""
        return [wanted.view(network.features(self.sources(node)[0]), -1).amax(1)]

    def copies(self, network, node: fx.Node, channels: Tensor) -> Tensor:
        """The channels that are made from these."""
        times = self.times(network, node)
        return (channels[:, None] * times + torch.arange(times)).flatten()


class Flatten(Repeating):
    """Each channel becomes as many columns as it has pixels."""

    def rebuild(self, wiring, node, parts):
        """As it is."""
        twin, have = parts[0]
        return wiring.unchanged(node, twin), self.copies(wiring.network, node, have)


class Depthwise(Repeating):
    """A convolution whose features each read one channel, and live or die with it: it has no gates."""

    def rebuild(self, wiring, node, parts):
        """On the live channels."""
        twin, have = wiring.narrowed(node, *parts[0], self.times(wiring.network, node))
        stays = self.copies(wiring.network, node, have)
        return wiring.convolution(node, twin, stays, have), stays


class Norm(Operation):
    """A batch norm, or another norm of each channel by itself."""

    def rebuild(self, wiring, node, parts):
        """On the live channels."""
        twin, have = wiring.narrowed(node, *parts[0])
        return wiring.norm(node, twin, have), have


class Add(Operation):
    """The sum of two signals, channel by channel."""

    def fits(self, shapes, node, fixed):
        """Of the same shape."""
        return len(shapes[node]) > 1 and {shapes[n] for n in self.sources(node)} == {shapes[node]}

    def forwards(self, network, node, inputs, join):
        """A channel that is always present in one of them is always present in the sum."""
        p, q = inputs
        return None if p is None or q is None else join(p, q)

    def rebuild(self, wiring, node, parts):
        """Where both have a channel, the values are summed; the rest of either is passed on (figure 4)."""
        return wiring.sum(node)


class Concatenation(Operation):
    """Signals concatenated along the channels."""

    def sources(self, node):
        return list(node.args[0] if node.args else node.kwargs["tensors"])

    def fits(self, shapes, node, fixed):
        """Along the second dimension; nor is one of them empty, as before the first turn of a loop."""
        if any(len(shapes[n]) != len(shapes[node]) for n in self.sources(node) if isinstance(n, fx.Node)):
            return False
        dim = (*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("dim", "axis")), 0)[0]
        return dim % len(shapes[node]) == 1 and all(isinstance(n, fx.Node) for n in self.sources(node))

    def forwards(self, network, node, inputs, join):
        """Concatenated likewise."""
        some = next((p for p in inputs if p is not None), None)
        if some is None:
            return None
        always, widths = torch.ones_like(some[..., :1]), self.widths(network, node)
        return torch.cat(
            [always.repeat_interleave(w, -1) if p is None else p for p, w in zip(inputs, widths, strict=True)], -1
        )

    def backwards(self, network, node, wanted):
        """For each source, its part."""
        return list(wanted.split(self.widths(network, node)))

    def widths(self, network, node: fx.Node) -> list[int]:
        """How many channels each source has."""
        return [network.features(n) for n in self.sources(node)]

    def rebuild(self, wiring, node, parts):
        """What is left of the signals, concatenated."""
        starts = torch.tensor([0, *self.widths(wiring.network, node)]).cumsum(0).tolist()
        starts = [start for n, start in zip(self.sources(node), starts, strict=False) if n in wiring.held]
        channels = torch.cat([have + start for (_, have), start in zip(parts, starts, strict=True)])
        return wiring.joined([twin for twin, _ in parts]), channels


class Output(Opaque):
    """What the network returns: one tensor, or tuples, lists and dicts of them."""

    def rebuild(self, wiring, node, parts):
        """The end of the graph."""
        wiring.graph.output(fx.node.map_arg(node.args[0], wiring.full))


def _named(name: str) -> Operation:
    from bar.network.operations import named  # which imports this module

    return named(name)
