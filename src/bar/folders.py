"""Folders of images as people have them: which files there are, each once, and what their pixels are.

`list_folder` is the only place that lists, `decode` the only one that decodes. Neither opens anything but a regular
file that is called an image.
"""

import contextlib
import logging
import os
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from .errors import BarError, printable

log = logging.getLogger(__name__)

Files = list[tuple[str, int]]  # path and label

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NOWHERE, LISTED = "missing, or links that lead nowhere", "links to folders listed already"
ANNOTATIONS = "val_annotations.txt"  # of TinyImageNet, whose validation images lie in one folder
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # Pillow would hand others to programs, such as gs
_BACKGROUND = "white"  # under transparent pixels
# How much is looked at without finding an image: a folder such as /usr or /proc would take minutes.
MOST_FOLDERS_IN_VAIN = 2_000
MOST_ENTRIES_IN_VAIN = 200_000


# ---- listing


def list_folder(folder: Path) -> tuple[list[str], dict[str, Files]]:
    """The classes of a folder, and the files of each of its splits; opens none of them.

    Parameters
    ----------
    folder : Path
        With class folders, or with a folder ``train`` of class folders and others for validation and test, in any of
        their usual spellings. A split may also be that of TinyImageNet: ``images`` and ``val_annotations.txt``.

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
        If the folder is not laid out like that, a class has no training image, or something may not be read; as soon
        as that is seen, also if there is no image among the first 2,000 folders or 200,000 files.

    Notes
    -----
    What is not used (no image by its name, hidden, a link that leads nowhere or back, a pipe, …) is counted and named
    in one warning of the logger ``bar.folders``.
    """
    skipped = defaultdict(dict)
    where = _splits(folder, skipped)
    if not where:
        classes = _classes(folder, skipped)
        (files,) = _images([(folder, {name: folder / name for name in classes})], skipped)
        labelled = {"all": _label(folder, files, classes, all_of_them=True)}
    else:
        classes = _classes(where["train"], skipped)
        tops = {"train": (where["train"], {name: where["train"] / name for name in classes})}
        for split, path in where.items():
            if split != "train" and (labelled_in := _labelled(path, classes, skipped)) is not None:
                tops[split] = (path, labelled_in)
        if len(tops) > 1:
            _same_classes(where, {split: set(found) for split, (_, found) in tops.items()}, classes)
        listed = dict(zip(tops, _images(list(tops.values()), skipped), strict=True))
        labelled = {
            split: _label(where[split], files, classes, all_of_them=split == "train") for split, files in listed.items()
        }
    _say(folder, skipped)
    return classes, labelled


def _splits(folder: Path, skipped: dict) -> dict[str, Path]:
    """Where the splits are, if the folder has any: "train" may also be a class, of vehicles."""
    named = {split: [] for split in SPELLINGS}
    others = []
    for name in _subfolders(folder, skipped):
        split = next((split for split, known in SPELLINGS.items() if name.lower() in known), None)
        (named[split] if split else others).append(folder / name)
    filled = [path for path in named["train"] if _subfolders(path, skipped)]
    if not filled:
        if any(named.values()) and not others:
            held = ", ".join(f"{path.name}/" for paths in named.values() for path in paths)
            raise BarError(f"{folder} holds {held} but no folder train/ with a folder for each class")
        return {}
    for split, paths in named.items():
        if len(paths) > 1:
            both = " and ".join(f"{path.name}/" for path in paths)
            raise BarError(f"{folder} holds {both}, both for {split}: remove or rename one of them")
    where = {split: paths[0] for split, paths in named.items() if paths}
    if len(where) == 1:
        train = where["train"].name
        raise BarError(f"{folder} has {train}/ but neither test/ nor val/ beside it: which images are for the test?")
    _skip(skipped, "folders that are no split", *others)
    return where


def _classes(folder: Path, skipped: dict) -> list[str]:
    classes = _subfolders(folder, skipped)
    if len(classes) < 2:
        found = f"only {classes[0]}/" if classes else "none"
        raise BarError(f"{folder} must hold at least two folders, one for each class; there is {found}")
    _skip(skipped, "in no class's folder", *_loose(folder))
    return classes


