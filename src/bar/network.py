"""Read a CNN: its convolutions, their areas, and which feature feeds which (sections 3.3 and 4).

Everything here follows from tracing a plain ``nn.Module`` with `torch.fx`; no network is known by name. One small table
says what each operation does to the *channels* of a signal, and two passes over the graph follow features along it:
forwards, to see which can be non-zero, and backwards, to see which are read.
"""

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.errors import BarError

# Operations that act on each channel by itself and keep a zero channel at zero.
CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Hardtanh, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
CHANNELWISE_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh,
    torch.relu, torch.tanh, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_CHANNELWISE_METHODS = {"relu", "relu_", "tanh", "contiguous"}
_ADD_FUNCTIONS = {operator.add, operator.iadd, torch.add}
_ADD_METHODS = {"add", "add_"}


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """What a node does to the channels of its input; the only place where operations are told apart."""
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.op == "call_module":
        module = modules[node.target]
        if isinstance(module, nn.Conv2d):
            return "depthwise" if 1 < module.groups == module.in_channels else "conv"
        if isinstance(module, nn.BatchNorm2d):
            return "norm"
        if isinstance(module, nn.Linear):
            return "linear"
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return "flatten"
        zero = not isinstance(module, nn.Hardtanh) or module.min_val <= 0 <= module.max_val
        if isinstance(module, CHANNELWISE_MODULES) and zero:
            return "channelwise"
    elif node.op == "call_function":
        if node.target in _ADD_FUNCTIONS and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs:
            return "add"
        if node.target is torch.cat and (node.args[1:] or (node.kwargs.get("dim"),))[0] == 1:
            return "cat"
        if node.target is torch.flatten and (*node.args[1:], *node.kwargs.values()) == (1,):
            return "flatten"
        if node.target is torch.mean and _over_pixels(node):
            return "channelwise"
        if node.target in CHANNELWISE_FUNCTIONS:
            return "channelwise"
    elif node.op == "call_method":
        if node.target in _ADD_METHODS and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs:
            return "add"
        if node.target == "flatten" and (*node.args[1:], *node.kwargs.values()) == (1,):
            return "flatten"
        if node.target == "mean" and _over_pixels(node):
            return "channelwise"
        if node.target in _CHANNELWISE_METHODS:
            return "channelwise"
    return None


def _over_pixels(node: fx.Node) -> bool:
    """Whether a mean is taken over height and width."""
    dims = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("dim", "axis"))][:1]
    return bool(dims) and isinstance(dims[0], list | tuple) and sorted(d % 4 for d in dims[0]) == [2, 3]


def _kinds(module: fx.GraphModule) -> tuple[dict[fx.Node, str], set[fx.Node]]:
    """The kind of every node, and the nodes that no gate can change, where what is unknown is fine, and "opaque"."""
    modules = dict(module.named_modules())
    kinds: dict[fx.Node, str] = {}
    fixed: set[fx.Node] = set()  # nodes whose channels are always there: the images, and what linear layers put out
    for node in module.graph.nodes:
        kind = _kind(node, modules)
        untouched = all(n in fixed for n in node.all_input_nodes)
        if kind is None and not untouched:
            what = modules[node.target] if node.op == "call_module" else node.target
            raise BarError(
                f"cannot follow features through {node.name!r} ({what}): it is not known to keep a zero feature at "
                "zero. Write it with convolution, batch norm, linear, pooling, add, cat, flatten(1) and activations "
                "with f(0) = 0"
            )
        if not untouched and any(n.op == "get_attr" for n in node.all_input_nodes):
            raise BarError(f"{node.name!r} combines features with a parameter of its own, which pruning cannot follow")
        kinds[node] = "opaque" if node.op == "get_attr" else kind or "opaque"
        if kind in ("input", "linear") or (untouched and kind not in ("conv", "depthwise")):
            fixed.add(node)
    return kinds, fixed


