"""Limits on the memory and time of decoding an image, told from its header before anything is decoded.

Pillow holds an image whole, with 4 bytes a pixel if it has colours, and some decoders hold it twice or more. What an
image will need is reserved in one pool that all threads share; an image that needs more than the pool is refused.
"""

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Iterator

from PIL import Image

from bar.errors import BarError

MOST_MEMORY = 265_000_000  # bytes for all images that are being decoded: 66 megapixels in RGB
STRIP = 2**18  # pixels that are converted at a time
_TRIM_ABOVE = 24_000_000  # bytes; free memory is returned to the system before a larger reservation
_MOST_OVERHEAD = 32_000_000  # bytes of a PNG that are not pixels
_MOST_PASSES = 3_000_000_000  # pixels times scans of a JPEG, a few seconds
_MOST_IN_PYTHON = 4_000_000  # numbers that Pillow decodes one by one in Python, a few seconds
_STRIP_BYTES = 32  # per pixel of a strip, with all copies on the way to RGB
_FAST_ENOUGH = 10**10  # bytes times pixels of a JPEG; below this, any number of scans is fast enough
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # of a JPEG, except those within pixel data
_END, _SCAN = 0xD9, 0xDA


class MemoryPool:
    """Memory that threads share: a reservation waits until enough is free.

    Parameters
    ----------
    most : int
        The size of the pool in bytes.
    """

    def __init__(self, most: int) -> None:
        self._left, self._change = most, threading.Condition()
        self._most = most

    @contextlib.contextmanager
    def reserving(self, amount: int) -> Iterator[None]:
        """Hold an amount of bytes, at most the whole pool; a thread that holds one must not reserve another."""
        amount = min(amount, self._most)
        with self._change:
            self._change.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            if amount > _TRIM_ABOVE:
                _trim_memory()
            yield
        finally:
            with self._change:
                self._left += amount
                self._change.notify_all()


POOL = MemoryPool(MOST_MEMORY)