def _labelled(folder: Path, classes: list[str], skipped: dict) -> dict[str, Path | list[Path]] | None:
    """Where a split has the images of each class: a folder, or a list of files; None if it has no labels."""
    inside = _subfolders(folder, skipped)
    if set(inside) & set(classes) and "images" not in classes and not _entries(folder / "images"):
        inside = [name for name in inside if name != "images"]  # left empty when its files were moved into classes
    if (folder / ANNOTATIONS).is_file() and not set(inside) & set(classes):
        return _annotated(folder, skipped)
    if (inside == ["images"] and "images" not in classes) or (not inside and _loose(folder)):
        _skip(skipped, "without a label", *_loose(folder / "images" if inside else folder))
        return None
    _skip(skipped, "in no class's folder", *_loose(folder))
    if not inside:
        raise BarError(f"{folder} must hold at least two folders, one for each class; there is none")
    return {name: folder / name for name in inside}


def _annotated(folder: Path, skipped: dict) -> dict[str, list[Path]]:
    """The files of each class, from lines of a file's name, its class, and more."""
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
    _skip(skipped, "without a label", *(path for path in _loose(folder / "images") if path.name not in named))
    return dict(found)


def _same_classes(where: dict[str, Path], found: dict[str, set[str]], classes: list[str]) -> None:
    """Refuse images of classes that cannot be learnt; that a split lacks a class is said where the splits are made."""
    for split, names in found.items():
        if names - set(classes):
            odd = sorted(names ^ set(classes))
            raise BarError(
                f"{where[split]} and {where['train']} do not hold the same classes: "
                f"only one of them has {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}"
            )


def _label(folder: Path, files: dict[str, list[str]], classes: list[str], all_of_them: bool) -> Files:
    """Files with their labels, in the order of the classes."""
    for name in classes:
        if all_of_them and not files.get(name):
            raise _no_image(folder / name)
    labelled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    if not labelled:
        raise BarError(f"{folder} holds no image that is not also a training image")
    return labelled


def _no_image(folder: Path) -> BarError:
    return BarError(
        f"{folder} holds no image of its own (looked for {', '.join(IMG_EXTENSIONS)}, "
        "each file once, whatever links to it)"
    )


def _images(tops: list[tuple[Path, dict[str, Path | list[Path]]]], skipped: dict) -> list[dict[str, list[str]]]:
    """The image files of each split and class, every file once.

    What lies in a class's own folder comes before what is linked into it, so that a link from one class to another
    does not change a label, and the first split before the next. A class of the first without an image ends it at once.
    """
    found = [defaultdict(list) for _ in tops]
    seen, todo, linked = set(), [], deque()
    last, hopeful = None, set()  # classes for which a link waits that may lead to images
    in_vain = Counter()  # since the last image

    def put(entries: list[tuple[int, str, str]]) -> None:  # split, class and path
        todo.extend(reversed([entry for entry in entries if not os.path.islink(entry[2])]))
        for entry in entries:
            if os.path.islink(entry[2]):
                linked.append(entry)
                if _is_image(entry[2]) or os.path.isdir(entry[2]):
                    hopeful.add(entry[:2])
                if _is_image(entry[2]):
                    in_vain.clear()

    put([
        (which, name, str(path))
        for which, (_, classes) in enumerate(tops)
        for name, places in classes.items()
        for path in ([places] if isinstance(places, Path) else places)
    ])  # fmt: skip
    while todo or linked:
        which, name, path = todo.pop() if todo else linked.popleft()
        if last not in ((which, name), None) and not last[0] and not found[0][last[1]] and last not in hopeful:
            raise _no_image(tops[0][0] / last[1])
        last = which, name
        try:
            status = os.stat(path)
        except PermissionError as error:
            raise BarError(f"{path} may not be read: {error.strerror}") from error
        except OSError:  # nothing there, or a link to itself
            _skip(skipped, NOWHERE, path)
            continue
        key = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            if key in seen or _leads_back(path):
                _skip(skipped, LISTED, path)
                continue
            seen.add(key)
            entries = _entries(path)
            in_vain.update(folders=1, entries=len(entries))
            too_many = in_vain["folders"] > MOST_FOLDERS_IN_VAIN or in_vain["entries"] > MOST_ENTRIES_IN_VAIN
            if too_many and not any(map(_is_image, entries)):
                raise BarError(
                    f"{tops[which][0]} is no folder of images: there was none in {in_vain['folders']:,} folders "
                    f"with {in_vain['entries']:,} entries, up to {path}"
                )
            _skip(skipped, "hidden", *(os.path.join(path, entry) for entry in entries if _is_hidden(entry)))
            put([(which, name, os.path.join(path, entry)) for entry in entries if not _is_hidden(entry)])
        elif not stat.S_ISREG(status.st_mode):
            _skip(skipped, "no regular files", path)
        elif not _is_image(path):
            _skip(skipped, "no images by their names", path)
        elif key in seen:
            _skip(skipped, "other names of files listed already", path)
        else:
            seen.add(key)
            in_vain.clear()
            found[which][name].append(path)
    for classes in found:
        for files in classes.values():  # the order that torchvision's ImageFolder gives
            files.sort(key=os.path.split)
    return found


