"""The convolutions that run inside of a call, whoever makes them: a layer, `F.conv2d`, or a script."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CALLS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)  # the latter, of traced scripts

_ATEN = torch.ops.aten
_COMPOSED = (  # in inference mode, torch hands these over as they are
    _ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.conv3d.default,
    _ATEN.conv3d.padding, _ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input,
    _ATEN._convolution_mode.default,
)  # fmt: skip


class Convolutions(TorchDispatchMode):
    """Notes the work of each convolution while it is entered; of this thread only.

    Parameters
    ----------
    images : int
        How many images the batches hold that are given meanwhile.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _COMPOSED:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func in _CALLS and len(out):
            self.note(out, *self._work(out, *args[:2], transposed=args[6]))
        return out

    def note(self, out: Tensor, volume: int, flops: int) -> None:
        """Take down how many numbers a convolution has returned for one image, and its FLOPs."""
        raise NotImplementedError

    def _work(self, out: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, int]:
        # multiply-accumulates: behind each number that comes out, or of a transposed one, that goes in
        numbers = (x if transposed else out)[0].numel()
        maps = times(len(out), self.images)
        return maps * out[0].numel(), 2 * maps * numbers * weight[0].numel()


class Total(Convolutions):
    """The volume and the FLOPs of all of them together, for one image.

    Examples
    --------
    >>> with Total(images=2) as total:
    ...     _ = torch.nn.functional.conv2d(torch.zeros(2, 3, 6, 6), torch.zeros(8, 3, 3, 3))
    >>> total.volume, total.flops  # 8 maps of 4 x 4, each number of which is a sum of 27 products
    (128, 6912)
    """

    volume = flops = 0

    def note(self, out: Tensor, volume: int, flops: int) -> None:
        self.volume += volume
        self.flops += flops


def times(batch: int, images: int) -> int:
    """How often a layer with a batch of this size runs for one of so many images: frames, pairs or patches of it."""
    return max(1, batch // images)
