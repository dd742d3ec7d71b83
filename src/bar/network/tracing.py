"""Read a CNN: its convolutions, their areas, and which feature feeds which (sections 3.3 and 4).

Everything follows from tracing a plain ``nn.Module`` with `torch.fx`; no network is known by name. What cannot be
followed is left whole: it keeps all that flows into it, and is called as it is.
"""

import copy
import warnings
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from bar.errors import BarError
from bar.network import containers, views
from bar.network.batches import BATCHES, frozen_sizes, thaw
from bar.network.channels import Network
from bar.network.checks import (
    Refusal,
    check_hooks,
    check_model,
    check_name,
    checked_size,
    own_ways,
    place_of,
    tied,
)
from bar.network.counting import Total
from bar.network.modes import compare_modes, drop_functional_dropout
from bar.network.movements import is_movement, rewrite_movements
from bar.network.operations import IN_PLACE_OPERATORS, operations_of
from bar.network.recording import record
from bar.network.rewriting import ask_images, drop_expansions, keep_unread, name_in_place_results, spell_out_glu
from bar.network.running import called, first_line, on_meta, undisturbed

_INSIDE = ("whole", "opaque", "filter")  # in which there may be convolutions that are no layers of the graph


def _kinds(
    module: fx.GraphModule, shapes: dict[fx.Node, torch.Size], leaves: dict[str, str], padded: Collection[fx.Node]
) -> tuple[dict[fx.Node, str], set[fx.Node], dict[fx.Node, str]]:
    """The kind of every node, the nodes that no gate can affect, and what is left whole, and why.

    `padded` are layers that make something else of channels of nothing but zeros.
    """
    modules = dict(module.named_modules())
    reasons = _reasons(module, leaves)
    kinds: dict[fx.Node, str] = {}
    whole: dict[fx.Node, str] = {}
    fixed: set[fx.Node] = set()  # nodes whose channels are always present: the images, outputs of linear layers
    for node in module.graph.nodes:
        untouched = all(n in fixed for n in node.all_input_nodes)
        why = reasons.get(node.target) if node.op == "call_module" else None
        layer = why is not None and next(modules[node.target].parameters(), None) is not None
        if node in padded:
            kind, why = None, "makes something else of channels that are padding"
        elif why is None:
            kind, why = _known_kind(node, modules, shapes, fixed)
        else:
            kind = _passes(node, modules[node.target], shapes, leaves)
        kinds[node] = kind = kind or ("opaque" if untouched else "whole")
        if _told(kind, layer, node):
            whole[node] = why
        if kind in ("input", "linear", "whole") or (untouched and kind not in ("conv", "depthwise")):
            fixed.add(node)
    return kinds, fixed, whole


def _told(kind: str, layer: bool, node: fx.Node) -> bool:
    """Whether people are told that something is left whole: not of a named tuple, which does nothing."""
    return (kind == "whole" and not isinstance(node.target, type)) or (layer and kind == "opaque")


def _known_kind(node: fx.Node, modules: dict, shapes: dict, fixed: set) -> tuple[str | None, str | None]:
    """The name of a node's operation in the table, and if there is none, why."""
    if node.op in ("output", "placeholder"):
        return {"output": "output", "placeholder": "input"}[node.op], None
    why = _of_unknown(node, modules)
    for operation in operations_of(node, modules):
        sources = operation.sources(node)
        free = [n for n in sources if n not in fixed]
        if not sources or any(n.op != "get_attr" for n in node.all_input_nodes if n not in sources):
            why = "depends on more than a signal"
        elif not free and operation.name not in ("conv", "depthwise", "norm", "linear"):
            return _plain_kind(operation, node, shapes, fixed), None
        elif all(len(shapes[n]) > 1 for n in free) and operation.fits(shapes, node, fixed):
            return operation.name, None
        else:
            why = "does not keep the channels where they are"
    return None, why


def _of_unknown(node: fx.Node, modules: dict) -> str:
    """Why a call is not followed that has no operation in the table."""
    module = modules[node.target] if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target)
    if isinstance(module, _MIXING) or name in _MIXING_FUNCTIONS:
        return "computes each channel from all of them (a batch norm, or a sigmoid for a softmax, could be followed)"
    if is_movement(node, modules):
        return "moves values between channels, images or pixels, while only whole channels are followed"
    if str(name).startswith(("conv", "_convolution")) and module is None:
        return "is a convolution whose weights are computed anew, or belong to no layer, and only layers are followed"
    if getattr(module, "transposed", False):
        return "is transposed and has groups, or is told the size of its output, and only other ones are followed"
    return "mixes channels, or is not known"