def _subfolders(folder: Path, skipped: dict) -> list[str]:
    names = []
    for entry in _scanned(folder):
        if entry.is_symlink() and not os.path.exists(entry.path):
            _skip(skipped, NOWHERE, entry.path)
        elif entry.is_symlink() and entry.is_dir() and _leads_back(entry.path):
            _skip(skipped, LISTED, entry.path)
        elif entry.is_dir() and not _is_hidden(entry.name):
            names.append(entry.name)
    return names


def _loose(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _scanned(folder) if _is_image(entry.name) and not entry.is_dir()]


def _entries(folder: Path | str) -> list[str]:
    """The names in a folder, sorted; none if it is not there."""
    with _reading(folder):
        return sorted(os.listdir(folder))
    return []


def _scanned(folder: Path) -> list[os.DirEntry]:
    """The same with what the folder knows of each, so that a million files are not asked one by one."""
    with _reading(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


@contextlib.contextmanager
def _reading(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BarError(f"{folder} may not be read: {error.strerror}") from error


def _leads_back(path: str) -> bool:
    """Whether a link leads to a folder that it lies in itself."""
    target, home = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return home == target or home.startswith(target.rstrip(os.sep) + os.sep)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS's archives hold a hidden file beside each image there


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(os.path.basename(name))


def _skip(skipped: dict[str, dict], why: str, *paths: Path | str) -> None:
    skipped[why].update(dict.fromkeys(map(str, paths)))  # a set that keeps the order


def _say(folder: Path, skipped: dict[str, dict]) -> None:
    kinds = []
    for why, paths in skipped.items():
        if paths:
            shown = ", ".join(printable(os.path.relpath(path, folder)) for path in list(paths)[:3])
            kinds.append(f"{len(paths)} {why} ({shown}{', …' if len(paths) > 3 else ''})")
    if kinds:
        log.warning("%s: %d entries are not used: %s", folder, sum(map(len, skipped.values())), "; ".join(kinds))


# ---- decoding


def decode(path: str) -> Image.Image:
    """The pixels of an image file, as people see them, in RGB with 8 bits each.

    Parameters
    ----------
    path : str
        A regular file. Of an animation or several pages, the first is decoded.

    Returns
    -------
    PIL.Image.Image
        Turned as its EXIF orientation says. Greys of 16 bits are scaled so that 65535 (of a TIFF, the largest value
        that its bits can hold) becomes 255. Transparent pixels show white. Colour profiles are not applied.

    Raises
    ------
    BarError
        If the file cannot be read, is damaged, or holds numbers that have no largest value, to which they could be
        scaled (32-bit integers, floats); the message names it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(np.full((2, 2), 65535 // 2, np.uint16)).save(folder + "/grey.png")
    ...     decode(folder + "/grey.png").getpixel((0, 0))
    (127, 127, 127)
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_numbers(image)
            image.load()
            return _to_rgb(_to_8_bits(image))
    except BarError as error:
        raise BarError(f"{path} {error}") from None
    except Exception as error:  # whatever a decoder raises on a file that it does not understand
        reason = str(error) or type(error).__name__
        raise BarError(f"{path} cannot be read as an image ({reason}): repair or remove it") from error


def _check_numbers(image: Image.Image) -> None:
    """Refuse what would be decoded, but to something else than people see."""
    # Pillow has 16 bits as "I;16" or, of PGM and in older versions of PNG, as "I"
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise BarError(
            f"holds {'floats' if image.mode == 'F' else 'integers of 32 bits'}, whose black and white nobody "
            "can tell: convert it to 8 or 16 bits"
        )
    on_its_side = image.format == "TIFF" and image.size != (image.tag_v2[256], image.tag_v2[257])
    if on_its_side and any(tile.codec_name == "raw" for tile in image.tile):
        raise BarError("is an uncompressed TIFF lying on its side, which Pillow scrambles: convert it to PNG")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The image turned upright, and greys of more than 8 bits scaled to 8."""
    ImageOps.exif_transpose(image, in_place=True)  # a TIFF has been turned when it was loaded
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    most = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample; there are 12, too
    scaled = ((values * 255 + most // 2) // most).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is 0, which Pillow heeds with 8 bits only
        scaled = 255 - scaled
    grey = Image.fromarray(scaled)
    if isinstance(transparent := image.info.get("transparency"), int):  # a PNG's grey that stands for no pixel
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies it, and some are large
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
