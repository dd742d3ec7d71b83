"""Layers with fewer channels: plain ones with the gates folded in, or parts of the user's own, times their gates."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.network import views
from bar.network.operations import is_depthwise


def filled(new: nn.Module, old: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Fill a new module on the meta device with these tensors; its mode and what is frozen are those of the old one."""
    for name, tensor in tensors.items():
        if tensor is not None:
            mine, its = getattr(new, name), getattr(old, name)
            filled = torch.empty_like(mine, device=tensor.device).copy_(tensor)
            if isinstance(mine, nn.Parameter):
                filled = nn.Parameter(filled, mine.requires_grad if its is None else its.requires_grad)
            setattr(new, name, filled)
    return new.train(old.training)


def empty_conv(old: nn.Module, outputs: Tensor, inputs: Tensor, depthwise: bool = False) -> nn.Module:
    """A convolution from the channels `inputs` to the features `outputs`, on the meta device."""
    kind = next(kind for kind in views.CONVOLUTIONS if isinstance(old, kind))
    options = {"output_padding": old.output_padding} if old.transposed else {}
    return kind(
        len(inputs), len(outputs), old.kernel_size, old.stride, old.padding, dilation=old.dilation,
        groups=len(inputs) if depthwise else 1, bias=old.bias is not None, padding_mode=old.padding_mode,
        device="meta", dtype=old.weight.dtype, **options,
    )  # fmt: skip


def smaller_conv(
    old: nn.Module, outputs: Tensor, inputs: Tensor, scale: Tensor | None, depthwise: bool = False
) -> nn.Module:
    """The same as `empty_conv`, with the old weights, gate values folded in."""
    new, out = empty_conv(old, outputs, inputs, depthwise), 1 if old.transposed else 0
    weight = old.weight.index_select(out, outputs.to(old.weight.device))
    if not depthwise:
        weight = weight.index_select(1 - out, inputs.to(old.weight.device))
    factor = torch.ones_like(weight[:1, 0].flatten()[:1]) if scale is None else scale[outputs]
    bias = None if old.bias is None else old.bias[outputs] * factor
    return filled(new, old, weight=weight * _along(factor, out, weight), bias=bias)


def _along(factor: Tensor, dim: int, weight: Tensor) -> Tensor:
    """A factor for each feature, in the shape of a weight that has its features in this dimension."""
    return factor.view(*[1] * dim, -1, *[1] * (weight.ndim - dim - 1))


def smaller_slopes(old: nn.PReLU, channels: Tensor) -> nn.PReLU:
    """The activation of some channels."""
    return filled(nn.PReLU(len(channels), device="meta", dtype=old.weight.dtype), old, weight=old.weight[channels])


def smaller_linear(old: nn.Linear, inputs: Tensor) -> nn.Linear:
    new = nn.Linear(len(inputs), old.out_features, old.bias is not None, "meta", old.weight.dtype)
    return filled(new, old, weight=old.weight[:, inputs], bias=old.bias)


def empty_norm(old: nn.Module, width: int, affine: bool, dtype: torch.dtype) -> nn.Module:
    """A batch, instance or group norm of so many channels, on the meta device."""
    options = {"device": "meta", "dtype": dtype}
    if old.affine and old.bias is None:
        options["bias"] = False
    if isinstance(old, nn.GroupNorm):
        return nn.GroupNorm(width, width, old.eps, affine, **options)
    kind = next(kind for kind in (*views.NORMS, *views.INSTANCE_NORMS) if isinstance(old, kind))
    return kind(width, old.eps, old.momentum, affine, old.running_mean is not None, **options)


def smaller_norm(old: nn.Module, channels: Tensor, scale: Tensor | None, learns: bool) -> nn.Module:
    """The norm of some channels, gate values folded into its weights, which it gets if it has none."""
    mean, var = (getattr(old, name, None) for name in ("running_mean", "running_var"))
    counted = None if mean is None else old.num_batches_tracked
    like = next((t for t in (old.weight, scale, mean) if t is not None), torch.empty(0))
    new = empty_norm(old, len(channels), old.affine or scale is not None, like.dtype)
    new.requires_grad_(learns)  # where the old one has such a parameter, its setting counts
    factor = torch.ones_like(like) if scale is None else scale
    weight = old.weight if old.affine else torch.ones_like(factor)
    bias = old.bias if old.affine else torch.zeros_like(factor)
    if counted is None and mean is not None:
        new.num_batches_tracked = None
    return filled(
        new, old,
        weight=None if new.weight is None else (weight * factor)[channels],
        bias=None if new.bias is None else (bias * factor)[channels],
        running_mean=None if mean is None else mean[channels], running_var=None if var is None else var[channels],
        num_batches_tracked=counted,
    )  # fmt: skip


