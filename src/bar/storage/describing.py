"""Description of a network, in JSON and tensors."""

import operator

import torch
from torch import fx, nn

from bar.errors import BarError
from bar.storage.vocabulary import FUNCTIONS, LAYERS, METHODS

FORMAT = 1  # of what is written now, and the only one that is read
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of batch norms


def describe(network: fx.GraphModule) -> tuple[dict, dict[str, torch.Tensor]]:
    """Describe a network by its architecture and its tensors.

    Parameters
    ----------
    network : torch.fx.GraphModule
        Of layers and operations from the vocabulary.

    Returns
    -------
    dict
        Its architecture, without the hash of its weights.
    dict of str to Tensor
        All tensors that it computes with, by name.

    Raises
    ------
    BarError
        If something in it cannot be saved.
    """
    called = {node.target: network.get_submodule(node.target) for node in _nodes(network, "call_module")}
    read = _directly_read(network)
    modules = {name: _layer(name, module) for name, module in called.items()}
    tensors = {f"{name}.{key}": t for name, module in called.items() for key, t in _tensors_of(module).items()} | read
    architecture = {
        "nodes": [_node(node) for node in network.graph.nodes],
        "modules": modules,
        "parameters": [name for name, tensor in read.items() if isinstance(tensor, nn.Parameter)],
    }
    buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)} - network.state_dict().keys()
    non_persistent = [name for name in tensors if name in buffers]
    return architecture | ({"non_persistent": non_persistent} if non_persistent else {}), tensors


def _nodes(network: fx.GraphModule, op: str) -> list[fx.Node]:
    return [node for node in network.graph.nodes if node.op == op]


def _directly_read(network: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Return the tensors that the graph reads itself, not through a layer."""
    read = {node.target: operator.attrgetter(node.target)(network) for node in _nodes(network, "get_attr")}
    for name, tensor in read.items():
        if not isinstance(tensor, torch.Tensor):
            raise BarError(f"{name}: {type(tensor).__name__} cannot be saved")
    return read


def _tensors_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Return a layer's state dict, with a batch norm's statistics also where they have been made non-persistent."""
    buffers = {name: buffer for name, buffer in layer.named_buffers() if name in _STATISTICS}
    return layer.state_dict() | buffers


def _node(node: fx.Node) -> dict:
    target = node.target
    if node.op == "call_method" and target not in METHODS:
        raise BarError(f"{node.name}: the method {target} cannot be saved")
    if node.op == "call_function":
        target = f"{target.__module__}.{target.__name__}"
        if target not in FUNCTIONS:
            raise BarError(f"{node.name}: {target} cannot be saved")
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [_argument(a, node.target is operator.getitem or node.op == "output") for a in node.args],
        "kwargs": _argument(node.kwargs),
    }


def _argument(value, indexes: bool = False):
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, slice):
        return {"slice": [*map(_argument, (value.start, value.stop, value.step))]}
    if isinstance(value, tuple) and indexes:
        return {"tuple": [_argument(v) for v in value]}
    if isinstance(value, list | tuple):
        return [_argument(v) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"kwargs": {k: _argument(v, indexes) for k, v in value.items()}}
    if isinstance(value, bool | int | float | str | None):
        return value
    raise BarError(f"cannot save an argument of type {type(value).__name__}")


def _layer(name: str, module: nn.Module) -> dict:
    layer = type(module)
    if layer not in LAYERS:
        raise BarError(
            f"{name}: {layer.__name__} cannot be saved: files name only layers of torch that bar.load makes again; "
            "write the network with these, or prune it in Python and keep what bar.prune returns"
        )
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooks:
        what = getattr(hooks[0], "__name__", type(hooks[0]).__name__)
        raise BarError(
            f"{name}: its forward hook ({what}) cannot be saved: remove it first (torch.nn.utils.prune.remove, if it "
            "is a mask)"
        )
    if own := {"forward", "_conv_forward"} & {*vars(module)}:
        raise BarError(
            f"{name}: a {own.pop()} that was given to this one layer cannot be saved: make it a layer of torch"
        )
    options = {}
    for option in LAYERS[layer]:
        if hasattr(module, option):
            value = getattr(module, option)
            options[option] = value is not None if option == "bias" else value
    if "affine" in options and options.get("bias") == options["affine"]:
        del options["bias"]  # of a batch norm; older versions of torch do not have this option
    return {"class": layer.__name__, "options": options}
