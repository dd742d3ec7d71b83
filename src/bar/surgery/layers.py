"""Layers with fewer channels: plain ones with the gates folded in, or parts of the user's own, times their gates."""

import copy

import torch
from torch import Tensor, fx, nn

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


def empty_conv(old: nn.Conv2d, outputs: Tensor, inputs: Tensor, depthwise: bool = False) -> nn.Conv2d:
    """A convolution from the channels `inputs` to the features `outputs`, on the meta device."""
    return nn.Conv2d(
        len(inputs), len(outputs), old.kernel_size, old.stride, old.padding, old.dilation,
        len(inputs) if depthwise else 1, old.bias is not None, old.padding_mode, "meta", old.weight.dtype,
    )  # fmt: skip


def smaller_conv(
    old: nn.Conv2d, outputs: Tensor, inputs: Tensor, scale: Tensor | None, depthwise: bool = False
) -> nn.Conv2d:
    """The same as `empty_conv`, with the old weights, gate values folded in."""
    new = empty_conv(old, outputs, inputs, depthwise)
    factor = torch.ones_like(old.weight[:, 0, 0, 0]) if scale is None else scale
    weight = old.weight[outputs] if depthwise else old.weight[outputs][:, inputs]
    bias = None if old.bias is None else old.bias[outputs] * factor[outputs]
    return filled(new, old, weight=weight * factor[outputs, None, None, None], bias=bias)


def smaller_linear(old: nn.Linear, inputs: Tensor) -> nn.Linear:
    new = nn.Linear(len(inputs), old.out_features, old.bias is not None, "meta", old.weight.dtype)
    return filled(new, old, weight=old.weight[:, inputs], bias=old.bias)


def smaller_norm(old: nn.BatchNorm2d, channels: Tensor, scale: Tensor | None, learns: bool) -> nn.BatchNorm2d:
    affine, track, weight, bias = old.affine or scale is not None, old.track_running_stats, None, None
    like = next((t for t in (old.weight, scale, old.running_mean) if t is not None), torch.empty(0))
    new = nn.BatchNorm2d(len(channels), old.eps, old.momentum, affine, track, "meta", like.dtype)
    if affine:
        new.requires_grad_(learns)  # where the old one has such a parameter, its setting counts
        factor = torch.ones_like(like) if scale is None else scale
        weight = old.weight if old.affine else torch.ones_like(factor)
        bias = old.bias if old.affine else torch.zeros_like(factor)
        weight, bias = (weight * factor)[channels], (bias * factor)[channels]
    mean, var = (old.running_mean[channels], old.running_var[channels]) if track else (None, None)
    return filled(new, old, weight=weight, bias=bias, running_mean=mean, running_var=var,
                   num_batches_tracked=old.num_batches_tracked if track else None)  # fmt: skip


class PartOfConv(nn.Module):
    """Some features of a convolution, from some of its inputs."""

    def __init__(self, whole: nn.Conv2d, smaller: nn.Conv2d, outputs: Tensor, inputs: Tensor | None) -> None:
        super().__init__()
        self.whole = whole
        self._options = (smaller,)  # in a tuple, so that its weights, which have no values, are not registered
        self.register_buffer("outputs", _some(outputs, whole.weight.shape[0]))
        self.register_buffer("inputs", None if inputs is None else _some(inputs, whole.weight.shape[1]))

    @property
    def options(self) -> nn.Conv2d:
        """Stride, padding and the like, as those of a convolution without weights."""
        return self._options[0]

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        weight = _select(_select(self.whole.weight, self.outputs), self.inputs, 1)
        bias = _select(self.whole.bias, self.outputs)
        if z is not None:
            z = _select(z, self.outputs)
            weight, bias = weight * z[:, None, None, None], None if bias is None else bias * z
        return self.options._conv_forward(signal, weight, bias)


