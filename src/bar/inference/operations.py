"""The functions that the graph of a folded network calls."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _named_by_package(operation: Callable) -> Callable:
    """Let graphs, and files that hold them, name a function as ``bar.inference.x``, wherever it is defined."""
    operation.__module__ = __package__
    return operation


@_named_by_package
def make_room(signal: Tensor, channels: int) -> Tensor:
    """A copy of a signal, shape (N, channels, height, width), with zero channels appended up to `channels`."""
    return F.pad(signal, (0, 0, 0, 0, 0, channels - signal.shape[1]))


@_named_by_package
def add_slices_(signal: Tensor, delta: Tensor, stretches: list[tuple[int, int, int]]) -> Tensor:
    """Add in place, slice by slice: (first channel of the signal, first of delta, length)."""
    if signal.shape[2:] != delta.shape[2:] and stretches == [(0, 0, signal.shape[1])]:
        return signal + delta  # broadcast, as no pruned network does
    for place, entry, length in stretches:
        signal.narrow(1, place, length).add_(delta.narrow(1, entry, length))
    return signal


@_named_by_package
def add_gathered_(signal: Tensor, delta: Tensor, fetch: Tensor) -> Tensor:
    """Add in place: channel c of the signal gets channel fetch[c] of delta, or zero where that is one past its last."""
    signal.narrow(1, 0, len(fetch)).add_(F.pad(delta, (0, 0, 0, 0, 0, 1))[:, fetch])
    return signal


@_named_by_package
def scale_and_shift(signal: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm in eval mode as one multiply-add, scale and shift of shape (channels, 1, 1)."""
    n, channels, height, width = signal.shape
    if channels > 32 or signal.numel() < 2**16 or not signal.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(shift, signal, scale)
    # A loop over few channels is too short for a CPU: go along a whole row of pixels.
    rows = signal.permute(0, 2, 3, 1).view(n, height, width * channels)
    out = torch.addcmul(shift.flatten().repeat(width), rows, scale.flatten().repeat(width))
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)
