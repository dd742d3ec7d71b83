"""Batches: cropping, flipping and normalising work on a whole batch on its device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bar.data.splits import Split
from bar.errors import BarError


def num_batches(images: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches that `batches` yields.

    Parameters
    ----------
    images, batch_size : int
        At least 1 each. Fewer images than a batch holds are one batch.
    drop_last : bool
        Whether an incomplete last batch is left out.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> num_batches(1077, 64, drop_last=True), num_batches(1077, 64, drop_last=False), num_batches(5, 64, True)
    (16, 17, 1)
    """
    batch_size = min(batch_size, images)
    return images // batch_size if drop_last else -(-images // batch_size)


def batches(
    split: Split,
    batch_size: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator | None = None,
    augment: tuple[int, bool] | None = None,
    drop_last: bool | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a split once, in normalised batches.

    Parameters
    ----------
    split : Split
        Must not be empty.
    batch_size : int
        At least 1. A smaller split is one batch.
    mean, std : tuple of float, (C,)
        A batch is ``(images / 255 - mean) / std``; std > 0.
    generator : torch.Generator, optional
        On the CPU. Shuffles, and moves and mirrors images; it advances once, before the first batch, so its state
        at the start of an epoch is all that is needed to repeat or resume there, on any device. Without it images
        come in their order.
    augment : (int, bool), optional
        ``(padding, flip)``: each image is padded with that many black pixels on each side and cropped at random to
        its former size, then mirrored with probability 1/2 if ``flip``. Needs a generator.
    drop_last : bool, optional
        Leave out an incomplete last batch. Default: when there is a generator, because the batch norm of a
        training network cannot use a single image whose map is 1x1.
    device : device, optional
        Where batches go, and are augmented. Default: the split's.

    Yields
    ------
    images : Tensor, float32, (B, C, H, W)
    labels : Tensor, int64, (B,)

    Raises
    ------
    BarError
        If the split is empty, ``batch_size``, ``padding`` or a std is out of range, there are not as many means or stds
        as channels, or a generator is missing.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits")
    >>> x, y = next(batches(digits.test, 100, mean=digits.mean, std=digits.std))
    >>> x.shape, y.shape
    (torch.Size([100, 3, 16, 16]), torch.Size([100]))
    """
    if len(split) == 0:
        raise BarError("there is no image to make a batch of")
    if batch_size < 1:
        raise BarError(f"batch_size is {batch_size}, must be at least 1")
    channels = split.images.shape[1]
    if not (len(mean) == len(std) == channels and min(std) > 0):
        raise BarError(f"mean and std must be {channels} numbers each, those of std above 0, not {mean} and {std}")
    if augment is not None and generator is None:
        raise BarError("augment needs a generator, from which to draw the shifts")
    padding, flip = augment or (0, False)
    if padding < 0:
        raise BarError(f"padding is {padding}, must be 0 or more pixels")
    drop_last = generator is not None if drop_last is None else drop_last
    return _batches(split, batch_size, mean, std, generator, padding, flip, drop_last, device)


def _batches(split, batch_size, mean, std, generator, padding, flip, drop_last, device):
    count = len(split)
    home, device = split.images.device, torch.device(device or split.device)
    mean, std = (torch.tensor(value, device=device).view(-1, 1, 1) for value in (mean, std))
    if generator is not None:
        # drawn for the whole epoch, so that no batch waits for a copy to the device
        order = torch.randperm(count, generator=generator).to(home)
        corner = torch.randint(2 * padding + 1, (count, 2), generator=generator).to(device)
        mirror = (torch.rand(count, generator=generator) < (0.5 if flip else 0.0)).to(device)
    for i in range(num_batches(count, batch_size, drop_last)):
        window = slice(i * batch_size, (i + 1) * batch_size)
        chosen = split[window if generator is None else order[window]].to(device)
        images = chosen.images
        if padding or flip:
            images = _crop(images, padding, corner[window], mirror[window])
        yield (images.float() / 255 - mean) / std, chosen.labels


def _crop(images: Tensor, padding: int, corner: Tensor, mirror: Tensor) -> Tensor:
    """Pad with zeros, cut each image out at its (top, left) ``corner``, and mirror some; no loop over images."""
    batch, _, height, width = images.shape
    rows = corner[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(batch, -1)
    columns = corner[:, 1:] + torch.where(mirror[:, None], columns.flip(1), columns)
    which = torch.arange(batch, device=images.device)
    padded = torch.nn.functional.pad(images, 4 * (padding,))
    cropped = padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()  # indexing puts the channels last
