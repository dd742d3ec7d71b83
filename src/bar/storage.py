"""Pruned networks on disk: weights as safetensors, architecture as JSON (`bar.load`); and checkpoints of a run."""

import functools
import hashlib
import io
import json
import keyword
import logging
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import fx, nn

from bar import files, schema
from bar.errors import BarError

ARCHITECTURE, WEIGHTS = "network.json", "network.safetensors"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
log = logging.getLogger(__name__)
_PARTIAL = re.compile(r".+\.\d+\.partial")
_FORMAT = 1
# A file from a stranger must not cost more than the network that it describes. A DenseNet-201 has a tenth of this.
_MOST_BYTES, _MOST_NODES, _DEEPEST = 8 * 2**20, 20_000, 4
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# What a file may name, with the options and arguments that it may give, in their order. Anything else in it is refused,
# so that opening one cannot run code of its author's choice, or build what the file's own tensors do not pay for.
_Check = Callable[[object], bool]
_Arguments = dict[str, _Check]


def _whole(least: int, most: int) -> _Check:
    return lambda v: type(v) is int and least <= v <= most


def _number(v) -> bool:
    return type(v) in (int, float) and abs(v) <= 1e30  # NaN is not


def _node(v) -> bool:
    return isinstance(v, fx.Node)


def _operand(v) -> bool:
    return _node(v) or _number(v)


def _nodes(v) -> bool:
    return isinstance(v, list | tuple) and len(v) > 0 and all(map(_node, v))


def _flag(v) -> bool:
    return isinstance(v, bool)


def _no(v) -> bool:
    return v is False


def _none(v) -> bool:
    return v is None


def _or(*checks: _Check) -> _Check:
    return lambda v: any(check(v) for check in checks)


def _or_pair(check: _Check) -> _Check:
    return lambda v: check(v) or (isinstance(v, list | tuple) and len(v) == 2 and all(map(check, v)))


def _one_of(*texts: str) -> _Check:
    return lambda v: isinstance(v, str) and v in texts


_WIDTH, _PLACE, _DIM = _whole(1, 2**24), _whole(0, 2**24), _whole(-8, 8)
_SIDES, _MARGINS = _or_pair(_whole(1, 4096)), _or_pair(_whole(0, 4096))
_SIZE = _or_pair(_or(_whole(1, 4096), _none))
_STRIDE = _or(_SIDES, _none)
_DIMS = _or(_DIM, _none, lambda v: isinstance(v, list | tuple) and 0 < len(v) <= 8 and all(map(_DIM, v)))
_APPROXIMATE = _one_of("none", "tanh")
_SHARE = lambda v: _number(v) and 0 <= v <= 1  # noqa: E731
_IN_PLACE, _INPUT = {"inplace": _flag}, {"input": _node}
_NORM = {
    "num_features": _WIDTH, "eps": _number, "momentum": _or(_number, _none), "affine": _flag,
    "track_running_stats": _flag, "bias": _flag,
}  # fmt: skip
_LAYERS: dict[type[nn.Module], _Arguments] = {
    nn.Conv2d: {
        "in_channels": _WIDTH, "out_channels": _WIDTH, "kernel_size": _SIDES, "stride": _SIDES,
        "padding": _or(_MARGINS, _one_of("same", "valid")), "dilation": _SIDES, "groups": _WIDTH, "bias": _flag,
        "padding_mode": _one_of("zeros", "reflect", "replicate", "circular"),
    },
    nn.BatchNorm2d: _NORM,
    nn.BatchNorm1d: _NORM,
    nn.Linear: {"in_features": _WIDTH, "out_features": _WIDTH, "bias": _flag},
    nn.Flatten: {"start_dim": _DIM, "end_dim": _DIM},
    nn.MaxPool2d: {
        "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "dilation": _SIDES, "return_indices": _no,
        "ceil_mode": _flag,
    },
    nn.AvgPool2d: {
        "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "ceil_mode": _flag, "count_include_pad": _flag,
        "divisor_override": _or(_WIDTH, _none),
    },
    nn.AdaptiveAvgPool2d: {"output_size": _SIZE},
    nn.AdaptiveMaxPool2d: {"output_size": _SIZE, "return_indices": _no},
    nn.Dropout: {"p": _SHARE, **_IN_PLACE},
    nn.Dropout2d: {"p": _SHARE, **_IN_PLACE},
    nn.LeakyReLU: {"negative_slope": _number, **_IN_PLACE},
    nn.PReLU: {"num_parameters": _WIDTH, "init": _number},
    nn.RReLU: {"lower": _number, "upper": _number, **_IN_PLACE},
    nn.ELU: {"alpha": _number, **_IN_PLACE},
    nn.CELU: {"alpha": _number, **_IN_PLACE},
    nn.GELU: {"approximate": _APPROXIMATE},
    nn.Hardtanh: {"min_val": _number, "max_val": _number, **_IN_PLACE},
    nn.Softshrink: {"lambd": _number},
    nn.Hardshrink: {"lambd": _number},
    nn.Softmax: {"dim": _or(_DIM, _none)},
    nn.LogSoftmax: {"dim": _or(_DIM, _none)},
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish), _IN_PLACE),
    **{layer: {} for layer in (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Identity, nn.Sigmoid)},
}  # fmt: skip
_MODULES = {layer.__name__: layer for layer in _LAYERS}

