"""The accuracy of a network, and the recalibration of its batch norms, which may have to come first."""

import itertools
import math

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from bar.data import Dataset, Split, batches
from bar.errors import BarError
from bar.training.feeding import training_batches
from bar.training.settings import Settings


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, data: Dataset) -> float:
    """Return the share of a split's images that a network classifies correctly.

    The network computes in eval mode; afterwards each layer is in its own mode again.

    Parameters
    ----------
    network : nn.Module
        On the device of the split.
    split : Split
        The images, with their labels.
    data : Dataset
        Its mean and standard deviation normalise the images.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    BarError
        If the split has no image.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> 0 <= accuracy(network, digits.validation, digits) <= 1
    True
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    right = sum(
        (network(images).argmax(1) == labels).sum()
        for images, labels in batches(split, 256, mean=data.mean, std=data.std)
    )
    for module, training in modes.items():
        module.training = training
    return float(right) / len(split)


def recalibrate(network: nn.Module, data: Dataset, settings: Settings, images: int = 2048) -> nn.Module:
    """Measure the means and variances of all batch norms again, on random training images.

    Those from training are of no use after the cut, since gates were random then. The order and the augmentation of the
    images come from a separate random generator, so a measurement does not change a training.

    Parameters
    ----------
    network : nn.Module
        On the device of the data; changed in place.
    data : Dataset
        Its training images are used, augmented as in training.
    settings : Settings
        For the batch size.
    images : int
        About how many to use, >= 1: whole batches, at most one epoch.

    Returns
    -------
    nn.Module
        The same network, in the mode that it had.

    Raises
    ------
    BarError
        If no image is to be used: there would be no statistics at all.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> recalibrate(network, digits, bar.training.PRESETS["quick"]) is network
    True
    """
    if not images >= 1:
        raise BarError(f"batch norms are measured again on at least 1 image, not on {images}")
    shuffled = training_batches(data, settings, torch.Generator().manual_seed(0))
    update_bn(itertools.islice(shuffled, math.ceil(images / settings.batch_size)), network)
    return network
