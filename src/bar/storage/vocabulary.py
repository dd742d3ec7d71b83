"""The layers, functions and methods that the file of a network may name, with the options that each may have.

Anything else is refused, so that opening a file cannot run code of its author's choice, or build more than the file's
own tensors account for. Options and arguments are listed in the order of their signatures.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

Check = Callable[[object], bool]
Arguments = dict[str, Check]


def _whole(least: int, most: int) -> Check:
    return lambda v: type(v) is int and least <= v <= most


def is_number(v) -> bool:
    """Whether a value is a number of magnitude at most 1e30."""
    return type(v) in (int, float) and abs(v) <= 1e30  # NaN is not


def is_node(v) -> bool:
    """Whether a value is the output of another node."""
    return isinstance(v, fx.Node)


def _operand(v) -> bool:
    return is_node(v) or is_number(v)


def are_nodes(v) -> bool:
    """Whether a value is a list or tuple of nodes that is not empty."""
    return isinstance(v, list | tuple) and len(v) > 0 and all(map(is_node, v))


def are_outputs(v) -> bool:
    """Whether a value is a node, or lists, tuples and dicts of nodes, none of them empty."""
    if isinstance(v, list | tuple):
        return len(v) > 0 and all(map(are_outputs, v))
    if isinstance(v, dict):
        return len(v) > 0 and all(k.isidentifier() and are_outputs(part) for k, part in v.items())
    return is_node(v)


def _named_outputs(v) -> bool:
    return isinstance(v, dict) and are_outputs(v)


def is_flag(v) -> bool:
    """Whether a value is True or False."""
    return isinstance(v, bool)


def _is_false(v) -> bool:
    return v is False


def _none(v) -> bool:
    return v is None


def _or(*checks: Check) -> Check:
    return lambda v: any(check(v) for check in checks)


def _or_pair(check: Check) -> Check:
    """One for each of up to three dimensions, or one for all."""
    return lambda v: check(v) or (isinstance(v, list | tuple) and 0 < len(v) < 4 and all(map(check, v)))


def _some_of(check: Check, most: int) -> Check:
    return lambda v: isinstance(v, list | tuple) and 0 < len(v) <= most and all(map(check, v))


def _is_index(v) -> bool:
    """Whether a value is one that a tensor may be indexed by."""
    if isinstance(v, slice):
        return all(end is None or type(end) is int or is_node(end) for end in (v.start, v.stop, v.step))
    if isinstance(v, tuple):
        return (
            0 < len(v) <= 8
            and all(_is_index(part) for part in v if not isinstance(part, list))
            and all(_some_of(_PLACE, 2**20)(part) for part in v if isinstance(part, list))
        )
    return v is None or v is Ellipsis or type(v) is int


def _one_of(*texts: str) -> Check:
    return lambda v: isinstance(v, str) and v in texts


_WIDTH, _PLACE, _DIM = _whole(1, 2**24), _whole(0, 2**24), _whole(-8, 8)
_SIDES, _MARGINS = _or_pair(_whole(1, 4096)), _or_pair(_whole(0, 4096))
_SIZE = _or_pair(_or(_whole(1, 4096), _none))
_STRIDE = _or(_SIDES, _none)
_DIMS = _or(_DIM, _none, lambda v: isinstance(v, list | tuple) and 0 < len(v) <= 8 and all(map(_DIM, v)))
_APPROXIMATE = _one_of("none", "tanh")
_SHARE = lambda v: is_number(v) and 0 <= v <= 1  # noqa: E731
_IN_PLACE, INPUT = {"inplace": is_flag}, {"input": is_node}
_NORM = {
    "num_features": _WIDTH, "eps": is_number, "momentum": _or(is_number, _none), "affine": is_flag,
    "track_running_stats": is_flag, "bias": is_flag,
}  # fmt: skip
_CONV = {
    "in_channels": _WIDTH, "out_channels": _WIDTH, "kernel_size": _SIDES, "stride": _SIDES,
    "padding": _or(_MARGINS, _one_of("same", "valid")), "dilation": _SIDES, "groups": _WIDTH, "bias": is_flag,
    "padding_mode": _one_of("zeros", "reflect", "replicate", "circular"),
}  # fmt: skip
_TRANSPOSED = _CONV | {"output_padding": _MARGINS}
_ADAPTIVE, _DROPOUT = {"output_size": _SIZE}, {"p": _SHARE, **_IN_PLACE}
_ADAPTIVE_MAX = _ADAPTIVE | {"return_indices": _is_false}
_MAX = {
    "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "dilation": _SIDES, "return_indices": _is_false,
    "ceil_mode": is_flag,
}  # fmt: skip
_AVERAGE = {
    "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "ceil_mode": is_flag, "count_include_pad": is_flag,
    "divisor_override": _or(_WIDTH, _none),
}  # fmt: skip
_SCALE = _or(_or_pair(lambda v: is_number(v) and 0 < v <= 64), _none)
_RESIZE = {
    "size": _or(_SIDES, _none), "scale_factor": _SCALE,
    "mode": _one_of("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact"),
    "align_corners": _or(is_flag, _none), "recompute_scale_factor": _or(is_flag, _none),
}  # fmt: skip
_EMBEDDING = {
    "num_embeddings": _WIDTH, "embedding_dim": _WIDTH, "padding_idx": _or(_PLACE, _none), "max_norm": _none,
    "scale_grad_by_freq": is_flag, "sparse": is_flag,
}  # fmt: skip
_PADDING = {"padding": _or(_whole(-4096, 4096), _some_of(_whole(-4096, 4096), 6))}
LAYERS: dict[type[nn.Module], Arguments] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _NORM),
    nn.SyncBatchNorm: _NORM,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _NORM),
    nn.GroupNorm: {
        "num_groups": _WIDTH, "num_channels": _WIDTH, "eps": is_number, "affine": is_flag, "bias": is_flag,
    },
    nn.LayerNorm: {
        "normalized_shape": _or(_WIDTH, _some_of(_WIDTH, 8)), "eps": is_number, "elementwise_affine": is_flag,
        "bias": is_flag,
    },
    nn.Upsample: _RESIZE,
    nn.PixelShuffle: {"upscale_factor": _whole(1, 64)},
    nn.PixelUnshuffle: {"downscale_factor": _whole(1, 64)},
    **dict.fromkeys(
        (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
         nn.ReplicationPad2d),
        _PADDING,
    ),
    nn.Linear: {"in_features": _WIDTH, "out_features": _WIDTH, "bias": is_flag},
    nn.Embedding: _EMBEDDING,
    nn.Flatten: {"start_dim": _DIM, "end_dim": _DIM},
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX),
    nn.AvgPool1d: {k: v for k, v in _AVERAGE.items() if k != "divisor_override"},
    **dict.fromkeys((nn.AvgPool2d, nn.AvgPool3d), _AVERAGE),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _ADAPTIVE),
    **dict.fromkeys(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        _ADAPTIVE_MAX,
    ),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _DROPOUT),
    nn.Softplus: {"beta": is_number, "threshold": is_number},
    nn.Threshold: {"threshold": is_number, "value": is_number, **_IN_PLACE},
    nn.LeakyReLU: {"negative_slope": is_number, **_IN_PLACE},
    nn.PReLU: {"num_parameters": _WIDTH, "init": is_number},
    nn.RReLU: {"lower": is_number, "upper": is_number, **_IN_PLACE},
    nn.ELU: {"alpha": is_number, **_IN_PLACE},
    nn.CELU: {"alpha": is_number, **_IN_PLACE},
    nn.GELU: {"approximate": _APPROXIMATE},
    nn.Hardtanh: {"min_val": is_number, "max_val": is_number, **_IN_PLACE},
    nn.Softshrink: {"lambd": is_number},
    nn.Hardshrink: {"lambd": is_number},
    nn.Softmax: {"dim": _or(_DIM, _none)},
    nn.LogSoftmax: {"dim": _or(_DIM, _none)},
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid), _IN_PLACE),
    **{layer: {} for layer in (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Identity, nn.Sigmoid, nn.LogSigmoid)},
}  # fmt: skip
MODULES = {layer.__name__: layer for layer in LAYERS}

_POOL = {"kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS}
_FLATTEN = {**INPUT, "start_dim": _DIM, "end_dim": _DIM}
_MEAN = {**INPUT, "dim": _DIMS, "keepdim": is_flag, "dtype": _none, "axis": _DIMS}
_SOFTMAX = {**INPUT, "dim": _or(_DIM, _none), "dtype": _none}
_F_SOFTMAX = {**INPUT, "dim": _or(_DIM, _none), "_stacklevel": _whole(0, 99), "dtype": _none}
_ADD = {**INPUT, "other": _operand, "alpha": is_number}
_BINARY = {"/left": _operand, "/right": _operand}  # positional only
_EXTENT = _or(_whole(-1, 2**24), is_node)
_UNARY = {**INPUT}
_LIMITS = {**INPUT, "min": _or(is_number, _none), "max": _or(is_number, _none)}
_SUM = {**INPUT, "dim": _DIMS, "keepdim": is_flag, "dtype": _none}
_BOUND = {**INPUT, "dim": _DIMS, "keepdim": is_flag}
_EXTENTS = {f"/{i}": _or(_EXTENT, _some_of(_EXTENT, 8)) for i in range(8)}
_ORDER = {f"/{i}": _or(_DIM, _some_of(_DIM, 8)) for i in range(8)}
_TWO = {**INPUT, "dim0": _DIM, "dim1": _DIM}
_MANY = {"tensors": are_nodes, "dim": _DIM}
_FILTER = {
    **INPUT, "weight": is_node, "bias": _or(is_node, _none), "stride": _SIDES,
    "padding": _or(_MARGINS, _one_of("same")), "dilation": _SIDES, "groups": _WIDTH,
}  # fmt: skip
_POOLS = {**INPUT, **_POOL}
# function -> how many of its arguments must be given, and a check for each
CALLS: dict[Callable, tuple[int, Arguments]] = {
    **dict.fromkeys((F.tanh, F.softsign, F.tanhshrink, torch.relu, torch.selu, torch.tanh, torch.sigmoid), (1, INPUT)),
    **dict.fromkeys((F.relu, F.relu6, F.selu, F.silu, F.mish, F.hardswish), (1, {**INPUT, **_IN_PLACE})),
    F.leaky_relu: (1, {**INPUT, "negative_slope": is_number, **_IN_PLACE}),
    F.elu: (1, {**INPUT, "alpha": is_number, **_IN_PLACE}),
    F.celu: (1, {**INPUT, "alpha": is_number, **_IN_PLACE}),
    torch.celu: (1, {**INPUT, "alpha": is_number}),
    F.gelu: (1, {**INPUT, "approximate": _APPROXIMATE}),
    F.softshrink: (1, {**INPUT, "lambd": is_number}),
    F.hardshrink: (1, {**INPUT, "lambd": is_number}),
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d),
        (2, {**INPUT, **_POOL, "dilation": _SIDES, "ceil_mode": is_flag, "return_indices": _is_false}),
    ),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), (2, {**INPUT, **_AVERAGE})),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), (2, {**INPUT, "output_size": _SIZE})
    ),
    **dict.fromkeys(
        (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        (2, {**INPUT, "output_size": _SIZE, "return_indices": _is_false}),
    ),
    **dict.fromkeys((torch.cat, torch.stack, torch.concat), (1, _MANY)),
    **dict.fromkeys(
        (
            F.sigmoid,
            F.logsigmoid,
            torch.exp,
            torch.abs,
            torch.neg,
            torch.square,
            torch.sqrt,
            torch.sin,
            torch.cos,
            torch.clone,
            torch.log,
            operator.neg,
            operator.abs,
        ),
        (1, _UNARY),
    ),
    F.hardsigmoid: (1, {**INPUT, **_IN_PLACE}),
    F.hardtanh: (1, {**INPUT, "min_val": is_number, "max_val": is_number, **_IN_PLACE}),
    F.softplus: (1, {**INPUT, "beta": is_number, "threshold": is_number}),
    **dict.fromkeys((torch.clamp, torch.clip), (1, _LIMITS)),
    **dict.fromkeys((torch.sub, torch.mul, torch.div), (2, _ADD)),
    **dict.fromkeys((torch.maximum, torch.minimum), (2, {**INPUT, "other": is_node})),
    torch.pow: (2, {**INPUT, "exponent": is_number}),
    torch.sum: (1, _SUM),
    **dict.fromkeys((torch.amax, torch.amin), (1, _BOUND)),
    F.pad: (
        2,
        {
            **INPUT,
            "pad": _some_of(_whole(-4096, 2**24), 8),
            "mode": _one_of("constant", "reflect", "replicate", "circular"),
            "value": _or(is_number, _none),
        },
    ),
    F.interpolate: (1, {**INPUT, **_RESIZE, "antialias": is_flag}),
    F.normalize: (1, {**INPUT, "p": is_number, "dim": _DIM, "eps": is_number, "out": _none}),
    F.pixel_shuffle: (2, {**INPUT, "upscale_factor": _whole(1, 64)}),
    F.pixel_unshuffle: (2, {**INPUT, "downscale_factor": _whole(1, 64)}),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), (2, _FILTER)),
    operator.getitem: (2, {"/signal": is_node, "/index": _is_index}),
    torch.unflatten: (3, {**INPUT, "dim": _DIM, "sizes": _some_of(_whole(1, 2**24), 8)}),
    torch.transpose: (3, _TWO),
    torch.permute: (2, {**INPUT, "dims": _some_of(_DIM, 8)}),
    torch.reshape: (2, {**INPUT, "shape": _some_of(_EXTENT, 8)}),
    torch.flip: (2, {**INPUT, "dims": _some_of(_DIM, 8)}),
    torch.unsqueeze: (2, {**INPUT, "dim": _DIM}),
    torch.squeeze: (2, {**INPUT, "dim": _DIM}),
    torch.matmul: (2, {**INPUT, "other": is_node}),
    F.layer_norm: (
        2,
        {
            **INPUT,
            "normalized_shape": _some_of(_WIDTH, 8),
            "weight": _or(is_node, _none),
            "bias": _or(is_node, _none),
            "eps": is_number,
        },
    ),
    torch.flatten: (1, _FLATTEN),
    torch.narrow: (4, {**INPUT, "dim": _DIM, "start": _PLACE, "length": _PLACE}),
    torch.index_select: (3, {**INPUT, "dim": _DIM, "index": is_node}),
    torch.index_add: (4, {**INPUT, "dim": _DIM, "index": is_node, "source": is_node, "alpha": is_number}),
    torch.mean: (1, _MEAN),
    torch.add: (2, _ADD),
    **dict.fromkeys(
        (operator.add, operator.iadd, operator.sub, operator.mul, operator.truediv, operator.pow), (2, _BINARY)
    ),
    OrderedDict: (1, {"/signals": _named_outputs}),
    torch.softmax: (2, _SOFTMAX),
    torch.log_softmax: (2, _SOFTMAX),
    F.softmax: (1, _F_SOFTMAX),
    F.log_softmax: (1, _F_SOFTMAX),
}
FUNCTIONS = {f"{f.__module__}.{f.__name__}": f for f in CALLS}
METHODS: dict[str, tuple[int, Arguments]] = {
    **dict.fromkeys(
        ("relu", "tanh", "contiguous", "sigmoid", "abs", "neg", "square", "sqrt", "exp", "clone", "t"), (1, INPUT)
    ),
    **dict.fromkeys(("sin", "cos", "float"), (1, INPUT)),
    **dict.fromkeys(("clamp", "clip"), (1, _LIMITS)),
    **dict.fromkeys(("sub", "mul", "div"), (2, _ADD)),
    "pow": (2, {**INPUT, "exponent": is_number}),
    "sum": (1, _SUM),
    **dict.fromkeys(("amax", "amin"), (1, _BOUND)),
    "size": (2, {**INPUT, "dim": _DIM}),
    "new_zeros": (2, {**INPUT, "size": _some_of(_EXTENT, 8)}),
    **dict.fromkeys(("view", "reshape", "expand"), (2, {**INPUT, **_EXTENTS})),
    "expand_as": (2, {**INPUT, "other": is_node}),
    "permute": (2, {**INPUT, **_ORDER}),
    "flip": (2, {**INPUT, **_ORDER}),
    "transpose": (3, _TWO),
    **dict.fromkeys(("squeeze", "unsqueeze"), (2, {**INPUT, "dim": _DIM})),
    "flatten": (1, _FLATTEN),
    "add": (2, _ADD),
    "mean": (1, _MEAN),
    "softmax": (2, _SOFTMAX),
    "log_softmax": (2, _SOFTMAX),
}


def takes(call: tuple[int, Arguments], args: list, kwargs: dict) -> bool:
    """Whether a function accepts the given arguments.

    Parameters
    ----------
    call : (int, dict)
        How many arguments the function needs, and a check for each that it has.
    args, kwargs : list, dict
        The arguments, by position and by name.

    Returns
    -------
    bool
        Whether all are known and valid, none that is needed is missing, and at least one comes from a node.
    """
    needed, checks = call
    names = list(checks)
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys() or not all(k.isidentifier() for k in kwargs):
        return False
    given |= kwargs
    right = all(name in checks and checks[name](value) for name, value in given.items())
    signals = any(
        is_node(v) or are_nodes(v) or _named_outputs(v) for v in given.values()
    )  # an operation on numbers alone is refused
    return right and signals and all(name in given for name in names[:needed])
