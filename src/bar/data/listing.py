"""Listing of a folder of images: its splits, their classes, and the files of each, every file once.

`list_folder` is the only place that lists. Only regular files that have the name of an image will be opened.
"""

import os
from collections import defaultdict
from pathlib import Path

from bar.data.walking import Files, Skipped, Walk, entries_of, images_in, no_image_error, subfolders
from bar.errors import BarError
from bar.schema import CONFIG, RESULT

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ANNOTATIONS = "val_annotations.txt"  # of TinyImageNet, whose validation images lie in one folder


def list_folder(folder: Path) -> tuple[list[str], dict[str, Files]]:
    """List the classes of a folder and the files of each split, without opening any file.

    Parameters
    ----------
    folder : Path
        With class folders, or with a folder ``train`` of class folders and others for validation and test, in any of
        their usual spellings. A split may also be laid out as in TinyImageNet: ``images`` and ``val_annotations.txt``.

    Returns
    -------
    classes : list of str
        Sorted; a label is a position in it.
    parts : dict of str to list of (str, int)
        Path and label of each image, under "train", "validation" and "test" as far as there are labelled ones, or all
        under "all" if the folder is not split. No file is listed twice, however many names and links it has.

    Raises
    ------
    BarError
        If the folder is not laid out like that, a class has no training image, something may not be read, or there is
        no image among the first 2,000 folders or 200,000 files.

    Notes
    -----
    Entries that are not used (not named like an image, hidden, a broken or circular link, a pipe, …) are counted and
    named in one warning of the logger ``bar.data.walking``.
    """
    skipped = Skipped()
    where = _splits(folder, skipped)
    if not where:
        classes = _classes(folder, skipped)
        (files,) = Walk([(folder, {name: folder / name for name in classes})], skipped).images()
        labelled = {"all": _label(folder, files, classes, need_all=True)}
    else:
        classes = _classes(where["train"], skipped)
        tops = {"train": (where["train"], {name: where["train"] / name for name in classes})}
        for split, path in where.items():
            if split != "train" and (labelled_in := _sources_of_classes(path, classes, skipped)) is not None:
                tops[split] = (path, labelled_in)
        if len(tops) > 1:
            _check_classes(where, {split: set(found) for split, (_, found) in tops.items()}, classes)
        listed = dict(zip(tops, Walk(list(tops.values()), skipped).images(), strict=True))
        labelled = {
            split: _label(where[split], files, classes, need_all=split == "train") for split, files in listed.items()
        }
    skipped.warn(folder)
    return classes, labelled


def _splits(folder: Path, skipped: Skipped) -> dict[str, Path]:
    """Find the folder of each split; empty if there are no splits, as "train" may also be a class of vehicles."""
    named, others = _by_name(folder, skipped)
    if not [path for path in named["train"] if subfolders(path, skipped)]:
        if any(named.values()) and not others:
            held = ", ".join(f"{path.name}/" for paths in named.values() for path in paths)
            raise BarError(f"{folder} holds {held} but no folder train/ with a folder for each class")
        return {}
    where = _check_splits(folder, named)
    skipped.add("folders that are no split", *others)
    return where


def _by_name(folder: Path, skipped: Skipped) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the subfolders that are named like each split, and the others."""
    split_of = {name: split for split, names in SPELLINGS.items() for name in names}
    named, others = {split: [] for split in SPELLINGS}, []
    for name in subfolders(folder, skipped):
        split = split_of.get(name.lower())
        (named[split] if split else others).append(folder / name)
    return named, others


def _check_splits(folder: Path, named: dict[str, list[Path]]) -> dict[str, Path]:
    """Return the folder of each split; refuse two for one split, or none to test with."""
    for split, paths in named.items():
        if len(paths) > 1:
            both = " and ".join(f"{path.name}/" for path in paths)
            raise BarError(f"{folder} holds {both}, both for {split}: remove or rename one of them")
    where = {split: paths[0] for split, paths in named.items() if paths}
    if len(where) == 1:
        train = where["train"].name
        raise BarError(f"{folder} has {train}/ but neither test/ nor val/ beside it: which images are for the test?")
    return where


def _classes(folder: Path, skipped: Skipped) -> list[str]:
    classes = subfolders(folder, skipped)
    of_runs = [name for name in classes if _is_of_runs(folder / name)]
    skipped.add("folders of recorded runs", *(folder / name for name in of_runs))
    classes = [name for name in classes if name not in of_runs]
    if len(classes) < 2:
        found = f"only {classes[0]}/" if classes else "none"
        raise BarError(f"{folder} must hold at least two folders, one for each class; there is {found}")
    skipped.add("in no class's folder", *images_in(folder))
    return classes


def _is_of_runs(folder: Path) -> bool:
    """Whether a folder holds a run, or is the usual one of runs: where `bar run` was called among the images."""
    inside = folder.glob(f"*/{CONFIG}") if folder.name == "runs" else ()
    places = [path.parent for path in (folder / CONFIG, *inside) if os.path.isfile(path)]
    return any(os.path.exists(place / name) for place in places for name in (".lock", "metrics.jsonl", RESULT))


def _sources_of_classes(folder: Path, classes: list[str], skipped: Skipped) -> dict[str, Path | list[Path]] | None:
    """Return the folder, or the list of files, of each class of a split; None if the split has no labels."""
    inside = subfolders(folder, skipped)
    if set(inside) & set(classes) and "images" not in classes and not entries_of(folder / "images"):
        inside = [name for name in inside if name != "images"]  # left empty when its files were moved into classes
    if os.path.isfile(folder / ANNOTATIONS) and not set(inside) & set(classes):
        return _read_annotations(folder, skipped)
    if (inside == ["images"] and "images" not in classes) or (not inside and images_in(folder)):
        skipped.add("without a label", *images_in(folder / "images" if inside else folder))
        return None
    skipped.add("in no class's folder", *images_in(folder))
    if not inside:
        raise BarError(f"{folder} must hold at least two folders, one for each class; there is none")
    return {name: folder / name for name in inside}


def _read_annotations(folder: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """Read the files of each class from annotations: lines of a file's name, its class, and more."""
    try:
        lines = (folder / ANNOTATIONS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{folder / ANNOTATIONS} cannot be read: {error}") from error
    found, named = defaultdict(list), set()
    for number, line in enumerate(filter(str.strip, lines), 1):
        file, name, *_ = [*line.split("\t"), "", ""]
        if not (name and os.path.basename(file) == file):
            raise BarError(f"{folder / ANNOTATIONS}, line {number}, must hold a file's name, a tab and its class")
        if file not in named:
            found[name].append(folder / "images" / file)
        named.add(file)
    skipped.add("without a label", *(path for path in images_in(folder / "images") if path.name not in named))
    return dict(found)


def _check_classes(where: dict[str, Path], found: dict[str, set[str]], classes: list[str]) -> None:
    """Refuse a split with classes that the training images lack; of those that a split lacks, a warning comes later."""
    for split, names in found.items():
        if names - set(classes):
            odd = sorted(names ^ set(classes))
            raise BarError(
                f"{where[split]} and {where['train']} do not hold the same classes: "
                f"only one of them has {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}"
            )


def _label(folder: Path, files: dict[str, list[str]], classes: list[str], need_all: bool) -> Files:
    """Return files with their labels, in the order of the classes; refuse an empty split."""
    for name in classes:
        if need_all and not files.get(name):
            raise no_image_error(folder / name)
    labelled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    if not labelled:
        raise BarError(f"{folder} holds no image that is not also a training image")
    return labelled