def _trim_memory() -> None:
    """Return free memory to the system: glibc keeps it per thread, so every thread would hold its largest image."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries do not need it
        ctypes.CDLL(None).malloc_trim(0)


def memory_to_open(path: str) -> int:
    """Estimate the memory needed to open a file, before its size in pixels is known.

    Parameters
    ----------
    path : str
        The image file.

    Returns
    -------
    int
        In bytes.

    Raises
    ------
    BarError
        If that is too much; the message continues after the name of the file.
    """
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
    amount = 3 * size if head[8:] == b"WEBP" else size  # Pillow reads the whole file, and copies it
    if amount > MOST_MEMORY:
        raise BarError(f"is a file of {size / 1e6:.0f} MB, too large to decode: scale the image down")
    if head.startswith(b"\x89PNG") and (overhead := _png_overhead(path)) > _MOST_OVERHEAD:
        raise BarError(f"holds {overhead / 1e6:.0f} MB beside its pixels, too much to decode: remove them")
    return amount


def memory_to_decode(image: Image.Image, path: str, side: int | None) -> tuple[int, bool]:
    """Estimate the memory needed to decode an image.

    Parameters
    ----------
    image : PIL.Image.Image
        Opened, but not loaded.
    path : str
        Its file.
    side : int, optional
        Of the square that it is scaled to, in pixels; without one, all of it is wanted in RGB.

    Returns
    -------
    amount : int
        In bytes.
    whole : bool
        Whether the amount suffices for all of it in RGB at once, rather than strip by strip.

    Raises
    ------
    BarError
        If that is too much, or takes too long; the message continues after the name of the file.
    """
    width, height = image.size
    pixels = width * height
    held = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    amount = held * pixels + _STRIP_BYTES * min(pixels, max(STRIP, width, height))
    if side is not None:  # rows after they have been scaled horizontally
        amount += 4 * side * min(height, width + 2 * (width // side + 3), height + 2 * (height // side + 3))
    size = os.path.getsize(path)
    match image.format:
        case "JPEG" | "MPO":
            amount += _jpeg_overhead(image, path, size)
        case "WEBP":  # the canvas and the one before, both as RGBA, and a copy as bytes
            amount += 12 * pixels + 3 * size
        case "TIFF":
            amount += _tiff_overhead(image, held, size)
        case "PNG":  # texts may be compressed; Pillow accepts up to 64 MiB of them
            overhead = _png_overhead(path)
            amount += min(1000 * overhead, 2**26) + overhead
        case "PPM" | "BMP":
            amount += _python_overhead(image, size)
    if side is None and image.mode != "RGB":  # a copy that is converted to RGB
        amount += 4 * pixels
    refuse_above(amount, image)
    whole = side is not None and amount + 4 * pixels <= MOST_MEMORY
    return amount + 4 * pixels * whole, whole


def refuse_above(amount: int, image: Image.Image) -> None:
    """Raise a BarError if an image takes more memory than the pool has."""
    if amount > MOST_MEMORY:
        raise BarError(
            f"has {image.width}x{image.height} pixels, for which decoding as it is stored takes {amount / 1e6:.0f} MB "
            f"of memory, more than {MOST_MEMORY / 1e6:.0f}: scale it down, or store it as a plain JPEG"
        )


def _jpeg_overhead(image: Image.Image, path: str, size: int) -> int:
    """Return the bytes needed besides pixels: metadata and, with several scans, the coefficients, 2 bytes each."""
    pixels = image.width * image.height
    overhead = sum(len(content) for _, content in image.applist)
    if size * pixels < _FAST_ENOUGH:
        return overhead + 8 * pixels
    with POOL.reserving(size):
        scans = _scans(path)
    if scans * pixels > _MOST_PASSES:
        raise BarError(f"is a JPEG of {scans} scans, which would take too long: store it as a plain JPEG")
    if scans > 1:
        shares = [across * down for _, across, down, _ in image.layer]
        most = max(across for _, across, _, _ in image.layer) * max(down for _, _, down, _ in image.layer)
        overhead += 2 * pixels * sum(shares) // most
    return overhead


def _scans(path: str) -> int:
    """Count the scans of a JPEG, each of which is a pass over its pixels."""
    with open(path, "rb") as file:
        content = file.read()
    scans, place = 0, 2
    while (marker := _MARKER.search(content, place)) and (kind := content[marker.start() + 1]) != _END:
        scans += kind == _SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return scans


def _tiff_overhead(image: Image.Image, held: int, size: int) -> int:
    """Return the bytes needed besides pixels: a compressed file, which is mapped, and a strip; a copy if rotated."""
    tags, pixels = image.tag_v2, image.width * image.height
    overhead = held * pixels if tags.get(274, 1) != 1 else 0
    if any(tile.codec_name == "libtiff" for tile in image.tile):
        columns, rows = (tags[322], tags[323]) if 322 in tags else (tags[256], min(tags.get(278, 2**32), tags[257]))
        bits = tags.get(277, 1) * max(tags.get(258, (1,)))
        coefficients = 8 if tags.get(259) in (6, 7) else 0  # of a JPEG inside
        overhead += size + columns * rows * (max(4, bits // 8) + coefficients)
    return overhead


def _png_overhead(path: str) -> int:
    """Return the bytes of all chunks of a PNG but the pixels: Pillow keeps them, and reads pixels as needed."""
    overhead = 0
    with open(path, "rb") as file:
        place = 8
        while len(head := os.pread(file.fileno(), 8, place)) == 8:
            length = int.from_bytes(head[:4])
            overhead += 0 if head[4:] == b"IDAT" else length
            place += length + 12
    return overhead


def _python_overhead(image: Image.Image, size: int) -> int:
    """Return the bytes needed besides pixels where Pillow decodes number by number, from text or run lengths."""
    if not any(tile.codec_name in ("ppm", "ppm_plain", "bmp_rle") for tile in image.tile):
        return 0
    numbers = image.width * image.height * len(image.getbands())
    if max(numbers, size // 6) > _MOST_IN_PYTHON:
        raise BarError("is too large to decode number by number, as it is stored: convert it to PNG")
    return 3 * numbers * (4 if image.mode == "I" else 1)