_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.Softmax, nn.Softmax2d)
_MIXING_FUNCTIONS = ("group_norm", "layer_norm", "rms_norm", "softmax", "local_response_norm")


def _plain_kind(operation, node: fx.Node, shapes: dict, fixed: set) -> str | None:
    """The name of an operation on what no gate affects, where its name says something; blocks are found by sums."""
    plain = operation.name in ("channelwise", "add", "cat", "flatten") and shapes[node][:1] == (BATCHES[0],)
    return operation.name if plain and operation.fits(shapes, node, fixed) else None


def _reasons(module: fx.GraphModule, leaves: dict[str, str]) -> dict[str, str]:
    """Why modules are not followed: path -> reason."""
    found = dict(tied(module)) | leaves
    called = [n.target for n in module.graph.find_nodes(op="call_module")]
    layers = (*views.CONVOLUTIONS, *views.NORMS, *views.INSTANCE_NORMS, nn.GroupNorm, nn.Linear, nn.PReLU)
    for path in called:
        layer = module.get_submodule(path)
        if called.count(path) > 1 and ((isinstance(layer, layers) and layer.state_dict()) or path in leaves):
            found.setdefault(path, f"is called {called.count(path)} times")
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, parameter = node.target.rpartition(".")
        if owner in called:
            found.setdefault(owner, f"its {parameter} is read by something else, too")
    return found


def _passes(node: fx.Node, module: nn.Module, shapes: dict, leaves: dict[str, str]) -> str | None:
    """Channelwise, if a module does nothing in eval mode and keeps zeros in training mode, as stochastic depth does."""
    if node.target not in leaves or node.kwargs or len(node.args) != 1 or list(module.parameters()):
        return None
    if own_ways(module) is not None or shapes[node] != shapes[node.args[0]]:
        return None
    twin = copy.deepcopy(module)
    try:
        for grad in (False, True):
            zeros = torch.zeros(shapes[node], requires_grad=grad)
            with undisturbed(), torch.set_grad_enabled(grad):
                if twin.eval()(zeros) is not zeros or twin.train()(zeros.clone()).any():
                    return None
    except Exception:  # whatever a user's module raises
        return None
    return "channelwise"


class _OnMeta(fx.Interpreter):
    """Runs a graph on the meta device, noting the shape that each node returns."""

    def __init__(self, module: nn.Module, in_place: Iterable[fx.Node] = ()) -> None:
        super().__init__(on_meta(module), graph=module.graph)
        self.whole, self.in_place = module, in_place
        self.extra_traceback = False
        self.modules = dict(self.module.named_modules())
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.inside: dict[fx.Node, tuple[int, int]] = {}
        # torch counts how often a tensor, or another that shares its memory, was changed in place
        self.versions: dict[fx.Node, int | None] = {}

    def call_module(self, target: str, args: tuple, kwargs: dict):
        layer = self.fetch_attr(target)
        if type(layer) in views.NORMS and len(args) == 1 and args[0].shape[1:2] == (layer.num_features,):
            layer._check_input_dim(args[0])
            return torch.empty_like(args[0])  # torch takes long to normalise on the meta device
        out, self.work = called(layer, self.whole.get_submodule(target), *containers.plain((args, kwargs)))
        return out

    def call_function(self, target, args: tuple, kwargs: dict):
        with Total(images=BATCHES[0]) as total:
            out = super().call_function(target, args, kwargs)
        self.work = total.volume, total.flops
        return out

    def run_node(self, node: fx.Node) -> Tensor:
        self.work = 0, 0
        for source in node.all_input_nodes:
            if self.versions.get(source) != _changes(self.env[source]):
                raise BarError(
                    f"{place_of(node, self.modules)} reads {source.name!r} after an operation in place has changed its "
                    "memory under another name (Identity, Dropout, flatten and contiguous share it, and what looks at "
                    "values may): use inplace=False"
                )
        try:
            with torch.device("meta"):  # what forward makes, such as torch.arange(8, dtype=x.dtype)
                out = super().run_node(node)
        except Exception as error:  # modules raise anything from RuntimeError to AssertionError
            reason = first_line(error)
            where = place_of(node, self.modules)
            raise BarError(f"the network cannot take this input: {where} fails with: {reason}") from error
        self.shapes[node] = out.shape if isinstance(out, Tensor) else torch.Size()
        self.inside[node] = self.work
        self.versions[node] = _changes(out)
        for source in node.all_input_nodes:
            if node not in self.in_place and self.versions.get(source) != _changes(self.env[source]):
                raise BarError(f"{place_of(node, self.modules)} changes its input in place: use inplace=False")
        return out


