"""One table: which calls can be followed, and what each does to the channels of its input.

A row of `TABLE` names modules, functions and methods, and the operation that they are, perhaps under a condition. An
operation says what it does to channels forwards (what its outputs get from its inputs), backwards (what its inputs are
read for), and how it is rebuilt when some channels are gone. To support another call, add a row; to support another
kind of operation, add a class to `bar.network.kinds` or `bar.network.arithmetic`.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from bar.network import views
from bar.network.arithmetic import Filter, Merge, Offset, Pick, Product, Shuffle, Slopes, Unshuffle
from bar.network.kinds import (
    Add,
    Concatenation,
    Convolution,
    Depthwise,
    Flatten,
    Input,
    Linear,
    Norm,
    Opaque,
    Operation,
    Output,
    Whole,
)  # fmt: skip

# `x += y` changes x for every reader of x; torch.fx by itself records x = x + y.
IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

INPUT, OUTPUT, OPAQUE, WHOLE = Input("input"), Output("output"), Opaque("opaque"), Whole("whole")
CONV, DEPTHWISE, NORM, LINEAR = Convolution("conv"), Depthwise("depthwise"), Norm("norm"), Linear("linear")
CHANNELWISE, ADD, CAT, FLATTEN = Operation("channelwise"), Add("add"), Concatenation("cat"), Flatten("flatten")
OFFSET, PICK, MERGE, PRODUCT = Offset("offset"), Pick("pick"), Merge("merge"), Product("product")
SHUFFLE, REPEAT, FILTER, SLOPES = Shuffle("shuffle"), Unshuffle("unshuffle"), Filter("filter"), Slopes("slopes")
OPERATIONS = {
    operation.name: operation
    for operation in (
        INPUT, CONV, DEPTHWISE, NORM, LINEAR, CHANNELWISE, ADD, CAT, FLATTEN, OFFSET, PICK, MERGE, PRODUCT, SHUFFLE,
        REPEAT, FILTER, SLOPES, OUTPUT, OPAQUE, WHOLE,
    )
}  # fmt: skip


def named(name: str) -> Operation:
    """The operation of a name."""
    return OPERATIONS[name]


# Conditions: of a node, and of the module that it calls, if it calls one.


def _always(node: fx.Node, module: nn.Module | None) -> bool:
    return True


def is_depthwise(conv: nn.Module) -> bool:
    """Whether each feature of a convolution reads a single channel."""
    return 1 < conv.groups == conv.in_channels


def _is_depthwise(node: fx.Node, module: nn.Module) -> bool:
    return is_depthwise(module)


def _is_plain(node: fx.Node, module: nn.Module) -> bool:
    """Whether a transposed convolution has one group, and is told no size of its output."""
    return module.groups == 1 and len(node.args) == 1


def _one_slope(node: fx.Node, module: nn.Module) -> bool:
    """Whether all channels share one slope."""
    return module.num_parameters == 1


def _of_signals(ndim: int) -> Callable[[fx.Node, nn.Module | None], bool]:
    """Whether a layer of pixels gets signals of so many dimensions: of one less, it takes images for channels.

    Nor may it return indices.
    """

    def when(node: fx.Node, module: nn.Module | None) -> bool:
        indices = getattr(module, "return_indices", False) or node.kwargs.get("return_indices", False)
        zero = not getattr(module, "value", 0)  # of a constant padding
        return node.meta.get("ndim") == ndim and zero and not indices and len(node.args) < 7

    return when


def _norms_each(node: fx.Node, module: nn.Module) -> bool:
    """Whether a group or instance norm normalises each channel of each image by itself."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    kind = next(kind for kind in views.INSTANCE_NORMS if isinstance(module, kind))
    return node.meta.get("ndim") == 3 + views.INSTANCE_NORMS.index(kind)


def _from_channels_on(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return (module.start_dim, module.end_dim) == (1, -1)
    return (*node.args[1:], *node.kwargs.values()) == (1,)


def _pixels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether pixels become one dimension, or one becomes several."""
    return node.args[1:2] == (2,)


def _two_signals(node: fx.Node, module: None) -> bool:
    return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs


def _two_and_a_factor(node: fx.Node, module: None) -> bool:
    return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and node.kwargs.keys() <= {"alpha"}


def _over_pixels(node: fx.Node, module: None) -> bool:
    """Whether a mean or a sum is taken over pixels only; the number of dimensions is in the node's meta."""
    dims = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("dim", "axis"))][:1]
    if not dims or "ndim" not in node.meta or len(node.all_input_nodes) != 1:
        return False
    dims = dims[0] if isinstance(dims[0], list | tuple) else dims
    return all(isinstance(d, int) and d % node.meta["ndim"] > 1 for d in dims)


