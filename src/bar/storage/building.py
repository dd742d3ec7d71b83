"""Construction of a network, on the meta device, from the JSON that describes it.

The file may come from anybody: each name, option and argument is checked against the vocabulary, and all tensors
against those that are stored, before any memory is allocated.
"""

import functools
import keyword
import re
import unicodedata
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn

from bar.errors import BarError
from bar.storage.describing import FORMAT
from bar.storage.reasons import first_line
from bar.storage.vocabulary import (
    CALLS,
    FUNCTIONS,
    INPUT,
    LAYERS,
    METHODS,
    MODULES,
    are_outputs,
    is_flag,
    is_number,
    takes,
)

WEIGHTS = "network.safetensors"
# Limits for files from strangers: nodes, of which a DenseNet-201 has a tenth, and levels of nested arguments.
_MOST_NODES, _DEEPEST = 20_000, 4

Header = Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]


class InvalidDescription(BarError):
    """A description that is invalid, or does not fit the stored tensors."""


def build(architecture, header: Header | None) -> fx.GraphModule:
    """Build a network on the meta device from its description.

    Parameters
    ----------
    architecture : object
        The description, as parsed from JSON.
    header : mapping of str to (dtype, shape), or None
        The stored tensors; a dtype of None is an unknown one. Without a header, the tensors are those of the layers.

    Returns
    -------
    torch.fx.GraphModule
        Its tensors are exactly those of the header, if there is one.

    Raises
    ------
    InvalidDescription
        If the description is invalid, or its tensors are not those of the header; without a header, if it has tensors
        that belong to no layer.
    """
    try:
        network = _build_unchecked(architecture, header)
        if header is not None:
            _compare(network, header)
        return network
    except BarError as error:
        raise InvalidDescription(str(error)) from error
    except Exception as error:  # what torch raises for odd numbers in its options cannot be listed
        raise InvalidDescription(f"{type(error).__name__}: {first_line(error)}") from error


def fill(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors of a network on the meta device by stored ones.

    Parameters
    ----------
    network : nn.Module
        From `build`.
    tensors : dict of str to Tensor
        Those of the header, by name.
    """
    kept = network.state_dict().keys()
    for name in tensors.keys() - kept:
        _make_non_persistent(network, name, tensors[name])
    network.load_state_dict({name: tensors[name] for name in kept}, assign=True)


def _build_unchecked(architecture, header: Header | None) -> fx.GraphModule:
    if not isinstance(architecture, dict) or architecture.get("format") != FORMAT:
        raise BarError(f"it is not of format {FORMAT}, the only one that this version of bar reads")
    modules, nodes = architecture["modules"], architecture["nodes"]
    parameters, passing = architecture.get("parameters", []), architecture.get("non_persistent", [])
    if not (isinstance(modules, dict) and all(isinstance(part, list) for part in (nodes, parameters, passing))):
        raise BarError("its modules, nodes or parameters are missing")
    if len(nodes) > _MOST_NODES:
        raise BarError(f"it has more than {_MOST_NODES:,} nodes")
    targets = {op: {n["target"] for n in nodes if n["op"] == op} for op in ("call_module", "get_attr")}
    if targets["call_module"] != modules.keys():
        raise BarError("its modules are not those that its nodes call")
    root = nn.Module()
    for name, spec in sorted(modules.items(), key=lambda item: item[0].count(".")):
        _attach(root, name, _layer(name, spec))
    for name in sorted(targets["get_attr"]):
        tensor = _blank(name, header)
        _attach(root, name, nn.Parameter(tensor) if name in parameters else tensor)
    network = fx.GraphModule(root, _graph(nodes), class_name="Pruned")
    buffers = dict(network.named_buffers())
    for name in passing:
        _make_non_persistent(network, name, buffers[name])
    return network


def _blank(name: str, header: Header | None) -> torch.Tensor:
    """A tensor on the meta device in the place of a stored one that is of no layer."""
    if header is None:
        raise BarError(f"{name} belongs to no layer, and was stored with the weights, which are missing")
    dtype, shape = header[name]
    return torch.empty(shape, dtype=dtype, device="meta")


def _compare(network: nn.Module, header: Header) -> None:
    """Raise a BarError unless the tensors of a network are those of the header."""
    state = network.state_dict() | dict(network.named_buffers())
    for name in sorted(state.keys() | header.keys()):
        if name not in header or name not in state:
            raise BarError(f"{name} is " + ("missing in " + WEIGHTS if name in state else "no tensor of its layers"))
        dtype, shape = header[name]
        if dtype is None or dtype.is_floating_point != state[name].is_floating_point() or shape != state[name].shape:
            raise BarError(f"{name} is {dtype} of shape {shape} in {WEIGHTS}, not of shape {tuple(state[name].shape)}")


def _make_non_persistent(network: nn.Module, name: str, buffer: torch.Tensor) -> None:
    """Register a buffer again as non-persistent, since torch.fx makes all buffers persistent."""
    owner, _, last = name.rpartition(".")
    network.get_submodule(owner).register_buffer(last, buffer, persistent=False)


def _attach(root: nn.Module, path: str, value: nn.Module | torch.Tensor) -> None:
    """Attach a layer or a tensor to a tree of modules, at a dotted path."""
    *parents, last = parts = path.split(".")
    if not all(_is_name(part, level > 0) for level, part in enumerate(parts)):
        raise BarError(f"a module or tensor cannot be called {path!a}")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif last not in root._parameters and last not in root._buffers:  # else the graph reads a layer's tensor
        if isinstance(value, nn.Parameter):
            root.register_parameter(last, value)
        else:
            root.register_buffer(last, value)


def _is_name(part: str, below: bool) -> bool:
    """Whether a module or tensor may have this name, at the top level or below it.

    torch.fx writes the path into source code: as it is where it is an identifier, else between double quotes.
    """
    if not part.isprintable() or not 0 < len(part) <= 200 or '"' in part or "\\" in part or part in _reserved()[below]:
        return False
    # Python normalises identifiers, and keywords are none
    return not part.isidentifier() or (not keyword.iskeyword(part) and unicodedata.normalize("NFKC", part) == part)


@functools.cache
def _reserved() -> tuple[frozenset[str], frozenset[str]]:
    """Return the attributes that the module at the top, and those below it, already have."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))), frozenset(dir(nn.Module()))


def _layer(name: str, spec: dict) -> nn.Module:
    layer = MODULES.get(spec["class"])
    if layer is None:
        raise BarError(f"{name!a} is of a class that is not known")
    for option, value in spec["options"].items():
        if option not in LAYERS[layer] or not LAYERS[layer][option](value):
            raise BarError(f"{layer.__name__} {name!a} cannot have the option {option!a} that is given")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["options"].items()}
    if "affine" in options and options.get("bias") == options["affine"]:
        del options["bias"]
    with torch.device("meta"):
        return layer(**options)