def _changes(value: object) -> int | None:
    return value._version if isinstance(value, Tensor) else None


@torch.inference_mode(False)
@undisturbed()  # what is left whole may draw numbers whenever it is called
def trace(
    model: nn.Module, input_size: Iterable[int] | None = None, example_inputs: Sequence[Tensor] | None = None
) -> Network:
    """Read a CNN with `torch.fx`.

    Parameters
    ----------
    model : nn.Module
        A plain network of batches of images in, tensors out. It is not changed; the result shares its modules.
    input_size : iterable of int
        (channels, height, width) of one image; (channels, length) and (channels, depth, height, width) for networks of
        other dimensions. Sizes that the network computes with are those of this input.
    example_inputs : sequence of Tensor, optional
        Instead of the size, for networks of several inputs: one batch for each, of any number of images.

    Returns
    -------
    Network

    Raises
    ------
    BarError
        When the model cannot be traced, the input does not fit, or there is nothing to prune.

    Examples
    --------
    >>> net = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)), (3, 6, 6))
    >>> {name: (net.features(node), net.area(node)) for name, node in net.convs.items()}
    {'0': (8, 16)}
    """
    check_model(model)
    sizes, dtypes = _given(example_inputs) if example_inputs is not None else _size(model, input_size)
    leaves = _leaves(model)
    recording, (dropped, auxiliary), frozen, in_place = _recorded(model, sizes, dtypes, leaves)
    module = recording.module
    for node in in_place:
        node.target = IN_PLACE_OPERATORS.get(node.target, node.target)
    values, read = dict(recording.values), {n.target for n in module.graph.find_nodes(op="get_attr")}
    thaw(module, frozen)
    drop_expansions(module, values)
    spell_out_glu(module, values, leaves)
    ask_images(module, values)
    rewrite_movements(module, values)
    dropouts = drop_functional_dropout(model, module, dropped)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or node in in_place)
    shapes, inside = _shapes(module, sizes, dtypes)
    kinds, fixed, whole = _kinds_of_all(module, sizes, shapes, leaves)
    if "conv" not in kinds.values():
        raise _nothing_to_prune(model, module, whole)
    module.graph.eliminate_dead_code()
    for node in keep_unread(model, module, read):
        kinds[node], shapes[node] = "opaque", node.meta["shape"]
        fixed.add(node)
    module.recompile()
    if auxiliary:
        warnings.warn(
            f"{', '.join(map(repr, auxiliary))} of {type(model).__name__} run in training mode only, for outputs of "
            "their own: the gated and the pruned network have no such part, and return the main output alone",
            stacklevel=5,  # whoever called `bar.gate`
        )
    nodes, modules = dict.fromkeys(module.graph.nodes), dict(module.named_modules())
    return Network(
        module, sizes[0], {n: kinds[n] for n in nodes}, fixed & set(nodes), {n: shapes[n] for n in nodes}, dropouts,
        auxiliary, {place_of(n, modules): why for n, why in whole.items() if n in nodes},
        tuple(sizes), tuple(dtypes), {n: inside[n] for n in nodes if kinds[n] in _INSIDE and any(inside.get(n, ()))},
        _baked(model, module, read),
    )  # fmt: skip


