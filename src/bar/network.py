"""Read a CNN: its convolutions, their areas, and which feature feeds which (sections 3.3 and 4).

Everything here follows from tracing a plain ``nn.Module`` with `torch.fx`; no network is known by name. One small table
says what each operation does to the *channels* of a signal, and two passes over the graph follow features along it:
forwards, to see which can be non-zero, and backwards, to see which are read.
"""

import contextlib
import copy
import math
import operator
import random
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

from bar.errors import BarError

# Operations that act on each channel by itself and keep a zero channel at zero.
CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Identity,
    nn.Dropout, nn.Dropout2d, StochasticDepth,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
CHANNELWISE_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign,
    F.softshrink, F.hardshrink, F.tanhshrink, torch.relu, torch.selu, torch.celu, torch.tanh,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_CHANNELWISE_METHODS = {"relu", "relu_", "tanh", "contiguous"}
_ADD_FUNCTIONS = {operator.add, torch.add}
_ADD_METHODS = {"add", "add_"}
# `x += y` changes x for everybody who holds it; torch.fx by itself takes it for x = x + y.
_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


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
        alike = not isinstance(module, nn.PReLU) or module.num_parameters == 1  # for all channels the same
        if isinstance(module, CHANNELWISE_MODULES) and zero and alike and not getattr(module, "return_indices", False):
            return "channelwise"
    elif node.op == "call_function":
        target = _IN_PLACE_OPERATORS.get(node.target, node.target)
        if target in _ADD_FUNCTIONS and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs:
            return "add"
        if target in (operator.mul, operator.truediv) and _scales(node, target):
            return "channelwise"
        if node.target is torch.cat and (node.args[1:] or (node.kwargs.get("dim"),))[0] == 1:
            listed = isinstance((node.args or [node.kwargs["tensors"]])[0], list | tuple)  # not what x.chunk() returns
            return "cat" if listed else None
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


def _scales(node: fx.Node, target: Callable) -> bool:
    """Whether a product or quotient is that of a signal and a number, as in ``0.5 * x`` or ``x / 2``."""
    first, second = node.args
    number = second if isinstance(first, fx.Node) else first
    if not isinstance(number, int | float) or not math.isfinite(number):
        return False
    return target is operator.mul or (number is second and number != 0)


