"""What an image file may cost: memory and time, told from its header before anything is decoded.

Pillow holds an image whole, with 4 bytes a pixel if it has colours, and some decoders hold it twice or more. What an
image will need is reserved in one room that all threads share; what does not fit into it is refused.
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
_MUCH = 24_000_000  # bytes, for which memory is tidied before
_MOST_BESIDE = 32_000_000  # bytes of a PNG that are not pixels
_MOST_PASSES = 3_000_000_000  # pixels times scans of a JPEG, a few seconds
_MOST_IN_PYTHON = 4_000_000  # numbers that Pillow decodes one by one in Python, a few seconds
_STRIP_BYTES = 32  # a pixel of a strip, with everything that it is on its way to RGB
_QUICK = 10**10  # bytes times pixels of a JPEG that is no trouble, however many scans it has
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # of a JPEG, not counting those inside of pixels
_END, _SCAN = 0xD9, 0xDA


class Room:
    """Memory that threads share: who wants more than is left waits until another is done.

    Parameters
    ----------
    most : int
        How much there is.
    """

    def __init__(self, most: int) -> None:
        self._left, self._change = most, threading.Condition()
        self._most = most

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Hold an amount, no larger than the room; who holds one must not ask for another."""
        amount = min(amount, self._most)
        with self._change:
            self._change.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            if amount > _MUCH:
                _tidy()
            yield
        finally:
            with self._change:
                self._left += amount
                self._change.notify_all()


ROOM = Room(MOST_MEMORY)


def _tidy() -> None:
    """Hand back what is free: glibc keeps it for each thread, so that every thread would hold its largest image."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no need of it
        ctypes.CDLL(None).malloc_trim(0)


def to_open(path: str) -> int:
    """How much memory it may take to open a file, before its size in pixels is known.

    Parameters
    ----------
    path : str

    Returns
    -------
    int
        In bytes.

    Raises
    ------
    BarError
        If that is too much; the message goes on where the name of the file ends.
    """
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
    amount = 3 * size if head[8:] == b"WEBP" else size  # of which Pillow reads the file, and copies it
    if amount > MOST_MEMORY:
        raise BarError(f"is a file of {size / 1e6:.0f} MB, too large to decode: scale the image down")
    if head.startswith(b"\x89PNG") and (beside := _beside_pixels(path)) > _MOST_BESIDE:
        raise BarError(f"holds {beside / 1e6:.0f} MB beside its pixels, too much to decode: remove them")
    return amount


def to_decode(image: Image.Image, path: str, side: int | None) -> tuple[int, bool]:
    """How much memory it takes to decode an image.

    Parameters
    ----------
    image : PIL.Image.Image
        Opened, and not loaded.
    path : str
        Its file.
    side : int, optional
        Of the square that is made of it; without one, all of it is wanted in RGB.

    Returns
    -------
    amount : int
        In bytes.
    whole : bool
        Whether there is room for all of it in RGB, and not only for a strip after another.

    Raises
    ------
    BarError
        If that is too much, or takes too long; the message goes on where the name of the file ends.
    """
    width, height = image.size
    pixels = width * height
    held = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    amount = held * pixels + _STRIP_BYTES * min(pixels, max(STRIP, width, height))
    if side is not None:  # rows that have been scaled across
        amount += 4 * side * min(height, width + 2 * (width // side + 3), height + 2 * (height // side + 3))
    size = os.path.getsize(path)
    match image.format:
        case "JPEG" | "MPO":
            amount += _beside_jpeg(image, path, size)
        case "WEBP":  # a canvas and the one before, both as RGBA, and a copy as bytes
            amount += 12 * pixels + 3 * size
        case "TIFF":
            amount += _beside_tiff(image, held, size)
        case "PNG":  # texts may be compressed, of which Pillow takes so many
            beside = _beside_pixels(path)
            amount += min(1000 * beside, 2**26) + beside
        case "PPM" | "BMP":
            amount += _beside_python(image, size)
    if side is None and image.mode != "RGB":  # of which it may be all that is needed
        amount += 4 * pixels
    refuse_above(amount, image)
    whole = side is not None and amount + 4 * pixels <= MOST_MEMORY
    return amount + 4 * pixels * whole, whole


def refuse_above(amount: int, image: Image.Image) -> None:
    """Refuse an image that takes more memory than there is room for."""
    if amount > MOST_MEMORY:
        raise BarError(
            f"has {image.width}x{image.height} pixels, for which decoding as it is stored takes {amount / 1e6:.0f} MB "
            f"of memory, more than {MOST_MEMORY / 1e6:.0f}: scale it down, or store it as a plain JPEG"
        )


def _beside_jpeg(image: Image.Image, path: str, size: int) -> int:
    """What is no pixel, and of several scans the coefficients, 2 bytes each."""
    pixels = image.width * image.height
    beside = sum(len(content) for _, content in image.applist)
    if size * pixels < _QUICK:
        return beside + 8 * pixels
    with ROOM.taking(size):
        scans = _scans(path)
    if scans * pixels > _MOST_PASSES:
        raise BarError(f"is a JPEG of {scans} scans, which would take too long: store it as a plain JPEG")
    if scans > 1:
        shares = [across * down for _, across, down, _ in image.layer]
        most = max(across for _, across, _, _ in image.layer) * max(down for _, _, down, _ in image.layer)
        beside += 2 * pixels * sum(shares) // most
    return beside


def _scans(path: str) -> int:
    """How often a JPEG goes over its pixels."""
    with open(path, "rb") as file:
        content = file.read()
    scans, place = 0, 2
    while (marker := _MARKER.search(content, place)) and (kind := content[marker.start() + 1]) != _END:
        scans += kind == _SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return scans


def _beside_tiff(image: Image.Image, held: int, size: int) -> int:
    """Of a compressed one its file, which is mapped, and a strip or tile; of one that lies on its side, a copy."""
    tags, pixels = image.tag_v2, image.width * image.height
    beside = held * pixels if tags.get(274, 1) != 1 else 0
    if any(tile.codec_name == "libtiff" for tile in image.tile):
        columns, rows = (tags[322], tags[323]) if 322 in tags else (tags[256], min(tags.get(278, 2**32), tags[257]))
        bits = tags.get(277, 1) * max(tags.get(258, (1,)))
        coefficients = 8 if tags.get(259) in (6, 7) else 0  # of a JPEG inside
        beside += size + columns * rows * (max(4, bits // 8) + coefficients)
    return beside


def _beside_pixels(path: str) -> int:
    """The bytes of a PNG that Pillow keeps whatever they are: all but the pixels, which it reads as it needs them."""
    beside = 0
    with open(path, "rb") as file:
        place = 8
        while len(head := os.pread(file.fileno(), 8, place)) == 8:
            length = int.from_bytes(head[:4])
            beside += 0 if head[4:] == b"IDAT" else length
            place += length + 12
    return beside


def _beside_python(image: Image.Image, size: int) -> int:
    """Of what is decoded number by number, in text or compressed: the numbers, twice."""
    if not any(tile.codec_name in ("ppm", "ppm_plain", "bmp_rle") for tile in image.tile):
        return 0
    numbers = image.width * image.height * len(image.getbands())
    if max(numbers, size // 6) > _MOST_IN_PYTHON:
        raise BarError("is too large to decode number by number, as it is stored: convert it to PNG")
    return 3 * numbers * (4 if image.mode == "I" else 1)