def _shrinks_no_channels(node: fx.Node, module: None) -> bool:
    """Whether only pixels are indexed, as in ``x[:, :, ::2, ::2]`` or ``x[:, :, 0]``."""
    index = node.args[1]
    if not isinstance(index, tuple) or any(i is None for i in index):
        return isinstance(index, tuple) and index[:2] == (slice(None),) * 2 and set(index[2:]) == {None}
    if index[0] is Ellipsis:
        return len(index) <= node.meta.get("ndim", 0) - 1 and all(isinstance(i, slice) for i in index[1:])
    return index[:2] == (slice(None),) * 2 and all(isinstance(i, slice | int) or i is Ellipsis for i in index)


def _picks(node: fx.Node, module: None) -> bool:
    """Whether a call selects channels, or adds some of zeros; see `bar.network.movements.picked`."""
    return PICK.written(node)


def _pads_pixels(node: fx.Node, module: None) -> bool:
    """Whether only pixels are padded, with zeros or with copies."""
    sides = (*node.args[1:], node.kwargs.get("pad"))[0]
    value = (*node.args[3:], node.kwargs.get("value"))[0]
    return isinstance(sides, list | tuple) and len(sides) <= 2 * node.meta.get("ndim", 0) - 4 and not value


def _turns_pixels(node: fx.Node, module: None) -> bool:
    dims = [d for a in node.args[1:] for d in (a if isinstance(a, list | tuple) else [a])]
    ndim = node.meta.get("ndim", 0)
    return not node.kwargs and ndim > 2 and all(isinstance(d, int) and d % ndim > 1 for d in dims)