def _graph(nodes: list) -> fx.Graph:
    """Build the described graph, in which each node may read only nodes before it."""
    graph, made = fx.Graph(), {}
    for spec in nodes:
        name = _name(spec["name"], made)
        if made and nodes[len(made) - 1]["op"] == "output":
            raise BarError("its output is not the last node")
        made[name] = _node(graph, name, spec["op"], spec["target"], _arguments(name, spec, made))
    if not nodes or nodes[-1]["op"] != "output" or nodes[0]["op"] != "placeholder":
        raise BarError("it has no input, or no output")
    return graph


def _name(name, made: Mapping[str, fx.Node]) -> str:
    """Return a node's name once it is checked: torch.fx writes it into source code as it is."""
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w{0,199}", name, re.ASCII)) or name == "self":
        raise BarError(f"a node cannot be called {ascii(name)[:60]}")
    if name in made:
        raise BarError(f"two nodes are called {name}")
    return name


def _arguments(name: str, spec: dict, made: Mapping[str, fx.Node]) -> tuple[list, dict]:
    args, kwargs = _from_json(spec["args"], made), _from_json(spec["kwargs"], made)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BarError(f"{name} has no lists of arguments")
    return args, kwargs


def _from_json(value, made: Mapping[str, fx.Node], left: int = _DEEPEST):
    if isinstance(value, dict | list) and left == 0:
        raise BarError("arguments are nested too deeply")
    if isinstance(value, list):
        return [_from_json(v, made, left - 1) for v in value]
    if isinstance(value, dict):
        if "slice" in value:
            start, stop, step = (_from_json(v, made, left - 1) for v in value["slice"])
            return slice(start, stop, step)
        if "ellipsis" in value:
            return Ellipsis
        if "tuple" in value:
            return tuple(_from_json(v, made, left - 1) for v in value["tuple"])
        if "node" in value:
            if value["node"] not in made:
                raise BarError(f"a node reads {ascii(value['node'])[:60]}, which is not before it")
            return made[value["node"]]
        return {k: _from_json(v, made, left - 1) for k, v in value["kwargs"].items()}
    return value


def _node(graph: fx.Graph, name: str, op, target, arguments: tuple[list, dict]) -> fx.Node:
    """Append a node to the graph, if its operation accepts the target and the arguments."""
    right = _ACCEPTS.get(op) if isinstance(op, str) else None
    if right is None:
        raise BarError(f"there is no operation {ascii(op)[:60]}")
    args, kwargs = arguments
    if not right(target, args, kwargs):
        raise BarError(f"{name} cannot have the arguments that are given")
    if op == "call_function":
        target = FUNCTIONS[target]
    if op == "placeholder":
        target = name  # which has been checked; torch.fx writes the target into source code as it is
    node = graph.create_node(op, target, tuple(args), kwargs, name)
    if op == "placeholder":
        node.target = node.name
    return node


def _accepts_input(target, args: list, kwargs: dict) -> bool:
    default = len(args) <= 1 and all(v is None or is_flag(v) or is_number(v) for v in args)
    return default and not kwargs and isinstance(target, str) and target.isidentifier()


# operation -> whether it accepts a target and arguments
_ACCEPTS: dict[str, Callable[[object, list, dict], bool]] = {
    "placeholder": _accepts_input,
    "get_attr": lambda target, args, kwargs: not args and not kwargs,
    "call_function": lambda target, args, kwargs: takes(CALLS[FUNCTIONS[target]], args, kwargs),
    "call_method": lambda target, args, kwargs: takes(METHODS[target], args, kwargs),
    "call_module": lambda target, args, kwargs: takes((1, INPUT), args, {}) and not kwargs,
    "output": lambda target, args, kwargs: len(args) == 1 and are_outputs(args[0]) and not kwargs,
}
