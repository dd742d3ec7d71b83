"""What tracing found, and the one way to walk over it: forwards, or backwards, with a rule.

`forwards` and `backwards` visit the nodes once, in order; `follow` and `ask` do so for values of channels, which the
table of operations propagates through every node that does not make new channels. Liveness, presence, the spine and the
spaces of shared channels are rules of a few lines.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, fx, nn

from bar.errors import BarError
from bar.network.counting import times
from bar.network.kinds import Operation
from bar.network.operations import OPERATIONS


@dataclass
class _Place:
    """The position of a node, which stands for it in a pickled graph."""

    i: int


@dataclass
class Network:
    """What tracing found in a CNN; made by `trace`.

    Attributes
    ----------
    module : torch.fx.GraphModule
        The traced network. Its submodules are the user's own, weights shared.
    input_size : tuple of int
        (channels, height, width) of one image.
    kinds : dict
        Graph node -> the name of what it does to channels (`bar.network.operations`), such as conv, norm, channelwise
        or add; "whole" for what is left whole; "opaque" for anything that reads no gated feature, such as a softmax
        behind the last linear layer.
    fixed : set
        The nodes whose channels are always present: those before the first convolutions, and those after linear layers.
    shapes : dict
        Graph node -> shape of what it returns, for a batch of two images.
    convs : dict
        Name of a convolution -> its node, in order of execution; depthwise ones are not among them, since their
        features live or die with their input.
    dropouts : dict
        Name of an ``nn.Dropout`` that stands for a call of ``F.dropout`` -> the user's module that made the call, whose
        mode it has.
    auxiliary : tuple of str
        Modules that run in training mode only, and that the graph leaves out: auxiliary heads.
    whole : dict
        What is left whole, by its place -> why.
    input_sizes, input_types : tuple
        Of each input: the shape of one image, and its type, None for that of the weights.
    inside : dict
        Node that is called as it is, or convolves with constants -> volume and FLOPs of the convolutions in it, for one
        image, if all its channels are there.
    baked : dict
        Name of a buffer that the graph holds as a constant -> its values.
    """

    module: fx.GraphModule
    input_size: tuple[int, int, int]
    kinds: dict[fx.Node, str]
    fixed: set[fx.Node]
    shapes: dict[fx.Node, torch.Size]
    dropouts: dict[str, str] = field(default_factory=dict)
    auxiliary: tuple[str, ...] = ()
    whole: dict[str, str] = field(default_factory=dict)
    input_sizes: tuple[tuple[int, ...], ...] = ()
    input_types: tuple = ()
    inside: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)
    baked: dict[str, Tensor] = field(default_factory=dict)
    convs: dict[str, fx.Node] = field(init=False)

    def __getstate__(self) -> dict:
        """Nodes by their positions: pickled with the links between them, a deep network exceeds the recursion limit."""
        place = {node: i for i, node in enumerate(self.kinds)}

        def named(target):  # functions such as F.max_pool2d can be found by their name only
            return name if getattr(F, name := getattr(target, "__name__", ""), None) is target else target

        nodes = [
            (n.name, n.op, named(n.target), *fx.node.map_arg((n.args, n.kwargs), lambda n: _Place(place[n])))
            for n in place
        ]
        return vars(self) | {
            "kinds": [(nodes[i], kind, self.shapes[node]) for i, (node, kind) in enumerate(self.kinds.items())],
            "fixed": [place[node] for node in self.fixed],
            "inside": [(place[node], work) for node, work in self.inside.items()], "shapes": None, "convs": None,
        }  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        graph, nodes = fx.Graph(), []
        for (name, op, target, args, kwargs), _, _ in state["kinds"]:
            args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: nodes[a.i] if isinstance(a, _Place) else a)
            target = getattr(F, target) if op == "call_function" and isinstance(target, str) else target
            nodes.append(graph.create_node(op, target, args, kwargs, name))
        self.module.graph = graph
        self.kinds = {node: kind for node, (_, kind, _) in zip(nodes, state["kinds"], strict=True)}
        self.shapes = {node: shape for node, (_, _, shape) in zip(nodes, state["kinds"], strict=True)}
        self.fixed = {nodes[i] for i in state["fixed"]}
        self.inside = {nodes[i]: work for i, work in state["inside"]}
        self.__post_init__()

    def __post_init__(self) -> None:
        self.convs = {n.target: n for n, kind in self.kinds.items() if kind == "conv"}

    def in_order(self, inputs: tuple, named: dict) -> list:
        """Inputs that are given by position and by the names of forward's parameters; refused if there are others."""
        names = [node.target for node in self.module.graph.find_nodes(op="placeholder")]
        if len(inputs) > len(names) or named.keys() != set(names[len(inputs) :]):
            given = ", ".join([*map(str, range(len(inputs))), *named]) or "nothing"
            raise BarError(f"the network takes {', '.join(names)}, one batch for each, and {given} is given")
        return [*inputs, *(named[name] for name in names[len(inputs) :])]

    def example_inputs(self) -> list[Tensor]:
        """An image for each input, on the meta device."""
        sizes = zip(self.input_sizes, self.input_types, strict=True)
        return [torch.empty(1, *size, dtype=dtype, device="meta") for size, dtype in sizes]

    def operation(self, node: fx.Node) -> Operation:
        """What a node does to channels."""
        return OPERATIONS[self.kinds[node]]

    def submodule(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.module.get_submodule(node.target)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose signals a node reads, in order; a node that adds a signal to itself names it twice."""
        return self.operation(node).sources(node)

    def features(self, node: fx.Node) -> int:
        """Number of channels (of columns, after flatten) that a node returns."""
        return self.shapes[node][1] if len(self.shapes[node]) > 1 else 1

    def area(self, node: fx.Node) -> int:
        """A_l of eq. 4: pixels of the maps of one feature that a node returns for one image.

        There are several where a network makes one batch of them, such as frames of a film or pairs of images.
        """
        return self.shapes[node][2:].numel() * self.maps(node)

    def maps(self, node: fx.Node) -> int:
        """How many maps of a feature a node returns for one image."""
        return times(len(self.shapes[node]) and self.shapes[node][0], 2)

    def groups(self, node: fx.Node) -> int:
        """Number of groups of a convolution: features of a group read the input channels of that group only."""
        return self.submodule(node).groups if self.kinds[node] == "conv" else 1

    def normed(self, node: fx.Node) -> bool:
        """Whether a batch norm, and nothing else, reads a convolution: its gate then sits after that batch norm."""
        return len(node.users) == 1 and self.kinds[next(iter(node.users))] == "norm"

    def shifts(self, node: fx.Node) -> bool:
        """Whether a node may turn a zero channel into something else, so that a dead one needs masking after it."""
        kind = self.kinds[node]
        return kind == "norm" or (kind == "depthwise" and self.submodule(node).bias is not None)

    def passed(self, node: fx.Node, inputs: list, join: Callable):
        """Values of a node's channels, from those of its inputs, as the table of operations propagates them.

        Parameters
        ----------
        node : torch.fx.Node
        inputs : list of (Tensor or Proxy of shape (..., channels)) or None
            For each source.
        join : callable
            ``join(p, q)``: the value of the sum of two channels.

        Returns
        -------
        Tensor or Proxy of shape (..., channels), or None
            None where the channels are always present, or new.
        """
        return self.operation(node).forwards(self, node, inputs, join)

    def flow(self, alive: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """Which channels of each node something non-zero can reach; whether anything reads them does not matter.

        Parameters
        ----------
        alive : mapping of str to bool Tensor of shape (features,)
            As for `live`.

        Returns
        -------
        dict of torch.fx.Node to bool Tensor of shape (channels,)
            On the CPU.
        """

        def reached(node: fx.Node, inputs: list[Tensor], passed: Tensor | None) -> Tensor:
            kind = self.kinds[node]
            if kind == "conv":
                fed = inputs[0].view(self.groups(node), -1).any(1)
                here = fed.repeat_interleave(self.features(node) // len(fed))
                own = alive.get(node.target)
                return here if own is None else here & own.detach().cpu()
            if passed is None:  # always present, or new: of what nothing reaches, only an opaque node is gone
                gone = kind in ("opaque", "output") and not all(p.any() for p in inputs)
                return torch.full((self.features(node),), not gone)
            return passed.bool()

        return follow(self, reached, torch.logical_or)

    def live(self, alive: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """Which channels of each node matter, when only some features of the convolutions are alive.

        A channel is live if something non-zero can reach it and something live reads it: a convolution none of whose
        inputs is live produces nothing, whatever its own gates say, and a feature that nobody reads is dead too
        (section 4.1; this is how whole blocks disappear).

        Parameters
        ----------
        alive : mapping of str to bool Tensor of shape (features,)
            For each convolution, which of its features are alive by themselves; a convolution that is not named is
            wholly alive.

        Returns
        -------
        dict of torch.fx.Node to bool Tensor of shape (channels,)
            On the CPU.
        """

        flow = self.flow(alive)

        def read(node: fx.Node, wanted: Tensor | None) -> Tensor:
            if self.kinds[node] == "output":
                return torch.ones_like(flow[node])
            here = torch.zeros_like(flow[node]) if wanted is None else wanted & flow[node]
            if self.kinds[node] == "depthwise":  # the features made from one channel are there together
                times = self.operation(node).times(self, node)
                here = here.view(-1, times).any(1).repeat_interleave(times)
            return here

        return ask(self, read)

    def spine(self) -> list[str]:
        """The convolutions of which one feature must survive, or no signal passes (section 4.1, "fatal pruning").

        They lie on the path from input to output that crosses the fewest convolutions, grouped ones only where there is
        no other, and on such a path to each linear layer, which without any input would lose its bias, too. In a
        residual network these are the stem and the 1x1 convolution of every pooling block, as in the paper; in a plain
        chain, all of them.

        Returns
        -------
        list of str
            Names of convolutions, in order of execution.
        """

        def shortest(node: fx.Node, paths: list[tuple]) -> tuple[int, int, tuple]:
            """The numbers of grouped and of all convolutions on the best path so far, and the path."""
            if self.kinds[node] in ("product", "output"):  # which need all of them, but for scales that are never zero
                signals = zip(self.sources(node), paths, strict=True)
                scales = ("offset",) if self.kinds[node] == "product" else ()
                paths = [p for n, p in signals if self.kinds[n] not in scales]
                path = tuple(dict.fromkeys(n for p in paths for n in p[2]))
                return sum(self.groups(n) > 1 for n in path), len(path), path
            grouped, length, path = min(paths, key=lambda p: p[:2], default=(0, 0, ()))
            if self.kinds[node] == "conv":
                return grouped + (self.groups(node) > 1), length + 1, (*path, node)
            return grouped, length, path

        best = forwards(self, shortest)
        heads = {n for node in self.heads() for n in best[node][2]}
        return [name for name, node in self.convs.items() if node in heads]

    def heads(self) -> list[fx.Node]:
        """What must be reached, since it makes something of nothing: linear layers, what is left whole, the output.

        Not those that only scale something: where the network has nothing to scale, they do not matter.
        """

        def ends(node: fx.Node, asked: list[bool]) -> tuple[bool, list[bool]]:
            here = self.kinds[node] == "output" or any(asked)
            return here, [here and self.kinds[node] != "product" for _ in self.sources(node)]

        reach = backwards(self, ends)
        return [n for n, kind in self.kinds.items() if kind in ("linear", "whole", "output") and reach[n]]

    def reached(self, live: Mapping[fx.Node, Tensor]) -> bool:
        """Whether a signal gets to everything that needs one, given what is live: no pruning is fatal then."""
        for head in self.heads():  # a linear layer without input would lose its bias, too
            read = self.kinds[head] == "output" or bool(live[head].any())
            if read and self.kinds[head] != "whole" and not all(live[n].any() for n in self.sources(head)):
                return False
        return True

    def fed(self, alive: Mapping[str, Tensor]) -> bool:
        """Whether a signal gets to everything that needs one, given which features are alive, and whatever else is."""
        flow = self.flow(alive)
        needing = [head for head in self.heads() if self.kinds[head] != "whole"]
        return all(flow[n].any() for head in needing for n in self.sources(head))

    def crosses(self) -> bool:
        """Whether a signal may get lost though some feature of every convolution is alive.

        A slice may leave out those that are, the group of a convolution may read others, and a product is zero where
        its signals have none in common.
        """
        if any(self.groups(self.convs[name]) > 1 for name in self.spine()):
            return True
        signals: dict[fx.Node, bool] = {}  # whether channels of a node may be dead
        for node, kind in self.kinds.items():
            inputs = [torch.ones(self.features(n)) if signals[n] else None for n in self.sources(node)]
            passed = self.passed(node, inputs, torch.maximum)
            signals[node] = kind == "conv" or passed is not None
            if kind == "pick" or (kind == "product" and sum(p is not None for p in inputs) > 1):
                return True
        return False

    def spaces(self) -> dict[fx.Node, fx.Node]:
        """Which signals hold the same channels, because sums join them: for each node, one that stands for them all."""
        joined = DisjointSet(self.kinds)
        for node, kind in self.kinds.items():
            sources = self.sources(node)
            if kind in ("norm", "channelwise", "add", "depthwise", "offset", "merge", "product", "filter", "slopes"):
                for source in sources:
                    # a parameter, or the scale of all channels, is no signal of the same channels
                    if self.features(source) == self.features(node) and (kind == "add" or source not in self.fixed):
                        joined.merge(node, source)
        return {node: joined[node] for node in self.kinds}

    def kept(self) -> dict[fx.Node, str | None]:
        """Which nodes' features are needed whole, and what for, None if they are not.

        That is so if they are the network's own outputs, or flow into something that is left whole, with no convolution
        or linear layer in between; and if they are read only through something that makes a number of a zero, too, such
        as the sigmoid of a scale: then a feature without a gate goes with the channel that it scales.
        """

        def asks(node: fx.Node, asked: list[str | None]) -> tuple[str | None, list[str | None]]:
            kind, sources = self.kinds[node], self.sources(node)
            here = next((a for a in ("output", "whole") if a in asked), None)
            if here is None and asked and all(a == "offset" for a in asked):
                here = "offset"
            if kind in ("conv", "linear", "opaque"):
                return here, [None] * len(sources)
            ask = kind if kind in ("output", "whole") else here
            return here, ["offset" if kind == "offset" and ask is None else ask] * len(sources)

        return backwards(self, asks)


def forwards(network: Network, rule: Callable) -> dict:
    """Walk from the images to the output.

    Parameters
    ----------
    network : Network
    rule : callable
        ``rule(node, inputs)`` returns a node's value, from those of its sources.

    Returns
    -------
    dict
        Node -> its value.
    """
    values: dict = {}
    for node in network.kinds:
        values[node] = rule(node, [values[n] for n in network.sources(node)])
    return values


def backwards(network: Network, rule: Callable) -> dict:
    """Walk from the output back to the images.

    Parameters
    ----------
    network : Network
    rule : callable
        ``rule(node, asked)``, `asked` being what each reader of the node asks of it, returns the node's value and what
        it asks of each of its sources.

    Returns
    -------
    dict
        Node -> its value.
    """
    asked: dict[fx.Node, list] = {node: [] for node in network.kinds}
    values: dict = {}
    for node in reversed(network.kinds):
        values[node], parts = rule(node, asked[node])
        for source, part in zip(network.sources(node), parts, strict=True):
            asked[source].append(part)
    return values


def follow(network: Network, rule: Callable, join: Callable) -> dict:
    """Follow values of channels from the images to the output.

    Parameters
    ----------
    network : Network
    rule : callable
        ``rule(node, inputs, passed)`` returns the values of a node's channels. `passed` is what the table makes of
        those of its inputs: None where its channels are new, or always present.
    join : callable
        ``join(p, q)``: the value of the sum of two channels.

    Returns
    -------
    dict
        Node -> values of its channels.
    """
    return forwards(network, lambda node, inputs: rule(node, inputs, network.passed(node, inputs, join)))


def ask(network: Network, rule: Callable) -> dict[fx.Node, Tensor]:
    """Follow values of channels from the output to the images; of several readers, the largest counts.

    Parameters
    ----------
    network : Network
    rule : callable
        ``rule(node, wanted)`` returns the values of a node's channels; `wanted` is the largest that its readers ask
        for, None if nothing reads it.

    Returns
    -------
    dict of torch.fx.Node to Tensor of shape (channels,)
    """

    def walked(node: fx.Node, asked: list[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
        here = rule(node, torch.stack(asked).amax(0) if asked else None)
        return here, network.operation(node).backwards(network, node, here)

    return backwards(network, walked)
