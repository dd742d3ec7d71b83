"""The layers, functions and methods that the file of a network may name, with the options that each may have.

Anything else is refused, so that opening a file cannot run code of its author's choice, or build more than the file's
own tensors account for. Options and arguments are listed in the order of their signatures.
"""

import operator
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
    return lambda v: check(v) or (isinstance(v, list | tuple) and len(v) == 2 and all(map(check, v)))


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
LAYERS: dict[type[nn.Module], Arguments] = {
    nn.Conv2d: {
        "in_channels": _WIDTH, "out_channels": _WIDTH, "kernel_size": _SIDES, "stride": _SIDES,
        "padding": _or(_MARGINS, _one_of("same", "valid")), "dilation": _SIDES, "groups": _WIDTH, "bias": is_flag,
        "padding_mode": _one_of("zeros", "reflect", "replicate", "circular"),
    },
    nn.BatchNorm2d: _NORM,
    nn.BatchNorm1d: _NORM,
    nn.Linear: {"in_features": _WIDTH, "out_features": _WIDTH, "bias": is_flag},
    nn.Flatten: {"start_dim": _DIM, "end_dim": _DIM},
    nn.MaxPool2d: {
        "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "dilation": _SIDES, "return_indices": _is_false,
        "ceil_mode": is_flag,
    },
    nn.AvgPool2d: {
        "kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS, "ceil_mode": is_flag,
        "count_include_pad": is_flag, "divisor_override": _or(_WIDTH, _none),
    },
    nn.AdaptiveAvgPool2d: {"output_size": _SIZE},
    nn.AdaptiveMaxPool2d: {"output_size": _SIZE, "return_indices": _is_false},
    nn.Dropout: {"p": _SHARE, **_IN_PLACE},
    nn.Dropout2d: {"p": _SHARE, **_IN_PLACE},
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
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish), _IN_PLACE),
    **{layer: {} for layer in (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Identity, nn.Sigmoid)},
}  # fmt: skip
MODULES = {layer.__name__: layer for layer in LAYERS}

_POOL = {"kernel_size": _SIDES, "stride": _STRIDE, "padding": _MARGINS}
_FLATTEN = {**INPUT, "start_dim": _DIM, "end_dim": _DIM}
_MEAN = {**INPUT, "dim": _DIMS, "keepdim": is_flag, "dtype": _none, "axis": _DIMS}
_SOFTMAX = {**INPUT, "dim": _or(_DIM, _none), "dtype": _none}
_F_SOFTMAX = {**INPUT, "dim": _or(_DIM, _none), "_stacklevel": _whole(0, 99), "dtype": _none}
_ADD = {**INPUT, "other": _operand, "alpha": is_number}
_BINARY = {"/left": _operand, "/right": _operand}  # positional only
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
    F.max_pool2d: (2, {**INPUT, **_POOL, "dilation": _SIDES, "ceil_mode": is_flag, "return_indices": _is_false}),
    F.avg_pool2d: (
        2,
        {**INPUT, **_POOL, "ceil_mode": is_flag, "count_include_pad": is_flag, "divisor_override": _or(_WIDTH, _none)},
    ),
    F.adaptive_avg_pool2d: (2, {**INPUT, "output_size": _SIZE}),
    F.adaptive_max_pool2d: (2, {**INPUT, "output_size": _SIZE, "return_indices": _is_false}),
    torch.cat: (1, {"tensors": are_nodes, "dim": _DIM}),
    torch.flatten: (1, _FLATTEN),
    torch.narrow: (4, {**INPUT, "dim": _DIM, "start": _PLACE, "length": _PLACE}),
    torch.index_select: (3, {**INPUT, "dim": _DIM, "index": is_node}),
    torch.index_add: (4, {**INPUT, "dim": _DIM, "index": is_node, "source": is_node, "alpha": is_number}),
    torch.mean: (1, _MEAN),
    torch.add: (2, _ADD),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.mul, operator.truediv), (2, _BINARY)),
    torch.softmax: (2, _SOFTMAX),
    torch.log_softmax: (2, _SOFTMAX),
    F.softmax: (1, _F_SOFTMAX),
    F.log_softmax: (1, _F_SOFTMAX),
}
FUNCTIONS = {f"{f.__module__}.{f.__name__}": f for f in CALLS}
METHODS: dict[str, tuple[int, Arguments]] = {
    **dict.fromkeys(("relu", "tanh", "contiguous", "sigmoid"), (1, INPUT)),
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
    signals = any(is_node(v) or are_nodes(v) for v in given.values())  # an operation on numbers alone is refused
    return right and signals and all(name in given for name in names[:needed])
