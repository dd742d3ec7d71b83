"""Shuffled, augmented batches of the training images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bar.data import Dataset, batches, num_batches
from bar.errors import BarError
from bar.training.settings import Settings


def check_shares(settings: Settings, processes: int) -> None:
    """Raise a BarError if a batch cannot be shared equally among the processes."""
    if settings.batch_size % processes:
        raise BarError(f"{processes} processes cannot share batches of {settings.batch_size} images equally")


def steps_per_epoch(data: Dataset, settings: Settings) -> int:
    """Return the number of batches in an epoch; an incomplete last one is left out."""
    return num_batches(len(data.train), settings.batch_size, drop_last=True)


def training_batches(data: Dataset, settings: Settings, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch (see `batches`); the generator draws their order and augmentation."""
    return batches(
        data.train, settings.batch_size, mean=data.mean, std=data.std, generator=generator,
        augment=(data.padding, data.flip),
    )  # fmt: skip
