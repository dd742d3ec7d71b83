"""A folder of images as a data set: which of its files are for training, for validation and for the test."""

import logging
from pathlib import Path

import numpy as np

from bar.data.decoded import decoded
from bar.data.listing import list_folder
from bar.data.splits import Dataset, hold_out, warn_of_missing
from bar.data.walking import Files
from bar.errors import BarError, printable

log = logging.getLogger(__name__)


def image_folder(name: str, label: str, folder: Path, size: int | None, root: Path) -> Dataset:
    """Load a folder of images as a data set; see `bar.data.load`."""
    folder = folder.resolve()
    classes, listed = list_folder(folder)
    parts = _split_files(folder, classes, listed)
    splits, (mean, std, fingerprint, copies) = decoded(folder, classes, parts, size, root)
    if copies[0]:
        log.warning(
            "%s: %d validation or test images are copies, byte by byte, of images in another split, such as %s of %s",
            label, copies[0], *map(printable, copies[1:]),
        )  # fmt: skip
    warn_of_missing(label, classes, {"validation": splits[1].labels, "test": splits[2].labels})
    padding = splits[0].images.shape[-1] // 8
    return Dataset(name, label, classes, *splits, tuple(mean), tuple(std), padding, True, fingerprint)


def _split_files(folder: Path, classes: list[str], listed: dict[str, Files]) -> tuple[Files, Files, Files]:
    """Return training, validation and test files; a split that the folder lacks is held out of the training files."""
    validation, test = listed.get("validation"), listed.get("test")
    if validation and not test:
        validation, test = None, validation
    train = listed.get("train") or listed["all"]
    whole, fraction = len(train), 0.1 if test else 1 / 8
    if not test:
        train, test = _hold_out(train, 0.2)
    if not validation:
        train, validation = _hold_out(train, fraction)
    lacking = sorted(set(range(len(classes))) - {label for _, label in train})
    if lacking:  # also if the split is empty
        raise BarError(
            f"{folder} has too few images to hold some out: of {whole}, none of class {classes[lacking[0]]} would be "
            "left for training. Have more of them, or make folders train/, val/ and test/"
        )
    return train, validation, test


def _hold_out(files: Files, fraction: float) -> tuple[Files, Files]:
    """Hold out a fraction of the files, at least one; returns those kept and those held out."""
    labels = np.array([label for _, label in files], dtype=np.int64)
    kept, held = hold_out(labels, max(1, round(len(files) * fraction)))
    return [files[i] for i in kept], [files[i] for i in held]
