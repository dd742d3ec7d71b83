"""Cache of decoded folders: pixels in one memory-mapped file, and a summary in another beside it."""

import hashlib
import json
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from bar import files
from bar.data import decoding
from bar.data.leftovers import remove_unfinished, unfinished
from bar.data.splits import CHUNK, Split, fingerprint_of, moments
from bar.data.walking import Files
from bar.errors import BarError

log = logging.getLogger(__name__)

_FORMAT = 3  # of the cache; folders cached in another format are decoded again

Summary = tuple[list[float], list[float], str, list]  # mean, std, fingerprint and copies


def decoded(
    folder: Path, classes: list[str], parts: tuple[Files, Files, Files], size: int | None, root: Path
) -> tuple[list[Split], Summary]:
    """Decode a folder, or read it from the cache.

    Parameters
    ----------
    folder : Path
        Where the images are.
    classes : list of str
        Names of the labels.
    parts : tuple of list of (str, int)
        Path and label of each training, validation and test image.
    size : int, optional
        Side of the squares in pixels; without one, that of the first image, which all images must have.
    root : Path
        Where data lives; the cache is its folder ``.decoded``.

    Returns
    -------
    splits : list of Split
        Parts of one mapped tensor, uint8, (N, 3, size, size).
    summary : tuple
        Mean and standard deviation of each channel, fingerprint, and number and example of copies between splits.

    Raises
    ------
    BarError
        If an image cannot be decoded or has another size, or the cache cannot be read or written.
    """
    files = [file for part in parts for file in part]
    paths = [path for path, _ in files]
    try:
        asked, size = size, _without_warnings(decoding.side, paths[0]) if size is None else size
        stats = [os.stat(path) for path in paths]
        # a change that leaves size and time of modification as they were still alters st_ctime
        listing = [
            (path, label, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            for (path, label), stat in zip(files, stats, strict=True)
        ]
        key = [_FORMAT, str(folder), classes, size, asked is None, [len(part) for part in parts], listing]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        cache = root / ".decoded" / f"{folder.name[:40]}-{size}-{digest[:16]}.npy"
        cache.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(cache.parent)
        cached = _from_cache(cache, classes, parts, size)
        if cached is None:
            _write(cache, lambda file: _without_warnings(_decode, file, folder, paths, size, asked is None))
            splits = _mapped(cache, parts, size)
            copies = _copies(folder, paths, [split for split, part in enumerate(parts) for _ in part], stats)
            summary = [*moments(splits[0].images), fingerprint_of(classes, splits), copies]
            content = json.dumps([summary, hashlib.sha256(json.dumps(summary).encode()).hexdigest()])
            _write(cache.with_suffix(".json"), lambda file: file.write(content.encode()))
            cached = splits, tuple(summary)
    except OSError as error:
        raise BarError(
            f"the decoded images of {folder} cannot be kept in {root / '.decoded'}: {error}. "
            "The environment variable BAR_DATA says where data lives"
        ) from error
    return cached


def _from_cache(cache: Path, classes: list[str], parts: tuple[Files, Files, Files], size: int) -> tuple | None:
    """Return the cached splits and their summary; None if there are none, or if they are damaged."""
    summary_file = cache.with_suffix(".json")
    if not (cache.exists() and summary_file.exists()):  # another process may be about to write them
        return None
    try:
        summary, digest = json.loads(summary_file.read_text())
        splits = _mapped(cache, parts, size)
        if hashlib.sha256(json.dumps(summary).encode()).hexdigest() != digest:
            raise ValueError("its moments have changed")
        if fingerprint_of(classes, splits) != summary[2]:
            raise ValueError("its pixels have changed")
    except PermissionError:  # another user's cache is reported, not made again
        raise
    except Exception as error:  # json and numpy raise many kinds
        log.warning("%s is damaged and made again: %s", cache, (str(error).splitlines() or [repr(error)])[0])
        return None
    return splits, tuple(summary)


def _mapped(cache: Path, parts: tuple[Files, Files, Files], size: int) -> list[Split]:
    # copy-on-write ("c"), since torch wants a writable array; nothing writes to it
    array = np.lib.format.open_memmap(cache, mode="c")
    shape = (sum(len(part) for part in parts), 3, size, size)
    if array.shape != shape or array.dtype != np.uint8 or cache.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"it holds {array.dtype} {array.shape} instead of {shape}")
    images = torch.from_numpy(array)
    splits, start = [], 0
    for part in parts:
        labels = torch.tensor([label for _, label in part], dtype=torch.int64)
        splits.append(Split(images[start : start + len(part)], labels))
        start += len(part)
    return splits


def _copies(folder: Path, paths: list[str], splits: list[int], stats: list[os.stat_result]) -> list:
    """Count the files that are copies of a file in an earlier split, and name the first of them and its original.

    Only files that have the size of a file in another split are read.
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


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    with files.replacing(path, unfinished(path)) as file:
        fill(file)


def _decode(file, folder: Path, paths: list[str], size: int, exact: bool) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)
    console = Console(stderr=True)
    starts = track(
        range(0, len(paths), CHUNK),
        f"decoding {folder.name}",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with ThreadPoolExecutor() as pool:
        for start in starts:
            for image in pool.map(lambda path: decoding.scaled(path, size, exact), paths[start : start + CHUNK]):
                file.write(image.tobytes())


def _without_warnings(function: Callable, *arguments):
    """Call a function without Pillow's warnings, which do not name the image; all threads are affected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return function(*arguments)
