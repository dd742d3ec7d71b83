"""What cannot be followed is left whole or refused, by name: hooks, parametrizations, tied weights, own forwards."""

import keyword
import operator
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from bar.errors import BarError, shown


def place_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of a node, what it does, and the path of the module that does it, for errors."""
    if node.op == "call_module":
        module = modules[node.target]
        return f"{node.name!r} ({type(module).__name__}({module.extra_repr()}), module {node.target!r})"
    path, _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
    what = getattr(node.target, "__name__", node.target)
    return f"{node.name!r} ({what}, in " + (f"module {path!r})" if path else "the network itself)")


def path_of(node: fx.Node | None) -> str:
    """The path of the module that did what a node does."""
    stack = {} if node is None else node.meta.get("nn_module_stack", {})
    path, _ = next(reversed(stack.values()), ("", None))
    return path


def check_name(name: str) -> None:
    """Refuse the name of a module that torch.fx cannot write into source code."""
    last = name.rpartition(".")[2]
    if last.isidentifier() and (keyword.iskeyword(last) or unicodedata.normalize("NFKC", last) != last):
        raise BarError(f"module {name!r} cannot have this name, since Python reads {last!r} differently: rename it")


def checked_size(input_size: Iterable[int] | None) -> tuple[int, ...]:
    """The size of one image as a tuple; a BarError if it is anything but positive whole numbers.

    Examples
    --------
    >>> checked_size([3, 32, 32])
    (3, 32, 32)
    >>> checked_size(32)
    Traceback (most recent call last):
    bar.errors.BarError: input size must be three positive numbers (channels, height, width), not 32
    """
    try:
        size = tuple(map(operator.index, input_size))
    except TypeError:  # no sequence, or not of whole numbers
        size = ()
    if not size or min(size) < 1:
        raise BarError(
            f"input size must be three positive numbers (channels, height, width), not {shown(size or input_size)}"
        )
    return size


def check_module(model: nn.Module) -> None:
    """Refuse what is no network."""
    if not isinstance(model, nn.Module):
        raise BarError(f"the network must be an nn.Module, not a {type(model).__name__}")


def check_model(model: nn.Module) -> None:
    """Refuse what is no network, wraps one, or has no weights yet, and say what to pass instead."""
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise BarError("the network is compiled to TorchScript: pass the nn.Module that it was made from")
    for name, module in model.named_modules():
        kind, place = type(module).__name__, f"module {name!r}" if name else "the network"
        if hasattr(module, "settle_"):  # a bar.GatedNetwork, which this room does not know
            raise BarError(f"{place} has gates already: take what bar.prune makes of it, or the network without gates")
        if hasattr(module, "_orig_mod"):
            what = "put its ._orig_mod in its place" if name else "pass its ._orig_mod"
            raise BarError(f"{place} is compiled by torch.compile: {what}, and compile what bar.prune returns")
        if isinstance(module, _WRAPPERS) and (not name or getattr(module, "device_ids", None)):
            what = "put its .module in its place" if name else "pass its .module"
            raise BarError(f"{place} is wrapped by {kind}: {what}, and wrap what bar.prune returns")
    check_shapes(model)


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def check_shapes(model: nn.Module) -> None:
    """Refuse a network whose lazy layers do not know their widths yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise BarError(f"{name} has no shape yet, since its layer is lazy: run one batch through the network first")


class Refusal(BarError):
    """What one module does cannot be followed; it may be left whole instead, unless it is the network itself."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def own_ways(module: nn.Module) -> str | None:
    """Why a module may not compute what its class does, so that no smaller one can replace it; None if it does."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled to TorchScript"
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)
        return f"its {names} is parametrized (torch.nn.utils.parametrize.remove_parametrizations undoes that)"
    if found := next(_hooks(module), None):
        kind, hook = found
        return f"has a {kind} ({getattr(hook, '__name__', type(hook).__name__)}), without which it could be followed"
    if "forward" in vars(module):
        return "has a forward of its own"
    if getattr(module, "running_mean", None) is not None and not getattr(module, "track_running_stats", True):
        return "has running statistics that it does not track"
    for layer in LAYERS:
        own = getattr(type(module), "_conv_forward", None) is not getattr(layer, "_conv_forward", None)
        if isinstance(module, layer) and (own or "_conv_forward" in vars(module)):
            return "has a _conv_forward of its own"
    return None


LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _hooks(module: nn.Module) -> Iterator[tuple[str, object]]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        yield "forward hook", hook
    for hook in (*module._backward_pre_hooks.values(), *module._backward_hooks.values()):
        yield "backward hook", hook


def check_hooks(name: str, module: nn.Module) -> None:
    """Refuse a module with a hook around its call, which neither the gated nor the pruned network would call."""
    for kind, hook in _hooks(module):
        what = getattr(hook, "__name__", type(hook).__name__)
        raise BarError(
            f"{repr(name) if name else 'the network itself'} has a {kind} ({what}), which may change what it "
            "computes: remove it first (with torch.nn.utils.remove_weight_norm, remove_spectral_norm or "
            "prune.remove, where these have put it there)"
        )


def tied(module: fx.GraphModule) -> dict[str, str]:
    """The layers that share a parameter or buffer with others: pruning one of them would change the other.

    Path of a module -> why. Refused are two tensors of one memory, whole or in part, which no copy would keep together.
    """
    places: dict[object, list[tuple[int, int, str, str, Tensor]]] = {}  # memory -> first and last byte, place, tensor
    found: dict[str, str] = {}
    for path, name, tensor in _tensors(module):
        if tensor.is_meta or tensor.numel() == 0:
            memory, first, last = id(tensor), 0, 0
        else:
            memory, first = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            last = first + reach * tensor.element_size()
        memory = (tensor.device, memory)
        for other_first, other_last, other_path, other, other_tensor in places.get(memory, ()):
            if other_path == path or first > other_last or other_first > last:
                continue
            if tensor is not other_tensor:
                raise BarError(
                    f"{other!r} and {name!r} share memory, but are not one parameter: pruning would part them. "
                    "Give one of the two a copy, or assign one parameter to both"
                )
            found.setdefault(path, f"its {name.rpartition('.')[2]} is also {other!r}")
            found.setdefault(other_path, f"its {other.rpartition('.')[2]} is also {name!r}")
        places.setdefault(memory, []).append((first, last, path, name, tensor))
    return found


def _tensors(module: fx.GraphModule) -> Iterator[tuple[str, str, Tensor]]:
    """The parameters and buffers that a graph uses, with the module and their names; once for each call of a layer."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(node.target)
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                yield node.target, f"{node.target}.{name}", tensor
        elif node.op == "get_attr":
            yield node.target.rpartition(".")[0], node.target, operator.attrgetter(node.target)(module)
