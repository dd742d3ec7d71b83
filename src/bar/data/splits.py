"""Data sets: images and labels in fixed splits, and their statistics."""

import dataclasses
import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bar.errors import BarError

log = logging.getLogger(__name__)

CHUNK = 1024  # images that are processed at a time
_SHARE = 0.5  # of a GPU's free memory that images may take; the rest is for the network


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Parameters
    ----------
    images : Tensor, uint8, (N, C, H, W)
        From 0 to 255; those of a folder are memory-mapped, and read when they are used.
    labels : Tensor, int64, (N,)
        Positions in `Dataset.classes`.
    device : device, optional
        Where `batches` go if nothing else is asked for; default: where the images are.

    Raises
    ------
    BarError
        If images or labels are of another type or shape, such as float images from 0 to 1.

    Examples
    --------
    >>> len(Split(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)))
    5
    """

    images: Tensor
    labels: Tensor
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device or self.images.device))
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise BarError(
                "images must be bytes, a uint8 tensor of shape (images, channels, height, width), not "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise BarError(
                f"labels of {len(self.images):,} images must be as many whole numbers, an int64 tensor, not "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.images[index], self.labels[index], self.device)

    def to(self, device: torch.device | str) -> "Split":
        """The same images and labels on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split once and for all.

    Parameters
    ----------
    name, label : str
        The argument of `load`; the name in figures.
    classes : list of str
        Names of the labels 0, 1, ….
    train, validation, test : Split
        Training is monitored, and everything chosen, on ``validation``; ``test`` is evaluated once, when a run ends.
    mean, std : tuple of float, (C,)
        Of each channel over ``train``, in units where 255 is 1.
    padding : int
        Pixels by which a training image may be shifted each way.
    flip : bool
        Whether a mirrored image keeps its label.
    fingerprint : str
        A SHA-256 of the images, their labels, the splits they are in, and the names of the classes, which tells a run's
        data from other data.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits")
    >>> digits.input_size, digits.num_classes, len(digits.validation)
    ((3, 16, 16), 10, 180)
    """

    name: str
    label: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    fingerprint: str = ""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set on another device.

        If its images would take more than half of a GPU's free memory, they stay where they are, and each batch goes
        to the device when it is used.
        """
        splits = {name: getattr(self, name) for name in ("train", "validation", "test")}
        free, needed = free_memory(torch.device(device)), sum(split.images.nbytes for split in splits.values())
        if free is not None and needed > _SHARE * free:
            log.warning("%s: %.1f GB of images stay in main memory or on disk", self.name, needed / 1e9)
            moved = {name: dataclasses.replace(split, device=device) for name, split in splits.items()}
        else:
            moved = {name: split.to(device) for name, split in splits.items()}
        return dataclasses.replace(self, **moved)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU; None for other devices, on which images take no more memory than they have."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Return sorted positions of ``count`` items, stratified by class up to rounding, the same in every call.

    Each class's items are shuffled and spread evenly over (0, 1); the first ``count`` are taken. So a smaller selection
    is part of a larger one, and a class whose share is below half an item gives none. (scikit-learn's split refuses
    some counts and lone items.)
    """
    order = np.random.RandomState(0).permutation(len(labels))  # numpy promises never to change this generator
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions to keep, and ``count`` positions to hold out, stratified by class."""
    held = stratified(labels, count)
    return np.setdiff1d(np.arange(len(labels)), held), held


def limited(data: Dataset, limit: int) -> Dataset:
    """Return a data set with at most ``limit`` training images, stratified; a BarError if there are more classes."""
    if limit < data.num_classes:
        raise BarError(f"limit is {limit}, must be at least {data.num_classes}, one image a class")
    if limit >= len(data.train):
        return data
    train = data.train[torch.from_numpy(stratified(data.train.labels.numpy(), limit))]
    mean, std = moments(train.images)
    warn_of_missing(data.name, data.classes, {"training": train.labels})
    fingerprint = hashlib.sha256(f"{limit} training images of {data.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(data, train=train, mean=mean, std=std, fingerprint=fingerprint)


def warn_of_missing(name: str, classes: list[str], labels: dict[str, Tensor]) -> None:
    """Warn of the classes without an image in a split."""
    for split, held in labels.items():
        counts = held.bincount(minlength=len(classes))
        missing = [label for label, count in zip(classes, counts.tolist(), strict=True) if not count]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            log.warning("%s: no %s image is of class %s", name, split, shown)


def fingerprint_of(classes: list[str], splits: list[Split]) -> str:
    """Return a SHA-256 of everything that a data set holds; chunks of images are hashed in parallel."""
    digest = hashlib.sha256(json.dumps([classes, [list(split.images.shape) for split in splits]]).encode())
    with ThreadPoolExecutor() as pool:
        for split in splits:
            digest.update(split.labels.numpy().astype("<i8"))
            parts = split.images.split(CHUNK)
            for part in pool.map(lambda images: hashlib.sha256(images.contiguous().numpy()).digest(), parts):
                digest.update(part)
    return digest.hexdigest()


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation (at least 1/255), where 255 is 1; from counts of 256 levels."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in images.split(CHUNK):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in chunk.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)  # a constant channel stays finite
    return tuple(mean.tolist()), tuple(std.tolist())