def _baked(model: nn.Module, module: fx.GraphModule, read: set[str]) -> dict[str, Tensor]:
    """Copies of the buffers that have been read and that the graph holds as constants, such as channels of an index."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    names = read - {n.target for n in module.graph.find_nodes(op="get_attr")}
    return {name: buffers[name].detach().clone() for name in sorted(names) if name in buffers}


def _nothing_to_prune(model: nn.Module, module: fx.GraphModule, whole: dict[fx.Node, str]) -> BarError:
    """An error that names the first place that is left whole, if there is one."""
    why = next((f", but {place_of(n, dict(module.named_modules()))} {why}" for n, why in whole.items()), "")
    return BarError(
        f"{type(model).__name__} has no convolution that reads several channels{why}: nothing can be pruned"
    )


def _kinds_of_all(module: fx.GraphModule, sizes: list[tuple], shapes: dict, leaves: dict[str, str]):
    """See `_kinds`; what would lose something of padded channels is left whole."""
    padded: list[fx.Node] = []
    while True:
        kinds, fixed, whole = _kinds(module, shapes, leaves, padded)
        shifted = _shifts_padding(Network(module, sizes[0], kinds, fixed, shapes))
        if shifted is None:
            return kinds, fixed, whole
        padded.append(shifted)


def _shifts_padding(network: Network) -> fx.Node | None:
    """The first layer whose shift or bias shows in channels that are zero even if all features are there.

    What is dead contributes nothing, with its shift; but nothing is dead about padding.
    """
    reached = network.flow(
        {name: torch.ones(network.features(node), dtype=torch.bool) for name, node in network.convs.items()}
    )
    for node in network.kinds:
        biased = network.kinds[node] == "conv" and network.submodule(node).bias is not None
        if (biased or network.shifts(node)) and not reached[node].all():
            return node
    return None


def _leaves(model: nn.Module) -> dict[str, str]:
    """The modules that are not looked into from the start: path -> why."""
    check_hooks("", model)
    leaves: dict[str, str] = {}
    for name, layer in model.named_modules():
        check_name(name)
        if name and (why := own_ways(layer)) is not None:
            leaves[name] = why
    return leaves


def _given(example_inputs: Tensor | Sequence[Tensor]) -> tuple[list[tuple], list]:
    """The shape of one image of each input, and their types."""
    found = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    if not found or not all(isinstance(x, Tensor) and x.ndim for x in found):
        raise BarError("example_inputs must be batches, each a tensor of shape (images, ...)")
    return [tuple(x.shape[1:]) for x in found], [x.dtype for x in found]


def _size(model: nn.Module, input_size: Iterable[int] | None) -> tuple[list[tuple], list]:
    """The shape of one image of the only input, and the type of the weights."""
    size = checked_size(input_size)
    kinds = [views.CONVOLUTIONS.index(type(m)) for m in model.modules() if type(m) in views.CONVOLUTIONS]
    dims = {kind % 3 + 2 for kind in kinds}
    if len(size) not in dims | {3}:
        raise BarError(f"input size must be three positive numbers (channels, height, width), not {size}")
    return [size], [next((p.dtype for p in model.parameters()), None)]


def _batch(sizes: list[tuple], dtypes: list, images: int) -> list[Tensor]:
    return [torch.empty(images, *s, device="meta", dtype=d) for s, d in zip(sizes, dtypes, strict=True)]


def _recorded(model: nn.Module, sizes: list[tuple], dtypes: list, leaves: dict[str, str]):
    """What the model does, with modules left whole until it does so in all modes and for all numbers of images."""
    while True:
        before = len(leaves)
        try:
            two, three = (_batch(sizes, dtypes, images) for images in BATCHES)
            recording = record(model, two, leaves)
            frozen = frozen_sizes(model, three, leaves, recording)
            in_place = name_in_place_results(recording.module)
            *modes, learning = compare_modes(model, recording, frozen, two, leaves)
        except Refusal as error:
            path = error.path
            while path in leaves:
                path = path.rpartition(".")[0]
            if not path:
                raise BarError(str(error)) from error
            leaves[path] = str(error)
            continue
        if len(leaves) == before:
            for module, changing in ((recording.module, in_place), learning):
                _check_memory(module, changing, sizes, dtypes)
            return recording, modes, frozen, in_place


def _check_memory(module: fx.GraphModule, in_place: set[fx.Node], sizes: list[tuple], dtypes: list) -> None:
    """Refuse operations in place whose effect is read under another name."""
    _OnMeta(module, in_place).run(*_batch(sizes, dtypes, BATCHES[0]))


def _shapes(module: fx.GraphModule, sizes: list[tuple], dtypes: list) -> tuple[dict, dict]:
    """The shape of what each node returns, for two images, and the volume and FLOPs of its convolutions for one."""
    meta = _OnMeta(module, set(module.graph.nodes))
    meta.run(*_batch(sizes, dtypes, BATCHES[0]))
    for node in module.graph.nodes:
        if node.all_input_nodes:
            node.meta["ndim"] = len(meta.shapes[node.all_input_nodes[0]])
    return meta.shapes, meta.inside
