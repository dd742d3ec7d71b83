"""One table: which calls can be followed, and what each does to the channels of its input.

A row of `TABLE` names modules, functions and methods, and the operation that they are, perhaps under a condition. An
operation says what it does to channels forwards (what its outputs get from its inputs), backwards (what its inputs are
read for), and how it is rebuilt when some channels are gone. To support another call, add a row; to support another
kind of operation, add a class.

Values of channels, such as "can be non-zero", are tensors of shape (channels,), or None for "always present".
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

# `x += y` changes x for every reader of x; torch.fx by itself records x = x + y.
IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


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

    def rebuild(self, wiring, node, parts):
        """From the live inputs."""
        return wiring.linear(node, *parts[0]), torch.arange(wiring.network.features(node))


class Opaque(Mixing):
    """Reads no gated feature, such as a softmax behind the last linear layer, or a constant: stays as it is."""

    def sources(self, node):
        return node.all_input_nodes

    def backwards(self, network, node, wanted):
        """Each output may read all inputs."""
        return [wanted.amax().expand(network.features(n)) for n in self.sources(node)]

    def rebuild(self, wiring, node, parts):
        """As it is."""
        return wiring.copied(node), torch.arange(wiring.network.features(node))


class Repeating(Operation):
    """Makes one or more channels from each: a column for each pixel, or a depthwise convolution's features."""

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
    """A batch norm."""

    def rebuild(self, wiring, node, parts):
        """On the live channels."""
        twin, have = wiring.narrowed(node, *parts[0])
        return wiring.norm(node, twin, have), have


class Add(Operation):
    """The sum of two signals, channel by channel."""

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


class Output(Operation):
    """What the network returns."""

    def rebuild(self, wiring, node, parts):
        """The end of the graph."""
        wiring.graph.output(parts[0][0])


INPUT, OUTPUT, OPAQUE = Input("input"), Output("output"), Opaque("opaque")
CONV, DEPTHWISE, NORM, LINEAR = Convolution("conv"), Depthwise("depthwise"), Norm("norm"), Linear("linear")
CHANNELWISE, ADD, CAT, FLATTEN = Operation("channelwise"), Add("add"), Concatenation("cat"), Flatten("flatten")
OPERATIONS = {
    operation.name: operation
    for operation in (INPUT, CONV, DEPTHWISE, NORM, LINEAR, CHANNELWISE, ADD, CAT, FLATTEN, OUTPUT, OPAQUE)
}


def _named(name: str) -> Operation:
    return OPERATIONS[name]


# Conditions: of a node, and of the module that it calls, if it calls one.


def _always(node: fx.Node, module: nn.Module | None) -> bool:
    return True


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each feature of a convolution reads a single channel."""
    return 1 < conv.groups == conv.in_channels


def _is_depthwise(node: fx.Node, module: nn.Module) -> bool:
    return is_depthwise(module)


def _spans_zero(node: fx.Node, module: nn.Module) -> bool:
    return module.min_val <= 0 <= module.max_val


def _one_slope(node: fx.Node, module: nn.Module) -> bool:
    """Whether all channels share one slope."""
    return module.num_parameters == 1


def _returns_no_index(node: fx.Node, module: nn.Module | None) -> bool:
    return not getattr(module, "return_indices", False)


def _from_channels_on(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return (module.start_dim, module.end_dim) == (1, -1)
    return (*node.args[1:], *node.kwargs.values()) == (1,)


def _two_signals(node: fx.Node, module: None) -> bool:
    return all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs


def _along_channels(node: fx.Node, module: None) -> bool:
    listed = isinstance((node.args or [node.kwargs["tensors"]])[0], list | tuple)  # not what x.chunk() returns
    return (node.args[1:] or (node.kwargs.get("dim"),))[0] == 1 and listed


def _over_pixels(node: fx.Node, module: None) -> bool:
    """Whether a mean is taken over height and width."""
    dims = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("dim", "axis"))][:1]
    return bool(dims) and isinstance(dims[0], list | tuple) and sorted(d % 4 for d in dims[0]) == [2, 3]


def _by_a_number(node: fx.Node, module: None) -> bool:
    """Whether a product or quotient is that of a signal and a number, as in ``0.5 * x`` or ``x / 2``."""
    first, second = node.args
    number = second if isinstance(first, fx.Node) else first
    if not isinstance(number, int | float) or not math.isfinite(number):
        return False
    divides = IN_PLACE_OPERATORS.get(node.target, node.target) is operator.truediv
    return not divides or (number is second and number != 0)


@dataclass(frozen=True)
class Row:
    """Calls that are one operation.

    Attributes
    ----------
    operation : Operation
    calls : tuple
        Classes of modules (subclasses count, too), functions, and names of methods.
    when : callable
        The condition.
    """

    operation: Operation
    calls: tuple
    when: Callable[[fx.Node, nn.Module | None], bool] = _always


# The first row that matches applies. Channelwise operations act on each channel by itself and keep a zero one at zero.
TABLE = (
    Row(DEPTHWISE, (nn.Conv2d,), _is_depthwise),
    Row(CONV, (nn.Conv2d,)),
    Row(NORM, (nn.BatchNorm2d,)),
    Row(LINEAR, (nn.Linear,)),
    Row(FLATTEN, (nn.Flatten, torch.flatten, "flatten"), _from_channels_on),
    Row(ADD, (operator.add, torch.add, "add", "add_"), _two_signals),
    Row(CAT, (torch.cat,), _along_channels),
    Row(CHANNELWISE, (operator.mul, operator.truediv), _by_a_number),
    Row(CHANNELWISE, (torch.mean, "mean"), _over_pixels),
    Row(CHANNELWISE, (nn.Hardtanh,), _spans_zero),
    Row(CHANNELWISE, (nn.PReLU,), _one_slope),
    Row(CHANNELWISE, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _returns_no_index),
    Row(CHANNELWISE, (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)),
    Row(CHANNELWISE, (nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth, "contiguous")),
    Row(CHANNELWISE, (
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
        nn.Tanh, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink,
        F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign,
        F.softshrink, F.hardshrink, F.tanhshrink, torch.relu, torch.selu, torch.celu, torch.tanh,
        "relu", "relu_", "tanh",
    )),
)  # fmt: skip


def operation_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation | None:
    """The operation of a node, None if features cannot be followed through it."""
    if node.op in ("placeholder", "output"):
        return INPUT if node.op == "placeholder" else OUTPUT
    module = modules[node.target] if node.op == "call_module" else None

    def names(call) -> bool:
        if isinstance(call, type):
            return isinstance(module, call)
        if isinstance(call, str):
            return node.op == "call_method" and node.target == call
        return node.op == "call_function" and IN_PLACE_OPERATORS.get(node.target, node.target) is call

    fits = (row.operation for row in TABLE if any(map(names, row.calls)) and row.when(node, module))
    return next(fits, None)
