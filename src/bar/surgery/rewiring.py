"""One walk that wires a smaller network: `Wiring` holds what has been built, the operations say what comes next.

Which channels each signal still has is decided here; `bar.surgery.layers` makes the layers, plain or gated.
"""

import operator
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.network import KeepUnread, Network, stride_first
from bar.surgery.connectivity import mixed_add, order_of_features
from bar.surgery.layers import Gated, Plain


def rewire(
    network: Network, keep: dict[fx.Node, Tensor], layers: Plain | Gated, gates: dict[str, Tensor], union: Callable
) -> fx.GraphModule:
    """The network without the channels that are not kept, and with the gates in its weights.

    A gate scales what comes before it: the batch norm's weight and bias, or those of a convolution without one. Plain
    layers have the values of gates folded in. With gated ones, gates are inputs, ``(images, *z)`` with one z of shape
    (features,) for each convolution.

    Parameters
    ----------
    network : Network
    keep : dict of torch.fx.Node to bool Tensor of shape (channels,)
        Which channels of each node stay.
    layers : Plain or Gated
        Makes the layers.
    gates : dict of str to Tensor of shape (features,)
        Convolution -> the values of its gates, for plain layers; else empty.
    union : callable
        The presence of a sum, from those of both summands (`bar.Gate.union`).

    Returns
    -------
    torch.fx.GraphModule
    """
    wiring = Wiring(network, keep, layers, gates, union)
    for node in network.kinds:
        wiring.add(node)
    return wiring.finish()


