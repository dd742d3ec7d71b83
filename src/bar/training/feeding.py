"""What a training sees: shuffled, augmented batches of the training images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bar.data import Dataset, batches, num_batches
from bar.errors import BarError
from bar.training.settings import Settings


def check_shares(settings: Settings, processes: int) -> None:
    """Raise a BarError if so many processes cannot share a batch equally."""
    if settings.batch_size % processes:
        raise BarError(f"{processes} processes cannot share batches of {settings.batch_size} images equally")


def steps_per_epoch(data: Dataset, settings: Settings) -> int:
    """How many batches one epoch has; an incomplete last one is left out."""
    return num_batches(len(data.train), settings.batch_size, drop_last=True)


def training_batches(data: Dataset, settings: Settings, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of one epoch, in an order and with an augmentation that the generator draws."""
    return batches(
        data.train, settings.batch_size, mean=data.mean, std=data.std, generator=generator,
        augment=(data.padding, data.flip),
    )  # fmt: skip