class _Shapes(fx.Interpreter):
    """Runs a graph on the meta device, noting the shape that each node returns."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, node: fx.Node) -> Tensor:
        try:
            out = super().run_node(node)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BarError(f"the network cannot take this input: {node.name!r} fails with: {reason}") from error
        self.shapes[node] = getattr(out, "shape", torch.Size())
        return out


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model without its numbers, to compute shapes for free.

    Parameters
    ----------
    model : nn.Module
        Any model; it is not changed.

    Returns
    -------
    nn.Module
        The same modules in eval mode, with all parameters and buffers on the ``meta`` device.

    Examples
    --------
    >>> on_meta(nn.Linear(3, 5)).weight.device
    device(type='meta')
    """
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


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
        Graph node -> what it does to channels: input, conv, depthwise, norm, linear, channelwise, add, cat, flatten,
        output; "opaque" for anything that reads no gated feature, such as a softmax behind the last linear layer.
    fixed : set
        The nodes whose channels are always there: what precedes the first convolutions, and what follows linear layers.
    shapes : dict
        Graph node -> shape of what it returns, for one image (batch of 1).
    convs : dict
        Name of a convolution -> its node, in order of execution; depthwise ones are not among them, since their
        features live or die with their input.
    """

    module: fx.GraphModule
    input_size: tuple[int, int, int]
    kinds: dict[fx.Node, str]
    fixed: set[fx.Node]
    shapes: dict[fx.Node, torch.Size]
    convs: dict[str, fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.convs = {n.target: n for n, kind in self.kinds.items() if kind == "conv"}

    def submodule(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.module.get_submodule(node.target)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose signals a node reads, in order; a node that adds a signal to itself names it twice."""
        if self.kinds[node] == "cat":
            return list(node.args[0] if node.args else node.kwargs["tensors"])
        return [a for a in node.args if isinstance(a, fx.Node)] or node.all_input_nodes

    def features(self, node: fx.Node) -> int:
        """Number of channels (of columns, after flatten) that a node returns."""
        return self.shapes[node][1] if len(self.shapes[node]) > 1 else 1

    def area(self, node: fx.Node) -> int:
        """A_l of eq. 4: pixels of one feature map that a node returns."""
        return self.shapes[node][2:].numel()

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

    def presence(self, node: fx.Node, inputs: list):
        """How present each channel of a node is, given how present those of its inputs are.

        The rule for a sum is 1 - (1 - p)(1 - q): for probabilities, the chance that one of two independent features is
        there; for zeros and ones, "or". The arithmetic is the same on tensors and on `torch.fx` proxies, so gating,
        expected cost and liveness share it.

        Parameters
        ----------
        node : torch.fx.Node
            Any node but a convolution or linear layer, which make new features.
        inputs : list of (Tensor or Proxy of shape (..., channels)) or None
            Presence of each input's channels in [0, 1]; None stands for "always there".

        Returns
        -------
        Tensor or Proxy or None
            Presence of the node's channels.
        """
        kind = self.kinds[node]
        if kind == "add":
            p, q = inputs
            return None if p is None or q is None else p + q - p * q
        if all(p is None for p in inputs):
            return None
        if kind == "cat":
            some = next(p for p in inputs if p is not None)
            widths = [self.features(n) for n in self.sources(node)]
            always = torch.ones_like(some[..., :1])
            return torch.cat(
                [always.repeat_interleave(w, -1) if p is None else p for p, w in zip(inputs, widths, strict=True)], -1
            )
        (p,) = inputs
        if kind == "flatten":
            return p.repeat_interleave(self.features(node) // self.features(node.args[0]), -1)
        if kind == "depthwise" and (multiplier := self.features(node) // self.features(node.args[0])) > 1:
            return p.repeat_interleave(multiplier, -1)
        return p

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
        flow: dict[fx.Node, Tensor] = {}
        for node, kind in self.kinds.items():
            inputs = [flow[n] for n in self.sources(node)]
            if kind == "input":
                flow[node] = torch.ones(self.features(node))
            elif kind in ("conv", "linear"):
                own = alive.get(node.target) if kind == "conv" else None
                own = torch.ones(self.features(node)) if own is None else own.detach().cpu().float()
                fed = inputs[0].view(self.groups(node), -1).any(1)
                flow[node] = own * fed.repeat_interleave(len(own) // len(fed))
            elif kind == "output":
                flow[node] = inputs[0]
            elif kind == "opaque":
                flow[node] = torch.ones(self.features(node)) * all(p.any() for p in inputs)
            else:
                flow[node] = self.presence(node, inputs)

        read = {node: torch.zeros_like(p, dtype=torch.bool) for node, p in flow.items()}
        for node, kind in reversed(self.kinds.items()):
            if kind == "output":
                read[node] |= True
            here = read[node] & flow[node].bool()
            for position, source in enumerate(self.sources(node)):
                if kind in ("conv", "linear"):
                    reads = here.view(self.groups(node), -1).any(1)
                    wanted = reads.repeat_interleave(self.features(source) // len(reads))
                elif kind == "opaque":
                    wanted = here.any().expand_as(read[source])
                elif kind == "cat":
                    widths = [self.features(n) for n in self.sources(node)]
                    wanted = here.split(widths)[position]
                elif kind in ("flatten", "depthwise"):
                    wanted = here.view(self.features(source), -1).any(1)
                else:
                    wanted = here
                read[source] |= wanted
        return {node: read[node] & flow[node].bool() for node in self.kinds}

    def spine(self) -> list[str]:
        """The convolutions of which one feature must survive, or no signal passes (section 4.1, "fatal pruning").

        They lie on the path from input to output that crosses the fewest convolutions, grouped ones only where there is
        no other; where the outputs of several linear layers meet, on the path to each. In a residual network these are
        the stem and the 1x1 convolution of every pooling block, as in the paper; in a plain chain, all of them.

        Returns
        -------
        list of str
            Names of convolutions, in order of execution.
        """
        best: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node, kind in self.kinds.items():
            paths = [best[n] for n in self.sources(node)]
            if node in self.fixed and len(paths) > 1:
                best[node] = tuple(n for n in self.kinds if any(n in p for p in paths))
                continue
            shortest = min(paths, key=lambda p: (sum(self.groups(n) > 1 for n in p), len(p)), default=())
            best[node] = (*shortest, node) if kind == "conv" else shortest
        return [node.target for node in best[next(reversed(self.kinds))]]


def trace(model: nn.Module, input_size: Iterable[int]) -> Network:
    """Read a CNN with `torch.fx`.

    Parameters
    ----------
    model : nn.Module
        A plain network of one image batch in, one tensor out. It is not changed; the result shares its modules.
    input_size : iterable of int
        (channels, height, width) of one image.

    Returns
    -------
    Network

    Raises
    ------
    BarError
        When the model cannot be traced, the input does not fit, or an operation is one that features cannot be followed
        through. The message names the node.

    Examples
    --------
    >>> net = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)), (3, 6, 6))
    >>> {name: (net.features(node), net.area(node)) for name, node in net.convs.items()}
    {'0': (8, 16)}
    """
    size = tuple(int(s) for s in input_size)
    if len(size) != 3 or min(size) < 1:
        raise BarError(f"input size must be three positive numbers (channels, height, width), not {size}")
    modes = {m: m.training for m in model.modules()}
    model.eval()  # tracing freezes `self.training`; only modules such as nn.Dropout see later changes of it
    try:
        module = fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
    except Exception as error:
        raise BarError(f"cannot trace {type(model).__name__} with torch.fx: {error}") from error
    finally:
        for m, training in modes.items():
            m.training = training
    module.training = modes[model]
    _drop_functional_dropout(module)
    _name_in_place_results(module)
    _flatten_views(module)
    module.graph.eliminate_dead_code()
    module.recompile()

    kinds, fixed = _kinds(module)
    if sum(kind == "input" for kind in kinds.values()) != 1:
        raise BarError(f"{type(model).__name__} must take one tensor, the images")
    called = [n.target for n, kind in kinds.items() if kind in ("conv", "depthwise", "norm", "linear")]
    for name in called:
        if called.count(name) > 1:
            raise BarError(f"{name!r} is called {called.count(name)} times: a shared layer cannot be pruned")

    if len(next(reversed(kinds)).all_input_nodes) != 1:
        raise BarError(f"{type(model).__name__} must return one tensor")
    shapes = _Shapes(on_meta(module), module.graph)
    dtype = next((p.dtype for p in module.parameters()), None)
    shapes.run(torch.empty(1, *size, device="meta", dtype=dtype))
    for node, kind in kinds.items():
        if kind == "add" and len({shapes.shapes[n] for n in node.all_input_nodes}) != 1:
            raise BarError(f"{node.name!r} adds signals of different shapes; broadcasting is not supported")
        if kind == "linear" and len(shapes.shapes[node]) != 2 and node.all_input_nodes[0] not in fixed:
            raise BarError(f"{node.target!r} is a linear layer on features that have not been flattened")
        if shapes.shapes[node][1:] != node.meta.get("columns", shapes.shapes[node][1:]):
            raise BarError(f"{node.name!r} reshapes images into each other; only flatten(1) can be followed")
    return Network(module, size, kinds, fixed, {n: shapes.shapes[n] for n in kinds})


class _Tracer(fx.Tracer):
    """As torch.fx traces, but a user's subclass of a layer is that layer, if it computes the same."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layers = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        same = any(isinstance(module, layer) and type(module).forward is layer.forward for layer in layers)
        return same or super().is_leaf_module(module, name)


def _drop_functional_dropout(module: fx.GraphModule) -> None:
    """Replace F.dropout, whose `training` flag tracing has frozen, by nn.Dropout, which follows train() and eval()."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in (F.dropout, F.dropout2d):
            p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            dropout = nn.Dropout(p) if node.target is F.dropout else nn.Dropout2d(p)
            module.add_submodule(node.name, dropout.train(module.training))
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.call_module(node.name, (node.args[0],)))
            module.graph.erase_node(node)


def _name_in_place_results(module: fx.GraphModule) -> None:
    """Let everything that reads a signal after it was changed in place read the result of that change.

    That is what in-place means; written out, the graph stays true when pruning makes the operation out-of-place.
    """
    modules = dict(module.named_modules())
    after = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        in_place = (
            (node.op == "call_module" and getattr(modules[node.target], "inplace", False))
            or (node.op == "call_function" and (node.kwargs.get("inplace") or node.target is operator.iadd))
            or (node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"))
        )
        if in_place and node.all_input_nodes:
            source = node.all_input_nodes[0]
            source.replace_all_uses_with(node, lambda user, node=node: after[user] > after[node])


def _flatten_views(module: fx.GraphModule) -> None:
    """Replace x.view(x.size(0), -1) and x.view(-1, width), which say in numbers what flatten(x, 1) says in words."""
    for node in list(module.graph.nodes):
        if node.op == "call_method" and node.target in ("view", "reshape") and len(node.args) == 3:
            source, rows, columns = node.args
            if (columns == -1 and _is_batch_size(rows)) or (rows == -1 and isinstance(columns, int)):
                with module.graph.inserting_before(node):
                    flat = module.graph.call_function(torch.flatten, (source, 1))
                if columns != -1:
                    flat.meta["columns"] = (columns,)  # to be compared when shapes are known
                node.replace_all_uses_with(flat)
                module.graph.erase_node(node)


def _is_batch_size(value) -> bool:
    """Whether a node is x.size(0), x.size()[0] or x.shape[0]."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return value.args[1:] == (0,)
    if value.op == "call_function" and value.target is operator.getitem and value.args[1] == 0:
        sizes = value.args[0]
        return (sizes.op, sizes.target) == ("call_method", "size") or (
            sizes.op == "call_function" and sizes.target is getattr and sizes.args[1] == "shape"
        )
    return False