class PartOfNorm(nn.Module):
    """Some channels of a batch norm; the running statistics of the others stay as they are."""

    def __init__(self, whole: nn.BatchNorm2d, channels: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("channels", _some(channels, whole.num_features))

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        whole, channels = self.whole, self.channels
        tensors = (whole.running_mean, whole.running_var, whole.weight, whole.bias)
        mean, var, weight, bias = (_select(tensor, channels) for tensor in tensors)
        if z is not None:
            z = _select(z, channels)
            weight, bias = z if weight is None else weight * z, torch.zeros_like(z) if bias is None else bias * z
        tracks, momentum = whole.training and mean is not None, whole.momentum
        if tracks:
            whole.num_batches_tracked.add_(1)
            momentum = 1 / float(whole.num_batches_tracked) if momentum is None else momentum
        batch = whole.training or mean is None
        out = nn.functional.batch_norm(signal, mean, var, weight, bias, batch, momentum or 0.0, whole.eps)
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
        return nn.functional.linear(signal, _select(self.whole.weight, self.inputs, 1), self.whole.bias)


def _some(channels: Tensor, width: int) -> Tensor | None:
    """Channels to select, or None if they are all, in their order."""
    return None if torch.equal(channels, torch.arange(width)) else channels


def _select(tensor: Tensor | None, channels: Tensor | None, dim: int = 0) -> Tensor | None:
    return tensor if tensor is None or channels is None else tensor.index_select(dim, channels)


class Plain:
    """Makes the layers of a plain network: smaller copies, with the values of gates folded in."""

    name = "Pruned"
    takes_gates = False

    def convolution(self, old: nn.Conv2d, outputs: Tensor, inputs: Tensor, scale: Tensor | None) -> nn.Conv2d:
        """From the channels `inputs` to the features `outputs`."""
        return smaller_conv(old, outputs, inputs, scale, is_depthwise(old))

    def norm(self, old: nn.BatchNorm2d, channels: Tensor, scale: Tensor | None, learns: bool) -> nn.BatchNorm2d:
        """Of these channels; `learns` says whether a weight that it did not have before is trained."""
        return smaller_norm(old, channels, scale, learns)

    def linear(self, old: nn.Linear, inputs: Tensor) -> nn.Linear:
        """From the columns `inputs`."""
        return smaller_linear(old, inputs)

    def unchanged(self, old: nn.Module) -> nn.Module:
        """The same, not in place: where a block has been removed, its input and its output are one tensor."""
        new = copy.deepcopy(old)
        if hasattr(new, "inplace"):
            new.inplace = False
        return new

    def copied(self, old: nn.Module | Tensor) -> nn.Module | Tensor:
        """The same."""
        return copy.deepcopy(old)


class Gated:
    """Makes the layers of a network with gates: they compute with what is kept of its own weights, times the gates.

    Parameters keep their names, their shapes and their places in an optimizer. Gates multiply weights, which costs less
    than multiplying feature maps.
    """

    name = "Gated"
    takes_gates = True

    def convolution(self, old: nn.Conv2d, outputs: Tensor, inputs: Tensor, scale: fx.Proxy | None) -> nn.Module:
        """From the channels `inputs` to the features `outputs`."""
        depthwise = is_depthwise(old)
        return PartOfConv(old, empty_conv(old, outputs, inputs, depthwise), outputs, None if depthwise else inputs)

    def norm(self, old: nn.BatchNorm2d, channels: Tensor, scale: fx.Proxy | None, learns: bool) -> nn.Module:
        """Of these channels."""
        return PartOfNorm(old, channels)

    def linear(self, old: nn.Linear, inputs: Tensor) -> nn.Module:
        """From the columns `inputs`."""
        return PartOfLinear(old, inputs)

    def unchanged(self, old: nn.Module) -> nn.Module:
        """The same, not in place: where a block has been removed, its input and its output are one tensor."""
        return OutOfPlace(old) if hasattr(old, "inplace") else old

    def copied(self, old: nn.Module | Tensor) -> nn.Module | Tensor:
        """The very same."""
        return old