class PartOfConv(nn.Module):
    """Some features of a convolution, from some of its inputs."""

    def __init__(self, whole: nn.Module, smaller: nn.Module, outputs: Tensor, inputs: Tensor | None) -> None:
        super().__init__()
        self.whole = whole
        self._options = (smaller,)  # in a tuple, so that its weights, which have no values, are not registered
        self._out = 1 if whole.transposed else 0  # the dimension of the weight that is features
        self.register_buffer("outputs", _some(outputs, whole.weight.shape[self._out]))
        self.register_buffer("inputs", None if inputs is None else _some(inputs, whole.weight.shape[1 - self._out]))

    @property
    def options(self) -> nn.Module:
        """Stride, padding and the like, as those of a convolution without weights."""
        return self._options[0]

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        weight = _select(_select(self.whole.weight, self.outputs, self._out), self.inputs, 1 - self._out)
        bias = _select(self.whole.bias, self.outputs)
        if z is not None:
            z = _select(z, self.outputs)
            weight, bias = weight * _along(z, self._out, weight), None if bias is None else bias * z
        options = self.options
        if options.transposed:
            function = _TRANSPOSED[len(options.kernel_size) - 1]
            return function(
                signal, weight, bias, options.stride, options.padding, options.output_padding, 1, options.dilation
            )
        return options._conv_forward(signal, weight, bias)


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class PartOfSlopes(nn.Module):
    """An activation with a parameter for each channel, of some channels."""

    def __init__(self, whole: nn.PReLU, channels: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("channels", _some(channels, whole.num_parameters))

    def forward(self, signal: Tensor) -> Tensor:
        return F.prelu(signal, _select(self.whole.weight, self.channels))


class PartOfNorm(nn.Module):
    """Some channels of a norm of each channel; the running statistics of the others stay as they are."""

    def __init__(self, whole: nn.Module, channels: Tensor) -> None:
        super().__init__()
        self.whole = whole
        width = whole.num_channels if isinstance(whole, nn.GroupNorm) else whole.num_features
        self.register_buffer("channels", _some(channels, width))

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        whole, channels = self.whole, self.channels
        weight, bias = _select(whole.weight, channels), _select(whole.bias, channels)
        if z is not None:
            z = _select(z, channels)
            weight, bias = z if weight is None else weight * z, None if bias is None else bias * z
        if isinstance(whole, nn.GroupNorm):
            return F.group_norm(signal, signal.shape[1], weight, bias, whole.eps)
        mean, var = _select(whole.running_mean, channels), _select(whole.running_var, channels)
        tracks, momentum = whole.training and mean is not None, whole.momentum
        instances = isinstance(whole, views.INSTANCE_NORMS)
        if tracks and not instances and whole.num_batches_tracked is not None:  # instance norms do not count batches
            whole.num_batches_tracked.add_(1)
            momentum = 1 / float(whole.num_batches_tracked) if momentum is None else momentum
        function = F.instance_norm if instances else F.batch_norm
        own = whole.training or mean is None  # whether with the statistics of what comes in
        out = function(signal, mean, var, weight, bias, own, momentum or 0.0, whole.eps)
        if tracks and channels is not None:
            whole.running_mean[channels], whole.running_var[channels] = mean, var
        return out


class OutOfPlace(nn.Module):
    """A layer of the user's with its current options and mode, but not in place."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, signal: Tensor) -> Tensor:
        layer = self.whole
        if layer.inplace:
            layer = copy.copy(layer)  # a shallow one
            layer.inplace = False
        return layer(signal)


class PartOfLinear(nn.Module):
    """A linear layer on some of its inputs."""

    def __init__(self, whole: nn.Linear, inputs: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("inputs", _some(inputs, whole.in_features))

    def forward(self, signal: Tensor) -> Tensor:
        return F.linear(signal, _select(self.whole.weight, self.inputs, 1), self.whole.bias)


def _some(channels: Tensor, width: int) -> Tensor | None:
    """Channels to select, or None if they are all, in their order."""
    return None if torch.equal(channels, torch.arange(width)) else channels


def _select(tensor: Tensor | None, channels: Tensor | None, dim: int = 0) -> Tensor | None:
    return tensor if tensor is None or channels is None else tensor.index_select(dim, channels)


class Plain:
    """Makes the layers of a plain network: smaller copies, with the values of gates folded in."""

    name = "Pruned"
    takes_gates = False

    def __init__(self) -> None:
        self._copies: dict = {}  # what is one object in the user's network stays one

    def convolution(self, old: nn.Module, outputs: Tensor, inputs: Tensor, scale: Tensor | None) -> nn.Module:
        """From the channels `inputs` to the features `outputs`."""
        return smaller_conv(old, outputs, inputs, scale, is_depthwise(old))

    def norm(self, old: nn.Module, channels: Tensor, scale: Tensor | None, learns: bool) -> nn.Module:
        """Of these channels; `learns` says whether a weight that it did not have before is trained."""
        return smaller_norm(old, channels, scale, learns)

    def linear(self, old: nn.Linear, inputs: Tensor) -> nn.Linear:
        """From the columns `inputs`."""
        return smaller_linear(old, inputs)

    def slopes(self, old: nn.PReLU, channels: Tensor) -> nn.Module:
        """Of these channels."""
        return smaller_slopes(old, channels)

    def parameter(self, old: Tensor, dim: int, channels: Tensor) -> Tensor | None:
        """Some of a parameter's numbers; None if it must stay whole."""
        part = old.detach().index_select(dim, channels.to(old.device))
        return nn.Parameter(part, old.requires_grad) if isinstance(old, nn.Parameter) else part

    def unchanged(self, old: nn.Module) -> nn.Module:
        """The same, not in place: where a block has been removed, its input and its output are one tensor."""
        new = copy.deepcopy(old)
        if hasattr(new, "inplace"):
            new.inplace = False
        return new

    def copied(self, old: nn.Module | Tensor) -> nn.Module | Tensor:
        """The same."""
        if isinstance(old, nn.Module):  # what is computed from weights, as by weight norm, cannot be copied by torch
            plain = [t for m in old.modules() for t in vars(m).values() if isinstance(t, Tensor)]
            self._copies |= {id(t): t.detach().clone() for t in plain if id(t) not in self._copies}
        return copy.deepcopy(old, self._copies)


class Gated:
    """Makes the layers of a network with gates: they compute with what is kept of its own weights, times the gates.

    Parameters keep their names, their shapes and their places in an optimizer. Gates multiply weights, which costs less
    than multiplying feature maps.
    """

    name = "Gated"
    takes_gates = True

    def convolution(self, old: nn.Module, outputs: Tensor, inputs: Tensor, scale: fx.Proxy | None) -> nn.Module:
        """From the channels `inputs` to the features `outputs`."""
        depthwise = is_depthwise(old)
        return PartOfConv(old, empty_conv(old, outputs, inputs, depthwise), outputs, None if depthwise else inputs)

    def norm(self, old: nn.Module, channels: Tensor, scale: fx.Proxy | None, learns: bool) -> nn.Module:
        """Of these channels."""
        return PartOfNorm(old, channels)

    def linear(self, old: nn.Linear, inputs: Tensor) -> nn.Module:
        """From the columns `inputs`."""
        return PartOfLinear(old, inputs)

    def slopes(self, old: nn.PReLU, channels: Tensor) -> nn.Module:
        """Of these channels."""
        return PartOfSlopes(old, channels)

    def parameter(self, old: Tensor, dim: int, channels: Tensor) -> Tensor | None:
        """None: it keeps its shape, and what reads it selects."""
        return None

    def unchanged(self, old: nn.Module) -> nn.Module:
        """The same, not in place: where a block has been removed, its input and its output are one tensor."""
        return OutOfPlace(old) if hasattr(old, "inplace") else old

    def copied(self, old: nn.Module | Tensor) -> nn.Module | Tensor:
        """The very same."""
        return old
