"""Read a CNN: its convolutions, their areas, and which feature feeds which (sections 3.3 and 4).

Everything follows from tracing a plain ``nn.Module`` with `torch.fx`; no network is known by name.
"""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from bar.errors import BarError
from bar.network.channels import Network
from bar.network.checks import check_hooks, check_layer, check_name, check_ties, place_of
from bar.network.modes import compare_modes, drop_functional_dropout
from bar.network.operations import IN_PLACE_OPERATORS, operation_of
from bar.network.recording import record
from bar.network.rewriting import flatten_views, keep_unread, name_in_place_results


def _known_kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The name of a node's operation in the table; None if it is not known how features pass through it."""
    operation = operation_of(node, modules)
    if operation is None:
        return None
    if operation.name == "channelwise" and len(node.all_input_nodes) > 1:  # such as a size, computed from the images
        return None
    return operation.name


def _kinds(module: fx.GraphModule) -> tuple[dict[fx.Node, str], set[fx.Node]]:
    """The kind of every node, and those that no gate can affect, where unknown operations are allowed ("opaque")."""
    modules = dict(module.named_modules())
    kinds: dict[fx.Node, str] = {}
    fixed: set[fx.Node] = set()  # nodes whose channels are always present: the images, outputs of linear layers
    for node in module.graph.nodes:
        kind = _known_kind(node, modules)
        untouched = all(n in fixed for n in node.all_input_nodes)
        if kind is None and not untouched:
            raise BarError(
                f"cannot follow features through {place_of(node, modules)}: it is not known to keep a zero feature at "
                "zero. Write it with convolution, batch norm, linear, pooling, add, cat, flatten(1) and activations "
                "with f(0) = 0"
            )
        if not untouched and any(n.op == "get_attr" for n in node.all_input_nodes):
            raise BarError(
                f"{place_of(node, modules)} combines features with a parameter of its own, which pruning cannot follow"
            )
        kinds[node] = "opaque" if node.op == "get_attr" else kind or "opaque"
        if kind in ("input", "linear") or (untouched and kind not in ("conv", "depthwise")):
            fixed.add(node)
    return kinds, fixed


class _OnMeta(fx.Interpreter):
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
                    f"{place_of(node, self.modules)} reads {source.name!r} after an operation in place has changed its "
                    "memory under another name (Identity, Dropout, flatten and contiguous share it): use inplace=False"
                )
        try:
            out = super().run_node(node)
        except Exception as error:  # modules raise anything from RuntimeError to AssertionError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = place_of(node, self.modules)
            raise BarError(f"the network cannot take this input: {where} fails with: {reason}") from error
        self.shapes[node] = getattr(out, "shape", torch.Size())
        self.versions[node] = getattr(out, "_version", None)
        return out


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model without values, to compute shapes without memory or arithmetic.

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
        check_name(name)
        check_hooks(name, layer)
    # Tracing freezes `self.training`; only modules such as nn.Dropout see later changes of it.
    module = record(model, training=False)
    for node in module.graph.find_nodes(op="call_module"):
        check_layer(node.target, module.get_submodule(node.target))
    check_ties(module)
    in_place = name_in_place_results(module)
    dropped, auxiliary = compare_modes(model, module)
    dropouts = drop_functional_dropout(model, module, dropped)
    flatten_views(module)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or node in in_place)

    kinds, fixed = _kinds(module)
    _check_calls(type(model).__name__, module, kinds)
    shapes = _shapes(module, size, kinds, fixed)
    for node in in_place:
        node.target = IN_PLACE_OPERATORS.get(node.target, node.target)
    module.graph.eliminate_dead_code()
    for node in keep_unread(model, module):
        kinds[node], shapes[node] = "opaque", node.meta["shape"]
        fixed.add(node)
    module.recompile()
    if auxiliary:
        warnings.warn(
            f"{', '.join(map(repr, auxiliary))} of {type(model).__name__} run in training mode only, for outputs of "
            "their own: the gated and the pruned network have no such part, and return the main output alone",
            stacklevel=5,  # whoever called `bar.gate`
        )
    nodes = list(module.graph.nodes)
    return Network(
        module, size, {n: kinds[n] for n in nodes}, fixed & set(nodes), {n: shapes[n] for n in nodes}, dropouts,
        auxiliary,
    )  # fmt: skip


def _check_calls(name: str, module: fx.GraphModule, kinds: dict[fx.Node, str]) -> None:
    """Refuse what does not take one tensor, or return one, or calls a layer twice, or has nothing to prune."""
    images = list(module.graph.find_nodes(op="placeholder"))
    if len(images) != 1 or images[0].target.startswith("*"):
        raise BarError(f"{name} must take one tensor, the images")
    called = [n.target for n, kind in kinds.items() if kind in ("conv", "depthwise", "norm", "linear")]
    for layer in called:
        if called.count(layer) > 1:
            raise BarError(f"{layer!r} is called {called.count(layer)} times: a shared layer cannot be pruned")
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, parameter = node.target.rpartition(".")
        if owner in called:
            raise BarError(f"the network computes with the {parameter} of {owner!r} itself, which pruning changes")
    if "conv" not in kinds.values():
        raise BarError(f"{name} has no nn.Conv2d that reads several channels: nothing can be pruned")
    if not isinstance(next(reversed(kinds)).args[0], fx.Node):
        raise BarError(f"{name} must return one tensor, not a tuple, list or dict")


def _shapes(
    module: fx.GraphModule, size: tuple[int, int, int], kinds: dict[fx.Node, str], fixed: set[fx.Node]
) -> dict[fx.Node, torch.Size]:
    """The shape of what each node returns, for one image; refuses what only shapes can show."""
    meta = _OnMeta(on_meta(module), module.graph)
    dtype = next((p.dtype for p in module.parameters()), None)
    meta.run(torch.empty(1, *size, device="meta", dtype=dtype))
    shapes, modules = meta.shapes, dict(module.named_modules())
    for node, kind in kinds.items():
        if kind == "add" and len({shapes[n] for n in node.all_input_nodes}) != 1:
            raise BarError(f"{place_of(node, modules)} adds signals of different shapes; broadcasting is not supported")
        if kind == "linear" and len(shapes[node]) != 2 and node.all_input_nodes[0] not in fixed:
            raise BarError(f"{node.target!r} is a linear layer on features that have not been flattened")
        if shapes[node][1:] != node.meta.get("columns", shapes[node][1:]):
            raise BarError(
                f"{place_of(node, modules)} reshapes images into each other; only flatten(1) can be followed"
            )
    return shapes
