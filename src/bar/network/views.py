"""Layers with a forward of their own that calls the layer's own function: seen as the plain layer that they are.

Many libraries write ``class BatchNormAct(nn.BatchNorm2d)``, whose forward calls `F.batch_norm` with the module's own
tensors and then an activation, or a convolution that pads its input first. A *view* is an object of the plain class
with the same parameters and buffers, in the same dictionaries: what is trained, loaded or moved in one is so in the
other.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVOLUTIONS = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
_FUNCTIONS = _CONVOLUTIONS | {F.linear: nn.Linear, F.batch_norm: nn.BatchNorm2d}
CONVOLUTIONS = (*_CONVOLUTIONS.values(), nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def stochastic_depth() -> tuple[type[nn.Module], ...]:
    """torchvision's `StochasticDepth`, if torchvision has been imported: where it has not, no network has such a layer.

    Importing it takes as long as importing torch, and most networks do not need it.
    """
    loaded = sys.modules.get("torchvision.ops")
    return (loaded.StochasticDepth,) if hasattr(loaded, "StochasticDepth") else ()


def seen(module: nn.Module, path: str, function: Callable, args: tuple, kwargs: dict) -> nn.Module | None:
    """The plain layer that a call inside a module's forward amounts to; None if it is another call."""

    def named(names: tuple[str, ...]) -> dict:
        return dict(zip(names, args[1:], strict=False)) | kwargs

    def own(given: dict, names: tuple[str, ...]) -> bool:
        """Whether arguments are the module's own tensors of these names."""
        for name in names:
            value = given.get(name)
            if isinstance(value, fx.Proxy):
                right = value.node.op == "get_attr" and value.node.target == f"{path}.{name}"
            else:
                right = value is getattr(module, name, None)
            if not right:
                return False
        return True

    kind = _FUNCTIONS.get(function)
    kinds = NORMS[:3] if kind is nn.BatchNorm2d else (kind,)
    kind = next((k for k in kinds if k is not None and isinstance(module, k)), None)
    if kind is None or type(module).forward is kind.forward:
        return None
    given = named(_NORM_ARGUMENTS if kind in NORMS else _CONVOLUTION_ARGUMENTS)
    if not own(given, _NORM_ARGUMENTS[:4] if kind in NORMS else _CONVOLUTION_ARGUMENTS[:2]):
        return None
    if kind in NORMS:
        return _view(module, kind) if _same_norm(module, given) else None
    return _view(module, kind) if kind is nn.Linear else _convolution(module, kind, given)


_CONVOLUTION_ARGUMENTS = ("weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def _same_norm(module: nn.Module, given: dict) -> bool:
    """Whether a batch norm's own forward normalises as the plain one does."""
    training = module.training or module.running_mean is None
    momentum = given.get("momentum", 0.1) == module.momentum or not training
    right = given.get("eps", 1e-5) == module.eps and bool(given.get("training", False)) == training
    return right and momentum and module.momentum is not None


def _view(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """An object of another class with the very same attributes, mode and hooks included."""
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", vars(module))
    return view


def _convolution(module: nn.Module, kind: type[nn.Module], given: dict) -> nn.Module:
    """A convolution with the same weights, and the options of the call."""
    sides = len(module.kernel_size)

    def each(value) -> tuple[int, ...]:
        return (value,) * sides if isinstance(value, int) else tuple(value)

    view = kind.__new__(kind)
    vars(view).update(vars(module))
    padding = given.get("padding", 0)
    padding = padding if isinstance(padding, str) else each(padding)
    vars(view).update(
        stride=each(given.get("stride", 1)), padding=padding, dilation=each(given.get("dilation", 1)),
        groups=given.get("groups", 1), padding_mode="zeros",
    )  # fmt: skip
    return view


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two views are the same layer."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return all(getattr(one, name, None) == getattr(other, name, None) for name in names)


def on_meta_like(view: nn.Module) -> nn.Module:
    """A layer on the meta device that returns what has the shape of what a view returns."""
    twin = type(view).__new__(type(view))
    tensors = {
        kind: {k: None if t is None else _empty(t) for k, t in vars(view)[kind].items()}
        for kind in ("_parameters", "_buffers")
    }
    vars(twin).update(vars(view) | tensors | {"training": False})
    return twin


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
