"""Pruned networks on disk: weights as safetensors, architecture as JSON (`bar.load`); and checkpoints of a run."""

import hashlib
import inspect
import io
import json
import keyword
import logging
import operator
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn

from bar.errors import BarError
from bar.network import CHANNELWISE_FUNCTIONS, CHANNELWISE_MODULES

ARCHITECTURE, WEIGHTS = "network.json", "network.safetensors"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
log = logging.getLogger(__name__)
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)

# What a file may name; anything else in it is refused, so that opening one cannot run code of its author's choice.
_MODULES = {
    m.__name__: m
    for m in (*CHANNELWISE_MODULES, nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear, nn.Flatten, nn.Sigmoid,
              nn.Softmax, nn.LogSoftmax)
}  # fmt: skip
_FUNCTIONS = {
    f"{f.__module__}.{f.__name__}": f
    for f in (*CHANNELWISE_FUNCTIONS, torch.cat, torch.flatten, torch.narrow, torch.index_select, torch.index_add,
              torch.add, operator.add, operator.iadd, operator.sub, operator.mul, operator.truediv, torch.mean,
              torch.sigmoid, torch.softmax, torch.log_softmax, F.softmax, F.log_softmax)
}  # fmt: skip
_METHODS = {"relu", "tanh", "contiguous", "flatten", "add", "mean", "sigmoid", "softmax", "log_softmax"}


def save(network: fx.GraphModule, folder: Path | str) -> None:
    """Write a pruned network into a folder, each file whole or not at all.

    Parameters
    ----------
    network : torch.fx.GraphModule
        From `bar.prune`, or any traced network of the operations that pruning knows.
    folder : path
        Made if missing.

    Raises
    ------
    BarError
        If the network has an operation or module that could not be read back.
    """
    folder = Path(folder)
    called = {n.target: network.get_submodule(n.target) for n in network.graph.nodes if n.op == "call_module"}
    architecture = {
        "format": 1,
        "nodes": [_node_to_json(node) for node in network.graph.nodes],
        "modules": {name: _module_to_json(name, module) for name, module in called.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous().cpu() for name, t in network.state_dict().items()}
    partial = folder / f"{WEIGHTS}.{os.getpid()}.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / WEIGHTS)
    write_text(folder / ARCHITECTURE, json.dumps(architecture, indent=1))


def load(folder: Path | str) -> fx.GraphModule:
    """Read the pruned network of a run.

    Parameters
    ----------
    folder : path
        A run's folder, or any other that `save` wrote to.

    Returns
    -------
    torch.fx.GraphModule
        In eval mode, on the CPU.

    Raises
    ------
    BarError
        If a file is missing or damaged, or names anything but plain layers and operations.

    Examples
    --------
    >>> import bar, tempfile
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(bar.prune(bar.gate(net, (1, 6, 6))), folder)
    ...     load(folder)(torch.rand(5, 1, 6, 6)).shape
    torch.Size([5, 2])
    """
    folder = Path(folder)
    for file in (ARCHITECTURE, WEIGHTS):
        if not (folder / file).is_file():
            raise BarError(f"{folder} holds no pruned network: {file} is missing")
    try:
        architecture = json.loads((folder / ARCHITECTURE).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, OSError) as error:
        raise BarError(f"cannot read the pruned network in {folder}: {error}") from error
    try:
        root: dict = {name: _module_from_json(spec) for name, spec in architecture["modules"].items()}
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}
        for spec in architecture["nodes"]:
            target = spec["target"]
            # Names end up in the source that torch.fx writes for the network: a name must be nothing but a name.
            names = [spec["name"], *spec["kwargs"]["kwargs"], *([] if spec["op"] == "call_function" else [target])]
            if not all(_NAME.fullmatch(name) and not keyword.iskeyword(name) for name in names):
                raise ValueError(names)
            if spec["op"] == "call_function":
                target = _FUNCTIONS[target]
            elif target not in {"call_method": _METHODS, "call_module": root}.get(spec["op"], {target}):
                raise KeyError(target)
            elif spec["op"] == "get_attr":
                root[target] = tensors[target]
            args, kwargs = _from_json(spec["args"], made), _from_json(spec["kwargs"], made)
            made[spec["name"]] = graph.create_node(spec["op"], target, tuple(args), kwargs, spec["name"])
        network = fx.GraphModule(root, graph, class_name="Pruned")
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise BarError(f"{folder / ARCHITECTURE} does not describe a pruned network: {error!r}") from error
    return network.requires_grad_(True).eval()


def save_checkpoint(state: dict, folder: Path) -> None:
    """Write the state of a run, whole or not at all; the one before it is kept beside it.

    Parameters
    ----------
    state : dict
        Of tensors, numbers, strings, and lists and dicts of them.
    folder : Path
        Of the run.
    """
    partial = folder / f"{CHECKPOINT}.{os.getpid()}.partial"
    content = io.BytesIO()
    torch.save(state, content)
    with partial.open("wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())  # torch does not notice a changed byte
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    os.replace(partial, folder / CHECKPOINT)


def load_checkpoints(folder: Path, config: dict) -> Iterator[dict]:
    """The states that can be read, the latest first; why another cannot be used is logged as a warning.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : dict
        The run's; a checkpoint that holds another is not used.
    """
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise BarError("it is damaged, or no checkpoint")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            if state["config"] != config:
                raise BarError("it belongs to another run")
        except FileNotFoundError:
            continue
        except (OSError, BarError, pickle.UnpicklingError, KeyError) as error:
            log.warning("%s is not used: %s", path, str(error).strip().splitlines()[0])
        else:
            yield state


def remove_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *folder.glob("*.partial")):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, also when the program is killed in between."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _node_to_json(node: fx.Node) -> dict:
    target = node.target
    if node.op == "call_method" and target not in _METHODS:
        raise BarError(f"{node.name}: the method {target} cannot be saved")
    if node.op == "call_function":
        target = f"{target.__module__}.{target.__name__}"
        if target not in _FUNCTIONS:
            raise BarError(f"{node.name}: {target} cannot be saved")
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": _to_json(node.args),
        "kwargs": _to_json(node.kwargs),
    }


def _to_json(value):
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    if isinstance(value, dict):
        return {"kwargs": {k: _to_json(v) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BarError(f"cannot save an argument of type {type(value).__name__}")


def _from_json(value, made: dict[str, fx.Node]):
    if isinstance(value, list):
        return [_from_json(v, made) for v in value]
    if isinstance(value, dict):
        if "node" in value:
            return made[value["node"]]
        return {k: _from_json(v, made) for k, v in value["kwargs"].items()}
    return value


def _module_to_json(name: str, module: nn.Module) -> dict:
    if type(module) is not _MODULES.get(type(module).__name__):
        raise BarError(f"{name}: {type(module).__name__} cannot be saved")
    options = {}
    for option in inspect.signature(type(module).__init__).parameters:
        if hasattr(module, option):
            value = getattr(module, option)
            options[option] = value is not None if option == "bias" else value
    return {"class": type(module).__name__, "options": options}


def _module_from_json(spec: dict) -> nn.Module:
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["options"].items()}
    with torch.device("meta"):
        return _MODULES[spec["class"]](**options)