_POOL = {"kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS}
_FLATTEN = {**_INPUT, "start_dim": _DIM, "end_dim": _DIM}
_MEAN = {**_INPUT, "dim": _DIMS, "keepdim": _flag, "dtype": _none, "axis": _DIMS}
_SOFTMAX = {**_INPUT, "dim": _or(_DIM, _none), "dtype": _none}
_F_SOFTMAX = {**_INPUT, "dim": _or(_DIM, _none), "_stacklevel": _whole(0, 99), "dtype": _none}
_ADD = {**_INPUT, "other": _operand, "alpha": _number}
_BINARY = {"/left": _operand, "/right": _operand}  # not to be given by name
# the function, with how many of its arguments must be given
_CALLS: dict[Callable, tuple[int, _Arguments]] = {
    **dict.fromkeys((F.tanh, F.softsign, F.tanhshrink, torch.relu, torch.selu, torch.tanh, torch.sigmoid), (1, _INPUT)),
    **dict.fromkeys((F.relu, F.relu6, F.selu, F.silu, F.mish, F.hardswish), (1, {**_INPUT, **_IN_PLACE})),
    F.leaky_relu: (1, {**_INPUT, "negative_slope": _number, **_IN_PLACE}),
    F.elu: (1, {**_INPUT, "alpha": _number, **_IN_PLACE}),
    F.celu: (1, {**_INPUT, "alpha": _number, **_IN_PLACE}),
    torch.celu: (1, {**_INPUT, "alpha": _number}),
    F.gelu: (1, {**_INPUT, "approximate": _APPROXIMATE}),
    F.softshrink: (1, {**_INPUT, "lambd": _number}),
    F.hardshrink: (1, {**_INPUT, "lambd": _number}),
    F.max_pool2d: (2, {**_INPUT, **_POOL, "dilation": _SIDES, "ceil_mode": _flag, "return_indices": _no}),
    F.avg_pool2d: (
        2,
        {**_INPUT, **_POOL, "ceil_mode": _flag, "count_include_pad": _flag, "divisor_override": _or(_WIDTH, _none)},
    ),
    F.adaptive_avg_pool2d: (2, {**_INPUT, "output_size": _SIZE}),
    F.adaptive_max_pool2d: (2, {**_INPUT, "output_size": _SIZE, "return_indices": _no}),
    torch.cat: (1, {"tensors": _nodes, "dim": _DIM}),
    torch.flatten: (1, _FLATTEN),
    torch.narrow: (4, {**_INPUT, "dim": _DIM, "start": _PLACE, "length": _PLACE}),
    torch.index_select: (3, {**_INPUT, "dim": _DIM, "index": _node}),
    torch.index_add: (4, {**_INPUT, "dim": _DIM, "index": _node, "source": _node, "alpha": _number}),
    torch.mean: (1, _MEAN),
    torch.add: (2, _ADD),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.mul, operator.truediv), (2, _BINARY)),
    torch.softmax: (2, _SOFTMAX),
    torch.log_softmax: (2, _SOFTMAX),
    F.softmax: (1, _F_SOFTMAX),
    F.log_softmax: (1, _F_SOFTMAX),
}
_FUNCTIONS = {f"{f.__module__}.{f.__name__}": f for f in _CALLS}
_METHODS: dict[str, tuple[int, _Arguments]] = {
    **dict.fromkeys(("relu", "tanh", "contiguous", "sigmoid"), (1, _INPUT)),
    "flatten": (1, _FLATTEN),
    "add": (2, _ADD),
    "mean": (1, _MEAN),
    "softmax": (2, _SOFTMAX),
    "log_softmax": (2, _SOFTMAX),
}


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
        If the network has an operation, a module or a name that could not be read back, or a file cannot be written.
    """
    folder = Path(folder)
    nodes = network.graph.nodes
    called = {n.target: network.get_submodule(n.target) for n in nodes if n.op == "call_module"}
    attributes = {n.target: operator.attrgetter(n.target)(network) for n in nodes if n.op == "get_attr"}
    modules = {name: _module_to_json(name, module) for name, module in called.items()}
    tensors = {f"{name}.{key}": t for name, module in called.items() for key, t in module.state_dict().items()}
    for name, tensor in attributes.items():
        if not isinstance(tensor, torch.Tensor):
            raise BarError(f"{name}: {type(tensor).__name__} cannot be saved")
    tensors = {name: t.detach().contiguous().cpu() for name, t in (tensors | attributes).items()}
    try:
        content = safetensors.torch.save(tensors)
    except (RuntimeError, ValueError) as error:  # two names for the same memory, which would come back as two tensors
        raise BarError(f"the network cannot be saved: {' '.join(str(error).split())}") from error
    architecture = {
        "format": _FORMAT,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "nodes": [_node_to_json(node) for node in nodes],
        "modules": modules,
        "parameters": [name for name, tensor in attributes.items() if isinstance(tensor, nn.Parameter)],
    }
    text = json.dumps(architecture, indent=1).encode()
    try:  # what is written can be read back: by the function that reads it
        if len(text) > _MOST_BYTES:
            raise BarError(f"its description has more than {_MOST_BYTES:,} bytes")
        _build(json.loads(text), {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()})
    except BarError as error:
        raise BarError(f"the network cannot be saved: {error}") from error
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, content)
    files.write(folder / ARCHITECTURE, text)


def load(folder: Path | str) -> fx.GraphModule:
    """Read the pruned network of a run.

    Its file may come from anybody: nothing but layers and operations from a list is built, with options within limits,
    and nothing is allocated before all of it has been compared with the tensors that are there.

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
        If a file is missing or damaged, is not the one that the record of the run tells of, or names anything but
        plain layers and operations.

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
    try:
        for file in (ARCHITECTURE, WEIGHTS):
            if not (folder / file).is_file():
                raise BarError(f"{folder} holds no pruned network: {file} is missing")
        with (folder / WEIGHTS).open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise BarError(f"cannot read the pruned network in {folder}: {error.strerror or error}") from error
    if header_bytes > _MOST_BYTES:
        raise BarError(f"cannot read the pruned network in {folder}: {WEIGHTS} is damaged. {_advice(folder)}")
    architecture = schema.load(folder / ARCHITECTURE, "the pruned network", _MOST_BYTES)
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            header = {n: (_DTYPES.get(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
            network = _build(architecture, header)
            if (folder / schema.RESULT).exists():
                verify(folder, schema.read(folder / schema.RESULT, schema.RESULT_FIELDS))
            verify(folder, architecture, ARCHITECTURE)
            network.load_state_dict({name: file.get_tensor(name) for name in header}, assign=True)
        return network.requires_grad_(True).eval()
    except _Undescribed as error:
        raise BarError(
            f"{folder / ARCHITECTURE} does not describe a pruned network: {error}. {_advice(folder)}"
        ) from error
    except BarError:
        raise
    except Exception as error:  # what safetensors and torch raise for a file from anywhere cannot be listed
        raise BarError(
            f"cannot read the pruned network in {folder}: {WEIGHTS}: {_reason(error)}. {_advice(folder)}"
        ) from error


def verify(folder: Path, record: Mapping, source: str = schema.RESULT) -> None:
    """Compare a stored network, as far as it is there, with the hashes in the record of its run.

    Parameters
    ----------
    folder : Path
        Of the run.
    record : mapping
        With "weights_sha256" and "architecture_sha256", or what is known of them.
    source : str
        The file that says so.

    Raises
    ------
    BarError
        If a file is not the one that was written.
    """
    for file, field in ((WEIGHTS, "weights_sha256"), (ARCHITECTURE, "architecture_sha256")):
        path = folder / file
        if record.get(field) is not None and path.exists() and digest(path) != record[field]:
            raise BarError(
                f"{path} is damaged or was changed: it is not what {source} beside it tells of ({field}). "
                + _advice(folder)
            )


def _advice(folder: Path) -> str:
    return f"Restore it, or remove {folder} and run it again"


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BarError(f"cannot read {path}: {error.strerror or error}") from error


def save_checkpoint(state: dict, folder: Path) -> None:
    """Write the state of a run, whole or not at all; the one before it is kept beside it.

    Parameters
    ----------
    state : dict
        Of tensors, numbers, strings, and lists and dicts of them.
    folder : Path
        Of the run.
    """
    content = io.BytesIO()
    torch.save(state, content)
    view = content.getbuffer()
    # the hash comes first: torch does not notice a changed byte
    files.write(folder / CHECKPOINT, hashlib.sha256(view).digest(), view, previous=folder / PREVIOUS)


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
        if not path.exists():
            continue
        try:
            if not path.is_file():  # a pipe would never end
                raise BarError("it is no file")
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise BarError("it is damaged, or no checkpoint")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            if state["config"] | {"format": 0} != config | {"format": 0}:
                raise BarError("it belongs to another run")
            if not (state["training"] and all(r["phase"] for r in state["records"]) and state["seconds"] >= 0):
                raise BarError("it is not that of a run")
        except Exception as error:  # what torch raises for a file from anywhere cannot be listed
            log.warning("%s is not used: %s", path, _reason(error))
        else:
            yield state


def remove_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished run needs, and what writers that were killed have left of their files."""
    partial = [path for path in folder.glob("*.partial") if _PARTIAL.fullmatch(path.name)]
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *partial):
        path.unlink(missing_ok=True)


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
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"kwargs": {k: _to_json(v) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BarError(f"cannot save an argument of type {type(value).__name__}")


def _module_to_json(name: str, module: nn.Module) -> dict:
    layer = type(module)
    if layer not in _LAYERS:
        raise BarError(f"{name}: {layer.__name__} cannot be saved")
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooks:
        what = getattr(hooks[0], "__name__", type(hooks[0]).__name__)
        raise BarError(
            f"{name}: its forward hook ({what}) cannot be saved: remove it first (torch.nn.utils.prune.remove, if it "
            "is a mask)"
        )
    options = {}
    for option in _LAYERS[layer]:
        if hasattr(module, option):
            value = getattr(module, option)
            options[option] = value is not None if option == "bias" else value
    if "affine" in options and options.get("bias") == options["affine"]:
        del options["bias"]  # a batch norm's, which older versions of torch do not know
    return {"class": layer.__name__, "options": options}


def _build(architecture, header: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]) -> fx.GraphModule:
    """The network that is described, on the meta device, if its tensors are exactly those of the header."""
    try:
        return _built(architecture, header)
    except BarError as error:
        raise _Undescribed(str(error)) from error
    except Exception as error:  # what torch raises for odd numbers in its options cannot be listed
        raise _Undescribed(f"{type(error).__name__}: {_reason(error)}") from error


class _Undescribed(BarError):
    """What is wrong with an architecture."""


def _built(architecture, header) -> fx.GraphModule:
    if not isinstance(architecture, dict) or architecture.get("format") != _FORMAT:
        raise BarError(f"it is not of format {_FORMAT}, the only one that this version of bar reads")
    modules, nodes = architecture["modules"], architecture["nodes"]
    parameters = architecture.get("parameters", [])
    if not (isinstance(modules, dict) and isinstance(nodes, list) and isinstance(parameters, list)):
        raise BarError("its modules, nodes or parameters are missing")
    if len(nodes) > _MOST_NODES:
        raise BarError(f"it has more than {_MOST_NODES:,} nodes")
    targets = {op: {n["target"] for n in nodes if n["op"] == op} for op in ("call_module", "get_attr")}
    if targets["call_module"] != modules.keys():
        raise BarError("its modules are not those that its nodes call")
    root = nn.Module()
    for name, spec in sorted(modules.items(), key=lambda item: item[0].count(".")):
        _put(root, name, _module_from_json(name, spec))
    for name in sorted(targets["get_attr"]):
        dtype, shape = header[name]
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        _put(root, name, nn.Parameter(tensor) if name in parameters else tensor)
    network = fx.GraphModule(root, _graph(nodes), class_name="Pruned")
    state = network.state_dict()
    for name in sorted(state.keys() | header.keys()):
        if name not in header or name not in state:
            raise BarError(f"{name} is " + ("missing in " + WEIGHTS if name in state else "no tensor of its layers"))
        dtype, shape = header[name]
        if dtype is None or dtype.is_floating_point != state[name].is_floating_point() or shape != state[name].shape:
            raise BarError(f"{name} is {dtype} of shape {shape} in {WEIGHTS}, not of shape {tuple(state[name].shape)}")
    return network


@functools.cache
def _reserved() -> tuple[frozenset[str], frozenset[str]]:
    """Names that the modules at the top, and those further down, have for themselves."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))), frozenset(dir(nn.Module()))


def _put(root: nn.Module, path: str, value: nn.Module | torch.Tensor) -> None:
    """Hang a layer or a tensor into a tree of modules.

    torch.fx writes the path into source code: as it is where it is an identifier, else between double quotes.
    """
    *parents, last = parts = path.split(".")
    for level, part in enumerate(parts):
        bare = part.isidentifier()  # Python reads identifiers in normal form, and keywords not at all
        if (
            not part.isprintable()
            or not 0 < len(part) <= 200
            or '"' in part
            or "\\" in part
            or (bare and (keyword.iskeyword(part) or unicodedata.normalize("NFKC", part) != part))
            or part in _reserved()[level > 0]
        ):
            raise BarError(f"a module or tensor cannot be called {path!a}")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif last not in root._parameters and last not in root._buffers:  # a layer's own weight, read once more by itself
        if isinstance(value, nn.Parameter):
            root.register_parameter(last, value)
        else:
            root.register_buffer(last, value)


def _module_from_json(name: str, spec: dict) -> nn.Module:
    layer = _MODULES.get(spec["class"])
    if layer is None:
        raise BarError(f"{name!a} is of a class that is not known")
    for option, value in spec["options"].items():
        if option not in _LAYERS[layer] or not _LAYERS[layer][option](value):
            raise BarError(f"{layer.__name__} {name!a} cannot have the option {option!a} that is given")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["options"].items()}
    if "affine" in options and options.get("bias") == options["affine"]:
        del options["bias"]
    with torch.device("meta"):
        return layer(**options)


def _graph(nodes: list) -> fx.Graph:
    """The graph that is described; each node reads only nodes before it."""
    graph, made = fx.Graph(), {}
    for spec in nodes:
        name, op, target = spec["name"], spec["op"], spec["target"]
        # a name goes into the source that torch.fx writes: it must be nothing but one
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w{0,199}", name, re.ASCII)) or name == "self":
            raise BarError(f"a node cannot be called {ascii(name)[:60]}")
        if name in made:
            raise BarError(f"two nodes are called {name}")
        if made and nodes[len(made) - 1]["op"] == "output":
            raise BarError("its output is not the last node")
        args, kwargs = _from_json(spec["args"], made), _from_json(spec["kwargs"], made)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BarError(f"{name} has no lists of arguments")
        if op == "call_function":
            target = _FUNCTIONS[target]
            right = _takes(_CALLS[target], args, kwargs)
        elif op == "call_method":
            right = _takes(_METHODS[target], args, kwargs)
        elif op == "call_module":
            right = _takes((1, _INPUT), args, {}) and not kwargs
        elif op == "get_attr":
            right = not args and not kwargs
        elif op == "placeholder":
            right = len(args) <= 1 and all(v is None or _flag(v) or _number(v) for v in args) and not kwargs
            right = right and isinstance(target, str) and target.isidentifier()
            target = name  # which is a safe one, while torch.fx writes the target into the source as it is
        elif op == "output":
            right = len(args) == 1 and _is_output(args[0]) and not kwargs
        else:
            raise BarError(f"there is no operation {ascii(op)[:60]}")
        if not right:
            raise BarError(f"{name} cannot have the arguments that are given")
        node = graph.create_node(op, target, tuple(args), kwargs, name)
        if op == "placeholder":
            node.target = node.name
        made[name] = node
    if not nodes or nodes[-1]["op"] != "output" or nodes[0]["op"] != "placeholder":
        raise BarError("it has no input, or no output")
    return graph


def _from_json(value, made: Mapping[str, fx.Node], left: int = _DEEPEST):
    if isinstance(value, dict | list) and left == 0:
        raise BarError("arguments are nested too deeply")
    if isinstance(value, list):
        return [_from_json(v, made, left - 1) for v in value]
    if isinstance(value, dict):
        if "node" in value:
            if value["node"] not in made:
                raise BarError(f"a node reads {ascii(value['node'])[:60]}, which is not before it")
            return made[value["node"]]
        return {k: _from_json(v, made, left - 1) for k, v in value["kwargs"].items()}
    return value


def _takes(call: tuple[int, _Arguments], args: list, kwargs: dict) -> bool:
    """Whether arguments are such as a function takes."""
    needed, checks = call
    names = list(checks)
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys() or not all(k.isidentifier() for k in kwargs):
        return False
    given |= kwargs
    right = all(name in checks and checks[name](value) for name, value in given.items())
    signals = any(_node(v) or _nodes(v) for v in given.values())  # two numbers are no signal
    return right and signals and all(name in given for name in names[:needed])


def _is_output(value) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(map(_is_output, value))
    if isinstance(value, dict):
        return len(value) > 0 and all(k.isidentifier() and _is_output(v) for k, v in value.items())
    return _node(value)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