class Wiring:
    """A smaller network in the making, and what operations need to build their part of it.

    Attributes
    ----------
    network : Network
        The whole one.
    graph : torch.fx.Graph
        The new one.
    held : dict
        Node -> its twin in the new graph, and the original channels that it holds, in their order there.
    order : dict
        Convolution's node -> the features that it keeps, in order.
    """

    def __init__(self, network, keep, layers, gates, union) -> None:
        self.network, self.keep, self.layers, self.union = network, keep, layers, union
        self.order = order_of_features(network, keep, network.spaces())
        self.graph = fx.Graph()
        self._tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.held: dict[fx.Node, tuple[fx.Node, Tensor]] = {}
        self._gates: dict = dict(gates)  # convolution -> its z: numbers, or what will be an input
        self._presence: dict = {}  # node -> how present its original channels are: numbers, or what will compute them
        self._learns: dict[fx.Node, bool] = {}  # whether anything that a node computes with is trained
        self._root: dict[str, nn.Module | Tensor] = {}
        self._convolutions: set[nn.Module] = set()  # those that are made here, and not the user's
        self._called = [node.target for node in network.kinds if node.op == "call_module"]
        self._taken = {name.split(".")[0] for name, _ in network.module.named_modules()}
        self._taken |= {node.target for node in network.kinds if node.op == "get_attr"}
        self._place = {node: i for i, node in enumerate(network.kinds)}

    def add(self, node: fx.Node) -> None:
        """Build a node's twin, if it has one."""
        sources = self.network.sources(node)
        own = self.network.submodule(node).parameters() if node.op == "call_module" else ()
        self._learns[node] = any([p.requires_grad for p in own]) or any(self._learns[n] for n in sources)
        self._presence[node] = self._present(node, sources)
        if node.op == "get_attr":
            self._constant(node)
        elif node.op == "placeholder":
            self._images(node)
        elif self.keep[node].any():
            operation, parts = self.network.operation(node), [self.held[n] for n in sources if n in self.held]
            twin = operation.rebuild(self, node, parts) if parts or operation.starved else None
            if twin is not None:
                self.held[node] = twin

    def _present(self, node: fx.Node, sources: list[fx.Node]):
        """How present each channel is: its gate sits behind the batch norm that reads it, where there is one."""
        kinds = self.network.kinds
        if kinds[node] == "conv":
            return None if self.network.normed(node) else self._gates[node.target]
        if kinds[node] == "norm" and kinds[sources[0]] == "conv" and self.network.normed(sources[0]):
            return self._gates[sources[0].target]
        there = [self._presence[n] for n in sources]
        found = self.network.passed(node, there, self.union)
        if isinstance(found, Tensor) and not any(isinstance(each, Tensor) for each in there):
            # of channels that are always there, and zeros that are padded to them: a constant
            weight = next(self.network.module.parameters())
            found = found.to(weight.device, weight.dtype)
            return fx.Proxy(self.index(found), self._tracer) if self.layers.takes_gates else found
        return found

    def _constant(self, node: fx.Node) -> None:
        owner = node.target.rpartition(".")[0]
        if not node.users and _within(owner, self._called) and not _within(owner, self._root):
            return  # with a layer or block that is removed, go the buffers that nothing reads
        self._root[node.target] = self.layers.copied(operator.attrgetter(node.target)(self.network.module))
        self.held[node] = self.graph.get_attr(node.target), torch.arange(self.network.features(node))

    def _images(self, node: fx.Node) -> None:
        self.held[node] = self.graph.placeholder(node.target), torch.arange(self.network.features(node))
        if len(self.held) < len(self.network.input_sizes):
            return  # gates follow the last input
        prefix = "z"
        while any(n.target.startswith(prefix) for n in self.held if n.op == "placeholder"):  # an input may be called z0
            prefix += "_"
        for i, name in enumerate(self.network.convs if self.layers.takes_gates else ()):
            self._gates[name] = fx.Proxy(self.graph.placeholder(f"{prefix}{i}"), self._tracer)

    # What operations build with; see `bar.network.operations`.

    def index(self, channels: Tensor) -> fx.Node:
        """Add channels to the graph, as a constant."""
        name = f"index_{sum(isinstance(value, Tensor) for value in self._root.values())}"
        while name in self._taken:
            name += "_"
        self._root[name] = channels
        return self.graph.get_attr(name)

    def select(self, twin: fx.Node, places: Tensor) -> fx.Node:
        """Some channels of a signal."""
        return self.graph.call_function(torch.index_select, (twin, 1, self.index(places)))

    def chosen(self, twin: fx.Node, places: Tensor, width: int) -> fx.Node:
        """The channels at some places of a signal of that width; no call, if they are all."""
        if torch.equal(places, torch.arange(width)):
            return twin
        if len(places) and torch.equal(places, torch.arange(len(places)) + places[0]):
            return self.graph.call_function(torch.narrow, (twin, 1, int(places[0]), len(places)))
        return self.select(twin, places)

    def taken(self, node: fx.Node, channels: Tensor) -> fx.Node:
        """Just these original channels of a signal, in this order, zeros where one is gone."""
        if node not in self.held:
            return self._zeros(node, len(channels))
        twin, have = self.held[node]
        place = torch.full((self.network.features(node),), len(have))
        place[have] = torch.arange(len(have))
        places, width = place[channels], len(have)
        if (places == width).any():
            spatial = [0, 0] * (len(self.network.shapes[node]) - 2)
            twin, width = self.graph.call_function(F.pad, (twin, (*spatial, 0, 1))), width + 1
        return self.chosen(twin, places, width)

    def full(self, node: fx.Node) -> fx.Node:
        """A signal with all its channels in their order, zeros where one is gone."""
        if node in self.network.fixed and node in self.held:
            return self.held[node][0]
        return self.taken(node, torch.arange(self.network.features(node)))

    def _zeros(self, node: fx.Node, width: int) -> fx.Node:
        """A signal of nothing but zeros, for as many images as there are."""
        images = next(iter(self.graph.find_nodes(op="placeholder")))
        batch, maps = self.network.shapes[node][0], self.network.maps(node)
        count = self.graph.call_method("size", (images, 0))
        if batch < 2:  # what is made of the weights alone
            count = batch
        elif maps > 1:
            count = self.graph.call_function(operator.mul, (count, maps))
        return self.graph.call_method("new_zeros", (images, (count, width, *self.network.shapes[node][2:])))

    def operand(self, node: fx.Node, axis: int | None, channels: Tensor) -> fx.Node:
        """What a sum or product reads of a signal or a parameter, which has its channels in that dimension."""
        if node not in self.network.fixed:
            return self.taken(node, channels if axis is not None else torch.zeros(1, dtype=torch.long))
        twin = self.held[node][0]
        if axis is None or torch.equal(channels, torch.arange(self.network.shapes[node][axis])):
            return twin
        return self._parameter(node, axis, channels)

    def _parameter(self, node: fx.Node, axis: int, channels: Tensor) -> fx.Node:
        """Some channels of a parameter, or of what no gate affects."""
        twin = self.held[node][0]
        if node.op == "get_attr" and len(node.users) == 1:
            part = self.layers.parameter(self._root[node.target], axis, channels)
            if part is not None:
                self._root[node.target] = part
                return twin
        return self.graph.call_function(torch.index_select, (twin, axis, self.index(channels)))

    def joint(self, node: fx.Node, twins: dict[fx.Node, fx.Node]) -> fx.Node:
        """A node that reads other twins; not in place."""
        new = self.graph.node_copy(node, twins.__getitem__)
        if new.op == "call_method":
            new.target = new.target.removesuffix("_")
        return new

    def filter(self, node: fx.Node, twin: fx.Node, channels: Tensor) -> fx.Node:
        """A node's convolution of each channel with constant weights, for some channels."""
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        options = dict(zip(names, node.args[1:], strict=False)) | node.kwargs | {"groups": len(channels)}
        whole = torch.equal(channels, torch.arange(self.network.features(node)))
        weight = self.held[node.args[1]][0] if whole else self._parameter(node.args[1], 0, channels)
        return self.graph.call_function(node.target, (twin, weight), {k: options[k] for k in names[2:] if k in options})

    def slopes(self, node: fx.Node, twin: fx.Node, channels: Tensor) -> fx.Node:
        """A node's activation on some channels."""
        return self._call(node.target, self.layers.slopes(self.network.submodule(node), channels), twin)

    def narrowed(self, node: fx.Node, twin: fx.Node, have: Tensor, times: int = 1) -> tuple[fx.Node, Tensor]:
        """Select what a node keeps of the channels that its input holds; `times`: how many it makes from each."""
        kept = self.keep[node][have * times]
        if kept.all():
            return twin, have
        chosen = kept.nonzero().flatten()
        return self.select(twin, chosen), have[chosen]

    def joined(self, twins: list[fx.Node]) -> fx.Node:
        """Signals concatenated along the channels."""
        return twins[0] if len(twins) == 1 else self.graph.call_function(torch.cat, (twins, 1))

    def sum(self, node: fx.Node) -> tuple[fx.Node, Tensor]:
        """The sum of what is left of a node's sources."""
        # What ran first is the base: its channels come first in `order`, too, so later sums need no gathering.
        sources = sorted(self.network.sources(node), key=self._place.__getitem__)
        parts = [self.held[n] for n in sources if n in self.held]
        return parts[0] if len(parts) == 1 else mixed_add(self.graph, self.index, *parts)

    def convolution(self, node: fx.Node, twin: fx.Node, outputs: Tensor, inputs: Tensor, part: str = "") -> fx.Node:
        """A node's convolution, or a part of that name, from the channels `inputs` to the features `outputs`."""
        scale = self._presence[node] if self.network.kinds[node] == "conv" or self.network.shifts(node) else None
        new = self.layers.convolution(self.network.submodule(node), outputs, inputs, scale)
        self._convolutions.add(getattr(new, "options", new))
        return self._call(node.target + part, new, twin, scale)

    def norm(self, node: fx.Node, twin: fx.Node, channels: Tensor) -> fx.Node:
        """A node's batch norm on some channels."""
        scale = self._presence[node]
        new = self.layers.norm(self.network.submodule(node), channels, scale, self._learns[node])
        # one that has nothing to learn may be called several times, and each time on other channels
        name = node.target if node.target not in self._root else f"{node.target}_of_{node.name}"
        return self._call(name, new, twin, scale)

    def linear(self, node: fx.Node, twin: fx.Node, inputs: Tensor) -> fx.Node:
        """A node's linear layer on some columns."""
        return self._call(node.target, self.layers.linear(self.network.submodule(node), inputs), twin)

    def unchanged(self, node: fx.Node, twin: fx.Node) -> fx.Node:
        """A node that does to fewer channels what it did to all; not in place, see `Plain.unchanged`."""
        if node.op == "call_module":
            return self._call(node.target, self.layers.unchanged(self.network.submodule(node)), twin)
        new = self.graph.node_copy(node, lambda _: twin)
        if "inplace" in new.kwargs:
            new.kwargs = {**new.kwargs, "inplace": False}
        if new.op == "call_method":
            new.target = new.target.removesuffix("_")
        return new

    def copied(self, node: fx.Node) -> fx.Node:
        """A copy of a node whose inputs have all their channels; not in place, since an input may be another's, too."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        changes = node.op != "call_module" and name.endswith("_") and not name.endswith("__")

        def read(source: fx.Node) -> fx.Node:
            twin = self.full(source)
            return self.graph.call_method("clone", (twin,)) if changes else twin

        if node.op == "call_module":
            old = self.network.submodule(node)
            make = self.layers.unchanged if getattr(old, "inplace", False) else self.layers.copied
            self._root[node.target] = make(old)
        new = self.graph.node_copy(node, read)
        if "inplace" in new.kwargs:
            new.kwargs = {**new.kwargs, "inplace": False}
        return new

    def _call(self, name: str, new: nn.Module, twin: fx.Node, scale=None) -> fx.Node:
        self._root[name] = new
        gates = (scale.node,) if self.layers.takes_gates and scale is not None else ()
        return self.graph.call_module(name, (twin, *gates))

    def finish(self) -> fx.GraphModule:
        """The smaller network."""
        for node, (twin, _) in self.held.items():
            if node.op == "get_attr" and node.users and not twin.users:  # with what has read it, a parameter goes
                self.graph.erase_node(twin)
        new = fx.GraphModule(self._root, self.graph, class_name=self.layers.name)
        for node in new.graph.find_nodes(op="get_attr"):  # torch.fx makes all buffers persistent
            owner, _, name = node.target.rpartition(".")
            old = submodule_of(self.network.module, owner) if owner else self.network.module
            if old is not None and name in old._non_persistent_buffers_set:
                new.get_submodule(owner)._non_persistent_buffers_set.add(name)
            if not node.users:
                new._tracer_cls = new.graph._tracer_cls = KeepUnread
        return stride_first(new, self._convolutions)


def submodule_of(root: nn.Module, name: str) -> nn.Module | None:
    """The module of a name, None if there is none; without `torch.nn.Module.get_submodule`'s checks."""
    for part in name.split("."):
        root = root._modules.get(part)
        if root is None:
            return None
    return root


def _within(owner: str, names: Iterable[str]) -> bool:
    """Whether one of the names is that of a module, or of a part of it; of the network itself none is."""
    return bool(owner) and any(f"{name}.".startswith(f"{owner}.") for name in names)