def _at_zero(node: fx.Node, module: nn.Module | None) -> float:
    """What a function of each number by itself makes of zero; NaN if it is none."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    if len(node.all_input_nodes) != 1:
        return torch.nan
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: zero)
        if node.op == "call_module":
            out = module(*args, **kwargs)
        elif node.op == "call_method":
            out = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            out = node.target(*args, **kwargs)
    except Exception:  # an argument of the user's may be anything
        return torch.nan
    return float(out) if out.is_floating_point() and out.shape == zero.shape else torch.nan


def _keeps_zero(node: fx.Node, module: nn.Module | None) -> bool:
    return _at_zero(node, module) == 0


def _moves_zero(node: fx.Node, module: nn.Module | None) -> bool:
    return abs(_at_zero(node, module)) < torch.inf


def _same_filters(node: fx.Node, module: None) -> bool:
    """Whether each channel is filtered by itself, with constant weights and no bias."""
    groups = node.kwargs.get("groups", (*node.args[6:], 1)[0])
    bias = node.kwargs.get("bias", (*node.args[2:], None)[0])
    weight = node.args[1] if len(node.args) > 1 else None
    constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return bias is None and isinstance(groups, int) and groups > 1 and constant


@dataclass(frozen=True)
class Row:
    """Calls that are one operation.

    Attributes
    ----------
    operation : Operation
    calls : tuple
        Classes of modules (subclasses count, too), functions, and names of methods.
    when : callable
        The condition.
    """

    operation: Operation
    calls: tuple
    when: Callable[[fx.Node, nn.Module | None], bool] = _always


# Functions of each number by itself. What they make of zero is tried out.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Tanh, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Hardtanh, nn.Threshold, nn.Sigmoid,
    nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign,
    F.softshrink, F.hardshrink, F.tanhshrink, F.hardtanh, F.threshold, F.sigmoid, F.hardsigmoid, F.softplus,
    F.logsigmoid, torch.relu, torch.selu, torch.celu, torch.tanh, torch.sigmoid, torch.clamp, torch.clip, torch.abs,
    torch.neg, torch.square, torch.sqrt, torch.exp, torch.pow, torch.sign, torch.sin, torch.cos, torch.clone,
    torch.add, torch.sub, torch.mul, torch.div, torch.reciprocal, torch.rsqrt, torch.log, torch.log1p, torch.expm1,
    torch.erf,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.abs, operator.pos,
    "relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "clamp", "clamp_", "clip", "abs", "neg", "square", "sqrt",
    "exp", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "clone", "contiguous", "to", "float",
    "double", "type_as", "log", "sin", "cos",
)  # fmt: skip

# The first row that matches, and whose operation fits the shapes, applies. Channelwise operations act on each channel
# by itself and keep a zero one at zero.
TABLE = (
    Row(DEPTHWISE, views.CONVOLUTIONS[:3], _is_depthwise),
    Row(CONV, views.CONVOLUTIONS[:3]),
    Row(CONV, views.CONVOLUTIONS[3:], _is_plain),
    Row(NORM, views.NORMS),
    Row(NORM, (*views.INSTANCE_NORMS, nn.GroupNorm), _norms_each),
    Row(LINEAR, (nn.Linear,)),
    Row(FLATTEN, (nn.Flatten, torch.flatten, "flatten"), _from_channels_on),
    Row(CHANNELWISE, (torch.flatten, torch.unflatten), _pixels),
    Row(ADD, (operator.add, torch.add, "add", "add_"), _two_signals),
    Row(MERGE, (operator.add, operator.sub, torch.maximum, torch.minimum, torch.max, torch.min), _two_signals),
    Row(MERGE, (torch.add, torch.sub, "add", "add_", "sub", "sub_"), _two_and_a_factor),
    Row(PRODUCT, (operator.mul, torch.mul, torch.multiply, "mul", "mul_"), _two_signals),
    Row(CAT, (torch.cat, torch.concat, torch.concatenate)),
    Row(CHANNELWISE, ("contiguous", "clone", torch.clone)),
    Row(CHANNELWISE, ELEMENTWISE, _keeps_zero),
    Row(OFFSET, ELEMENTWISE, _moves_zero),
    Row(PICK, (torch.narrow, F.pad, operator.getitem), _picks),
    Row(CHANNELWISE, (operator.getitem,), _shrinks_no_channels),
    Row(CHANNELWISE, (F.pad,), _pads_pixels),
    Row(CHANNELWISE, ("transpose", "flip", torch.transpose, torch.flip), _turns_pixels),
    Row(CHANNELWISE, (torch.mean, "mean", torch.sum, "sum", torch.amax, "amax", torch.amin, "amin"), _over_pixels),
    Row(CHANNELWISE, (torch.std, "std", torch.var, "var"), _over_pixels),
    Row(CHANNELWISE, (nn.PReLU,), _one_slope),
    Row(SLOPES, (nn.PReLU,)),
    Row(CHANNELWISE, (
        nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
        nn.ZeroPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d,
        F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d,
    ), _of_signals(3)),
    Row(CHANNELWISE, (
        nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
        nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
        F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    ), _of_signals(4)),
    Row(CHANNELWISE, (
        nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d,
        nn.ZeroPad3d, nn.ReflectionPad3d,
        F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d,
    ), _of_signals(5)),
    Row(CHANNELWISE, (nn.Upsample, F.interpolate)),
    Row(SHUFFLE, (nn.PixelShuffle, F.pixel_shuffle)),
    Row(REPEAT, (nn.PixelUnshuffle, F.pixel_unshuffle)),
    Row(FILTER, (F.conv1d, F.conv2d, F.conv3d), _same_filters),
    Row(CHANNELWISE, (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.RReLU)),
    Row(CHANNELWISE, (nn.Module,), lambda _, module: isinstance(module, views.stochastic_depth())),
)  # fmt: skip


def operations_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[Operation]:
    """The operations that a call may be, in the order of the table; none if features cannot be followed through it."""
    if node.op in ("placeholder", "output"):
        return [INPUT if node.op == "placeholder" else OUTPUT]
    if node.op == "get_attr":
        return []
    module = modules[node.target] if node.op == "call_module" else None

    def names(call) -> bool:
        if isinstance(call, type):
            return isinstance(module, call)
        if isinstance(call, str):
            return node.op == "call_method" and node.target == call
        return node.op == "call_function" and IN_PLACE_OPERATORS.get(node.target, node.target) is call

    return [row.operation for row in TABLE if any(map(names, row.calls)) and row.when(node, module)]
