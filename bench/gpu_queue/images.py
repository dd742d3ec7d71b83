"""The archive of images: unpacked once, or made up for a dry run."""

import dataclasses
import functools
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from bar import data
from bar.errors import BarError
from gpu_queue.planning import DATASET

MADE_UP = "made-up"  # the name of a file beside the images of a dry run
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def unpack(archive: Path | None, root: Path, made_up: bool = False) -> Path:
    """Unpack the images below a folder where `bar.data.load` finds them, unless that has been done.

    Parameters
    ----------
    archive : Path or None
        A tar, compressed in any way that Python reads, with train/CLASS/*.jpg and test/CLASS/*.jpg.
    root : Path
        What ``bar run --data`` takes.
    made_up : bool
        Whether these are the images of a dry run, which must not be taken for others.

    Returns
    -------
    Path
        The folder that holds train/ and test/.

    Raises
    ------
    BarError
        If there is no archive, it is damaged, or it holds something else.
    """
    if (root / MADE_UP).exists() and not made_up:
        raise BarError(f"{root} holds the made-up images of a dry run: choose another folder by --work")
    folder, partial = root / DATASET, root / f"{DATASET}.partial"
    if folder.is_dir():
        return folder
    if archive is None or not archive.is_file():
        raise BarError(f"the archive of images, {archive or '--archive'}, is not there, and neither is {folder}")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BarError(f"{archive} cannot be unpacked: {error}. Fetch it again") from error
    if not all((partial / part).is_dir() for part in ("train", "test")):
        raise BarError(f"{archive} holds no train/ and test/ at its top: take the archive that results/README.md names")
    if made_up:
        (root / MADE_UP).touch()
    os.replace(partial, folder)
    return folder


@functools.cache
def images_on(device: str, size: int | None, root: Path) -> data.Dataset:
    """The images, decoded and on the device: loaded once by each process, which may do many runs."""
    images = data.load(DATASET, size=size, root=root).to(device)
    return dataclasses.replace(images, label="made-up images") if (root / MADE_UP).exists() else images


def make_up(archive: Path, train: int = 16, test: int = 4) -> Path:
    """Write an archive of that form with so many small JPEG images a class, each brighter than the one before."""
    draws = np.random.default_rng(0)
    folder = archive.parent / "made-up"
    for (part, count), (i, name) in ((p, c) for p in (("train", train), ("test", test)) for c in enumerate(CLASSES)):
        (folder / part / name).mkdir(parents=True)
        for k in range(count):
            pixels = (draws.integers(0, 128, (32, 32, 3)) + 12 * i).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / name / f"{k:04}.jpg")
    with tarfile.open(archive, "w:gz") as tar:
        for part in ("train", "test"):
            tar.add(folder / part, part)
    return archive