def _place(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of a node, what it does, and the path of the module that does it, for errors."""
    if node.op == "call_module":
        module = modules[node.target]
        return f"{node.name!r} ({type(module).__name__}({module.extra_repr()}), module {node.target!r})"
    path, _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
    what = getattr(node.target, "__name__", node.target)
    return f"{node.name!r} ({what}, in " + (f"module {path!r})" if path else "the network itself)")


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
        if kind == "channelwise" and len(node.all_input_nodes) > 1:  # such as a size that is computed from the images
            kind = None
        untouched = all(n in fixed for n in node.all_input_nodes)
        if kind is None and not untouched:
            raise BarError(
                f"cannot follow features through {_place(node, modules)}: it is not known to keep a zero feature at "
                "zero. Write it with convolution, batch norm, linear, pooling, add, cat, flatten(1) and activations "
                "with f(0) = 0"
            )
        if not untouched and any(n.op == "get_attr" for n in node.all_input_nodes):
            raise BarError(
                f"{_place(node, modules)} combines features with a parameter of its own, which pruning cannot follow"
            )
        kinds[node] = "opaque" if node.op == "get_attr" else kind or "opaque"
        if kind in ("input", "linear") or (untouched and kind not in ("conv", "depthwise")):
            fixed.add(node)
    return kinds, fixed


class _Shapes(fx.Interpreter):
    """Runs a graph on the meta device, noting the shape that each node returns."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False
        self.modules = dict(module.named_modules())
        self.shapes: dict[fx.Node, torch.Size] = {}
        # torch counts how often a tensor, or another that shares its memory, was changed in place
        self.versions: dict[fx.Node, int | None] = {}

    def run_node(self, node: fx.Node) -> Tensor:
        for source in node.all_input_nodes:
            if self.versions.get(source) != getattr(self.env[source], "_version", None):
                raise BarError(
                    f"{_place(node, self.modules)} reads {source.name!r} after an operation in place has changed its "
                    "memory under another name (Identity, Dropout, flatten and contiguous share it): use inplace=False"
                )
        try:
            out = super().run_node(node)
        except Exception as error:  # modules raise anything from RuntimeError to AssertionError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = _place(node, self.modules)
            raise BarError(f"the network cannot take this input: {where} fails with: {reason}") from error
        self.shapes[node] = getattr(out, "shape", torch.Size())
        self.versions[node] = getattr(out, "_version", None)
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
    plain = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    memo |= {id(t): t.detach().to("meta") for t in plain}  # such as what weight norm computes, or a user's constant
    return copy.deepcopy(model, memo).eval()


@dataclass
class _Place:
    """Stands for a node of a graph that is stored."""

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
        Graph node -> what it does to channels: input, conv, depthwise, norm, linear, channelwise, add, cat, flatten,
        output; "opaque" for anything that reads no gated feature, such as a softmax behind the last linear layer.
    fixed : set
        The nodes whose channels are always there: what precedes the first convolutions, and what follows linear layers.
    shapes : dict
        Graph node -> shape of what it returns, for one image (batch of 1).
    convs : dict
        Name of a convolution -> its node, in order of execution; depthwise ones are not among them, since their
        features live or die with their input.
    dropouts : dict
        Name of an ``nn.Dropout`` that stands for a call of ``F.dropout`` -> the user's module that made the call, whose
        mode it has.
    auxiliary : tuple of str
        Modules that run in training mode only, and that the graph leaves out: auxiliary heads.
    """

    module: fx.GraphModule
    input_size: tuple[int, int, int]
    kinds: dict[fx.Node, str]
    fixed: set[fx.Node]
    shapes: dict[fx.Node, torch.Size]
    dropouts: dict[str, str] = field(default_factory=dict)
    auxiliary: tuple[str, ...] = ()
    convs: dict[str, fx.Node] = field(init=False)

    def __getstate__(self) -> dict:
        """Nodes by their places: they know their neighbours, and a deep network is too deep to be pickled that way."""
        place = {node: i for i, node in enumerate(self.kinds)}

        def named(target):  # functions such as F.max_pool2d can be found by their name only
            return name if getattr(F, name := getattr(target, "__name__", ""), None) is target else target

        nodes = [
            (n.name, n.op, named(n.target), *fx.node.map_arg((n.args, n.kwargs), lambda n: _Place(place[n])))
            for n in place
        ]
        return vars(self) | {
            "kinds": [(nodes[i], kind, self.shapes[node]) for i, (node, kind) in enumerate(self.kinds.items())],
            "fixed": [place[node] for node in self.fixed], "shapes": None, "convs": None,
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
        self.__post_init__()

    def __post_init__(self) -> None:
        self.convs = {n.target: n for n, kind in self.kinds.items() if kind == "conv"}

    def submodule(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.module.get_submodule(node.target)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose signals a node reads, in order; a node that adds a signal to itself names it twice."""
        if self.kinds[node] == "cat":
            return list(node.args[0] if node.args else node.kwargs["tensors"])
        positional = [a for a in node.args if isinstance(a, fx.Node)]
        return positional if positional and self.kinds[node] != "opaque" else node.all_input_nodes

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
            return p.repeat_interleave(self.features(node) // self.features(self.sources(node)[0]), -1)
        if kind == "depthwise" and (multiplier := self.features(node) // self.features(self.sources(node)[0])) > 1:
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
        no other, and on such a path to each linear layer: without any input, that would lose its bias, too. In a
        residual network these are the stem and the 1x1 convolution of every pooling block, as in the paper; in a plain
        chain, all of them.

        Returns
        -------
        list of str
            Names of convolutions, in order of execution.
        """
        best: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node, kind in self.kinds.items():
            paths = [best[n] for n in self.sources(node)]
            shortest = min(paths, key=lambda p: (sum(self.groups(n) > 1 for n in p), len(p)), default=())
            best[node] = (*shortest, node) if kind == "conv" else shortest
        heads = [best[n] for n, kind in self.kinds.items() if kind in ("linear", "output")]
        return [name for name, node in self.convs.items() if any(node in path for path in heads)]


@torch.inference_mode(False)
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
    for name, layer in model.named_modules():
        check_hooks(name, layer)
    # Tracing freezes `self.training`; only modules such as nn.Dropout see later changes of it.
    module = _in_mode(model, training=False)
    for node in module.graph.nodes:
        if node.op == "call_module":
            check_layer(node.target, module.get_submodule(node.target))
    _check_ties(module)
    in_place = _name_in_place_results(module)
    dropped, auxiliary = _compare_modes(model, module)
    dropouts = _drop_functional_dropout(model, module, dropped)
    _flatten_views(module)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or node in in_place)

    kinds, fixed = _kinds(module)
    if sum(kind == "input" for kind in kinds.values()) != 1:
        raise BarError(f"{type(model).__name__} must take one tensor, the images")
    called = [n.target for n, kind in kinds.items() if kind in ("conv", "depthwise", "norm", "linear")]
    for name in called:
        if called.count(name) > 1:
            raise BarError(f"{name!r} is called {called.count(name)} times: a shared layer cannot be pruned")
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, parameter = node.target.rpartition(".")
        if owner in called:
            raise BarError(f"the network computes with the {parameter} of {owner!r} itself, which pruning changes")
    if "conv" not in kinds.values():
        raise BarError(f"{type(model).__name__} has no nn.Conv2d that reads several channels: nothing can be pruned")

    if not isinstance(next(reversed(kinds)).args[0], fx.Node):
        raise BarError(f"{type(model).__name__} must return one tensor, not a tuple, list or dict")
    shapes = _Shapes(on_meta(module), module.graph)
    dtype = next((p.dtype for p in module.parameters()), None)
    shapes.run(torch.empty(1, *size, device="meta", dtype=dtype))
    modules = dict(module.named_modules())
    for node, kind in kinds.items():
        if kind == "add" and len({shapes.shapes[n] for n in node.all_input_nodes}) != 1:
            raise BarError(f"{_place(node, modules)} adds signals of different shapes; broadcasting is not supported")
        if kind == "linear" and len(shapes.shapes[node]) != 2 and node.all_input_nodes[0] not in fixed:
            raise BarError(f"{node.target!r} is a linear layer on features that have not been flattened")
        if shapes.shapes[node][1:] != node.meta.get("columns", shapes.shapes[node][1:]):
            raise BarError(f"{_place(node, modules)} reshapes images into each other; only flatten(1) can be followed")
    for node in in_place:
        node.target = _IN_PLACE_OPERATORS.get(node.target, node.target)
    module.graph.eliminate_dead_code()
    for node in _keep_unread(model, module):
        kinds[node], shapes.shapes[node] = "opaque", node.meta["shape"]
        fixed.add(node)
    module.recompile()
    kinds = {node: kinds[node] for node in module.graph.nodes}
    if auxiliary:
        warnings.warn(
            f"{', '.join(map(repr, auxiliary))} of {type(model).__name__} run in training mode only, for outputs of "
            "their own: the gated and the pruned network have no such part, and return the main output alone",
            stacklevel=5,  # whoever called `bar.gate`
        )
    shapes = {n: shapes.shapes[n] for n in kinds}
    return Network(module, size, kinds, fixed & kinds.keys(), shapes, dropouts, auxiliary)


class KeepUnread(fx.Tracer):
    """Finds tensors that nothing reads again, too, when torch.fx unpickles a network: it traces the code for that."""

    proxy_buffer_attributes = True


def _keep_unread(model: nn.Module, module: fx.GraphModule) -> list[fx.Node]:
    """Let the graph name the buffers that no forward reads, such as a count of epochs; torch.fx drops what it does not.

    Those of modules that are called; what a layer needs itself comes with it.
    """
    called = {n.target for n in module.graph.find_nodes(op="call_module")}
    stacks = (n.meta.get("nn_module_stack", {}).values() for n in module.graph.nodes)
    there = {"", *(path for stack in stacks for path, _ in stack), *called}
    there |= {".".join(target.split(".")[:i]) for target in called for i in range(1, target.count(".") + 1)}
    named = {n.target for n in module.graph.find_nodes(op="get_attr")}
    found = []
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, last = name.rpartition(".")
        part = _followed(model.get_submodule(owner))
        if owner not in there or name in named or (owner in called and (not part or last in STATISTICS)):
            continue
        if owner not in called:
            here = module
            for piece in owner.split(".") if owner else ():
                if piece not in here._modules:
                    here.add_module(piece, nn.Module())
                here = here._modules[piece]
            here.register_buffer(last, buffer, last not in model.get_submodule(owner)._non_persistent_buffers_set)
        with module.graph.inserting_before(next(iter(module.graph.find_nodes(op="output")))):
            found.append(module.graph.get_attr(name))
        found[-1].meta["shape"] = buffer.shape
    if found:
        module._tracer_cls = KeepUnread
    return found


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # the buffers that a smaller batch norm has


def _followed(module: nn.Module) -> bool:
    """Whether pruning makes another layer in place of this one."""
    return isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)


@contextlib.contextmanager
def undisturbed(cuda: bool = False) -> Iterator[None]:
    """Leave the global generators as they were, whatever is drawn meanwhile; `cuda`: also where none is in use yet."""
    devices = range(torch.cuda.device_count()) if cuda or torch.cuda.is_initialized() else ()
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002


class _Draws(TorchDispatchMode):
    """Counts the random tensors that this thread draws; others may go on drawing."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))

    def state(self) -> tuple:
        """Changes whenever something is drawn that a user's forward may draw."""
        numbers = np.random.get_state()  # noqa: NPY002
        return self.count, random.getstate(), numbers[1].tobytes(), numbers[2:]


_TRACING = threading.RLock()  # while torch.fx traces, it replaces methods of nn.Module, for all threads


class _OneThread(fx.Tracer):
    """As torch.fx traces, but other threads may run modules meanwhile."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val, parameter_proxy_cache: dict):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """As ``torch.fx.symbolic_trace``, in several threads at once."""
    with _TRACING:
        return fx.GraphModule(model, _OneThread().trace(model), type(model).__name__)


class _Tracer(_OneThread):
    """And a user's subclass of a layer is that layer, if it computes the same; and modules that draw are noted."""

    draws: _Draws | None = None
    drawn: str | None = None  # the path of the first one

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if self.draws is None or threading.get_ident() != self._thread:
            return super().call_module(m, forward, args, kwargs)
        before = self.draws.state()
        out = super().call_module(m, forward, args, kwargs)
        if self.drawn is None and self.draws.state() != before:
            self.drawn = self.path_of_module(m)
        return out

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layers = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        layers += (StochasticDepth,)
        same = any(isinstance(module, layer) and type(module).forward is layer.forward for layer in layers)
        return same or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def place(self, error: Exception) -> str:
        """The module, and the line of the user's code, that an error while tracing comes from."""
        path, _ = next(reversed(self.module_stack.values()), ("", None))
        frames = [
            f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith(torch.__path__[0])
        ]
        line = [f"line {frames[-1].lineno} of {frames[-1].filename}"] if frames else []
        return "".join(f", {part}" for part in ([f"module {path!r}"] if path else []) + line)


class _Proxy(fx.Proxy):
    """As torch.fx records, but ``x += y`` is not taken for ``x = x + y``."""

    def _record(self, operation: Callable, other) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other):
        return self._record(operator.iadd, other)

    def __isub__(self, other):
        return self._record(operator.isub, other)

    def __imul__(self, other):
        return self._record(operator.imul, other)

    def __itruediv__(self, other):
        return self._record(operator.itruediv, other)


def _in_mode(model: nn.Module, training: bool) -> fx.GraphModule:
    """What torch.fx records of a model in one of its modes; the model is left as it was."""
    modes, own = {m: m.training for m in model.modules()}, set(vars(model))
    tracer = _Tracer()
    with _TRACING, undisturbed(), _Draws() as tracer.draws:
        try:
            model.train(training)
            before = tracer.draws.state()
            module = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
            if tracer.draws.state() != before:
                raise BarError(
                    f"{f'module {tracer.drawn!r}' if tracer.drawn else 'the network itself'} draws random numbers when "
                    f"it is called{' in training mode' if training else ''}, which would be the same in every step"
                )
        except BarError:
            raise
        except Exception as error:
            why = (
                " in training mode{}: {}. Only nn.Dropout, F.dropout and StochasticDepth are followed into that mode; "
                "what another module does there would be lost"
            )
            why = (why if training else "{}: {}").format(tracer.place(error), error)
            raise BarError(f"cannot trace {type(model).__name__} with torch.fx{why}") from error
        finally:
            for m, mode in modes.items():
                m.training = mode
            for constant in set(vars(model)) - own:  # torch.fx keeps here what is made in forward
                delattr(model, constant)
    module.training = modes[model]
    return module


def _compare_modes(model: nn.Module, module: fx.GraphModule) -> tuple[set[fx.Node], tuple[str, ...]]:
    """Refuse a model that computes something else in training mode, by name.

    Returns the calls of F.dropout in the graph of the eval mode that drop in training mode, and the names of modules
    that only training has, for outputs of their own.
    """
    twin = _twin(model)
    versions = {name: (id(buffer), buffer._version) for name, buffer in twin.named_buffers()}
    learning = _in_mode(twin, training=True)
    modules = dict(module.named_modules()) | dict(learning.named_modules())
    for name, buffer in twin.named_buffers():
        if versions.get(name) != (id(buffer), buffer._version):
            raise BarError(f"the buffer {name!r} is changed in training mode, in a way that pruning cannot follow")
    in_place = _name_in_place_results(learning)

    table: dict = {}
    quiet, loud = _numbers(module, table), _numbers(learning, table)
    known = set(quiet.values())
    changed = [n for n in in_place if loud[n] not in known and _origin(n).op == "get_attr"]  # an average, say
    (result,), (results,) = (list(m.graph.find_nodes(op="output")) for m in (module, learning))
    if result.all_input_nodes != [result.args[0]]:
        return set(), ()  # several outputs: refused anyway
    outputs = list(results.all_input_nodes)
    outputs += [s for n in outputs if isinstance(n.target, type) for s in n.all_input_nodes]  # of a named tuple
    if changed or quiet[result.args[0]] not in {loud[n] for n in outputs}:
        # What one mode has and the other has not; first what is called in one of them only, not what comes after it.
        there = set(loud.values())
        new = [n for n in loud if loud[n] not in known and all(loud[s] in known for s in n.all_input_nodes)]
        new += [n for n in quiet if quiet[n] not in there and all(quiet[s] in there for s in n.all_input_nodes)]
        both = {(n.op, n.target) for n in quiet} & {(n.op, n.target) for n in loud}
        new.sort(key=lambda n: (n.op, n.target) in both)
        where = next((_place(n, modules) for n in [*changed, *new]), "the network itself")
        raise BarError(
            f"{where} makes the network compute something else in training mode, which pruning cannot follow: only "
            "nn.Dropout, F.dropout and StochasticDepth may act while training and not afterwards"
        )
    called = [n.target for n in module.graph.find_nodes(op="call_module")]
    parts = [n.target.split(".") for n in learning.graph.find_nodes(op="call_module") if n.target not in called]
    prefixes = {".".join(target.split(".")[:i]) for target in called for i in range(target.count(".") + 2)}
    auxiliary = dict.fromkeys(
        next(p for i in range(1, len(part) + 1) if (p := ".".join(part[:i])) not in prefixes) for part in parts
    )
    drops = {loud[n] for n in loud if _is_dropout(n) and n.kwargs["training"]}
    return {n for n in quiet if _is_dropout(n) and quiet[n] in drops}, tuple(auxiliary)


def _twin(model: nn.Module) -> nn.Module:
    """A copy of a model, with its parameters, whose forward may change buffers and attributes; the model if need be."""
    memo: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    tensors = [*model.buffers(), *(t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor))]
    memo |= {id(t): t.detach().clone() for t in tensors if id(t) not in memo}
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # something in it cannot be copied, such as a lock
        return model


def _origin(node: fx.Node) -> fx.Node:
    """What a node has computed its result from, going back along first arguments."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (F.dropout, F.dropout2d)


def _numbers(module: fx.GraphModule, table: dict) -> dict[fx.Node, int]:
    """A number for what each node computes, the same for the same in all graphs that share a table."""
    numbers: dict[fx.Node, int] = {}
    calls: Counter = Counter()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        target, options = node.target, dict(kwargs)
        if _is_dropout(node):
            del options["training"]
        elif node.op == "get_attr":
            tensor = operator.attrgetter(target)(module)
            if not isinstance(tensor, nn.Parameter):  # the same constant may have another name
                target = (tensor.dtype, tuple(tensor.shape), None if tensor.is_meta else str(tensor.tolist()))
        key = (node.op, target, repr(args), repr(options))
        calls[key] += _is_dropout(node)  # two that look alike need not be followed alike
        numbers[node] = table.setdefault((*key, calls[key]), len(table))
    return numbers


def _check_ties(module: fx.GraphModule) -> None:
    """Refuse weights that two layers share: pruning one of them would change the other."""
    seen: dict = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(node.target)
            tensors = [(f"{node.target}.{name}", t) for name, t in (*layer.named_parameters(), *layer.named_buffers())]
        elif node.op == "get_attr":
            tensors = [(node.target, operator.attrgetter(node.target)(module))]
        else:
            continue
        for name, tensor in tensors:
            where = id(tensor) if tensor.is_meta or tensor.numel() == 0 else (tensor.device, tensor.data_ptr())
            if seen.setdefault(where, name) != name:
                raise BarError(
                    f"{seen[where]!r} and {name!r} are one tensor: tied weights cannot be pruned, since each layer "
                    "needs a smaller one of its own. Give one of the two a copy"
                )


def check_layer(name: str, module: nn.Module) -> None:
    """Refuse a layer that may compute something else than its class does: a smaller one would not."""
    if parametrize.is_parametrized(module):
        raise BarError(
            f"the {', '.join(module.parametrizations)} of {name!r} is parametrized: call "
            "torch.nn.utils.parametrize.remove_parametrizations on it first"
        )
    check_hooks(name, module)
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        for method in ("forward", "_conv_forward") if isinstance(module, layer) else ():
            if method in vars(module) or getattr(type(module), method, None) is not getattr(layer, method, None):
                kind = f"{type(module).__name__}, an nn.{layer.__name__}"
                raise BarError(f"{name!r} ({kind}) has a {method} of its own, which pruning does not know")


def check_hooks(name: str, module: nn.Module) -> None:
    """Refuse a module with a hook around its call: neither the gated nor the pruned network calls it."""
    hooks = {
        "forward hook": [*module._forward_pre_hooks.values(), *module._forward_hooks.values()],
        "backward hook": [*module._backward_pre_hooks.values(), *module._backward_hooks.values()],
    }
    for kind, found in hooks.items():
        if found:
            what = getattr(found[0], "__name__", type(found[0]).__name__)
            raise BarError(
                f"{repr(name) if name else 'the network itself'} has a {kind} ({what}), which may change what it "
                "computes: remove it first (with torch.nn.utils.remove_weight_norm, remove_spectral_norm or "
                "prune.remove, where these have put it there)"
            )


def _drop_functional_dropout(model: nn.Module, module: fx.GraphModule, dropped: set[fx.Node]) -> dict[str, str]:
    """Replace F.dropout, whose `training` flag tracing has frozen, by nn.Dropout, which follows train() and eval().

    Returns the new modules' names, and those of the user's modules that made the calls. What drops in neither mode
    goes.
    """
    owners = {}
    for node in list(module.graph.nodes):
        if _is_dropout(node):
            if node.kwargs["training"]:
                raise BarError(f"{_place(node, {})} drops features in eval mode, too: give it training=self.training")
            new = node.args[0]
            if node in dropped:
                name = node.name
                while hasattr(module, name):  # the user may have a module of this name
                    name += "_"
                owners[name], _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
                layer = nn.Dropout if node.target is F.dropout else nn.Dropout2d
                dropout = layer(node.kwargs["p"], node.kwargs["inplace"])
                module.add_submodule(name, dropout.train(model.get_submodule(owners[name]).training))
                with module.graph.inserting_before(node):
                    new = module.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    return owners


def _name_in_place_results(module: fx.GraphModule) -> set[fx.Node]:
    """Let everything that reads a signal after it was changed in place read the result of that change.

    That is what in-place means; written out, the graph stays true when pruning makes the operation out-of-place.
    """
    modules = dict(module.named_modules())
    after = {node: i for i, node in enumerate(module.graph.nodes)}
    found = set()
    for node in module.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        in_place = (
            (node.op == "call_module" and getattr(modules[node.target], "inplace", False))
            or (node.op == "call_function" and (node.kwargs.get("inplace") or node.target in _IN_PLACE_OPERATORS))
            or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
        )
        if in_place and node.all_input_nodes:
            found.add(node)
            source = node.all_input_nodes[0]
            source.replace_all_uses_with(node, lambda user, node=node: after[user] > after[node])
    return found


def _flatten_views(module: fx.GraphModule) -> None:
    """Replace x.view(x.size(0), -1) and x.view(-1, width), which say in numbers what flatten(x, 1) says in words."""
    for node in list(module.graph.nodes):
        if node.op == "call_method" and node.target in ("view", "reshape") and len(node.args) == 3:
            source, rows, columns = node.args
            if (columns == -1 and _is_batch_size(rows)) or (rows == -1 and isinstance(columns, int)):
                with module.graph.inserting_before(node):
                    flat = module.graph.call_function(torch.flatten, (source, 1))
                flat.meta.update(node.meta)
                if columns != -1:
                    flat.meta["columns"] = (columns,)  # to be compared when shapes are known
                node.replace_all_uses_with(flat)
                module.graph.erase_node(node)


def stride_first(module: fx.GraphModule) -> fx.GraphModule:
    """Let an average pool of one pixel skip the pixels that a strided 1x1 convolution would not read; in place.

    The numbers are the same. The weight gradient of such a convolution, in channels_last and with fewer inputs than a
    vector register holds, writes past its memory in oneDNN (uxlfoundation/oneDNN 6035): wrong gradients, or the end of
    the process. Pruning makes exactly such convolutions of the shortcuts of a residual network.

    Parameters
    ----------
    module : torch.fx.GraphModule
        Its strided 1x1 convolutions are changed too: their stride becomes 1.

    Returns
    -------
    torch.fx.GraphModule
        The same one.

    Examples
    --------
    >>> net = stride_first(fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 2, 1, stride=2))))
    >>> net.get_submodule("0").stride, net(torch.zeros(1, 4, 7, 7)).shape
    ((1, 1), torch.Size([1, 2, 4, 4]))
    """
    found = {}
    for node in module.graph.find_nodes(op="call_module"):
        called = module.get_submodule(node.target)
        conv = getattr(called, "options", called)  # of a part of a convolution, see `bar.surgery`
        if isinstance(conv, nn.Conv2d) and is_pointwise(conv) and conv.stride != (1, 1):
            found[node] = conv, conv.stride
    for node, (conv, stride) in found.items():
        with module.graph.inserting_before(node):
            pooled = module.graph.call_function(F.avg_pool2d, (node.args[0], 1, stride))
        node.args = (pooled, *node.args[1:])
        conv.stride = (1, 1)
    module.recompile()
    return module


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution reads one pixel for each that it writes, and nothing beyond the border."""
    return conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid", "same")


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
