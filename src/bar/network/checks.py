"""What cannot be followed is refused by name: hooks, parametrizations, tied weights, layers that do something else."""

import keyword
import operator
import unicodedata
from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from bar.errors import BarError


def place_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of a node, what it does, and the path of the module that does it, for errors."""
    if node.op == "call_module":
        module = modules[node.target]
        return f"{node.name!r} ({type(module).__name__}({module.extra_repr()}), module {node.target!r})"
    path, _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
    what = getattr(node.target, "__name__", node.target)
    return f"{node.name!r} ({what}, in " + (f"module {path!r})" if path else "the network itself)")


def check_name(name: str) -> None:
    """Refuse the name of a module that torch.fx cannot write into source code."""
    last = name.rpartition(".")[2]
    if last.isidentifier() and (keyword.iskeyword(last) or unicodedata.normalize("NFKC", last) != last):
        raise BarError(f"module {name!r} cannot have this name, since Python reads {last!r} differently: rename it")


def check_layer(name: str, module: nn.Module) -> None:
    """Refuse a layer that may not compute what its class does, since the smaller layer that replaces it would."""
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
    """Refuse a module with a hook around its call, which neither the gated nor the pruned network would call."""
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


def check_ties(module: fx.GraphModule) -> None:
    """Refuse weights that two layers share, whole or in part: pruning one of them would change the other."""
    places: dict[object, list[tuple[int, int, str]]] = {}  # memory -> first and last byte, name
    for name, tensor in _tensors(module):
        if tensor.is_meta or tensor.numel() == 0:
            memory, first, last = id(tensor), 0, 0
        else:
            memory, first = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            last = first + reach * tensor.element_size()
        memory = (tensor.device, memory)
        for other_first, other_last, other in places.get(memory, ()):
            if other != name and first <= other_last and other_first <= last:
                same = (first, last) == (other_first, other_last)
                raise BarError(
                    f"{other!r} and {name!r} {'are one tensor' if same else 'share memory'}: tied weights cannot be "
                    "pruned, since each layer needs a smaller one of its own. Give one of the two a copy"
                )
        places.setdefault(memory, []).append((first, last, name))


def _tensors(module: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that a graph uses, with their names; once for each call of a layer."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(node.target)
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                yield f"{node.target}.{name}", tensor
        elif node.op == "get_attr":
            yield node.target, operator.attrgetter(node.target)(module)
