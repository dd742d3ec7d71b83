"""Decoding of image files, all of it in this module.

Decoding any file takes less than 300 MB of memory and a few seconds (`bar.data.limits`): pixels are rotated and
converted strip by strip, so that of large images only what Pillow loads is held whole.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from bar.data import limits
from bar.errors import BarError

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # for others, Pillow may run programs such as gs
_BACKGROUND = "white"  # under transparent pixels
_ORIENTATION = 0x112  # a tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: str) -> Image.Image:
    """Decode an image file as viewers show it: upright, in RGB with 8 bits per channel.

    Parameters
    ----------
    path : str
        A regular file. Of an animation or several pages, the first is decoded.

    Returns
    -------
    PIL.Image.Image
        In RGB, rotated as its EXIF orientation says. Greys of 16 bits are scaled so that 65535 (in a TIFF, the largest
        value that its bits can hold) becomes 255. Transparent pixels become white. Colour profiles are not applied.

    Raises
    ------
    BarError
        If the file cannot be read, is damaged, is too large to be decoded in some 300 MB of memory and some seconds,
        or holds 32-bit integers or floats, of which the levels of black and white are unknown; the message names the
        file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(np.full((2, 2), 65535 // 2, np.uint16)).save(folder + "/grey.png")
    ...     decode(folder + "/grey.png").getpixel((0, 0))
    (127, 127, 127)
    """
    with _loaded(path) as (image, amount, _):
        upright = Upright(image)
        if image.mode == "RGB" and not upright.is_plain:  # its header did not show this
            limits.refuse_above(amount + 4 * image.width * image.height, image)
        return upright.whole()


def side(path: str) -> int:
    """Return the side of a square image in pixels; raises a BarError if it is not square or cannot be decoded."""
    with _loaded(path, 1) as (image, _, _):
        width, height = Upright(image).size
        if width != height:
            raise BarError(f"is {width}x{height}, not square: say which size all are brought to, such as size 64")
        return width


def scaled(path: str, size: int, exact: bool) -> np.ndarray:
    """Decode an image, scale it until its shorter side fits, and crop it at the centre.

    Parameters
    ----------
    path : str
        See `decode`.
    size : int
        Side of the square in pixels.
    exact : bool
        Whether to refuse an image of another size.

    Returns
    -------
    array, uint8, (3, size, size)
        As `PIL.ImageOps.fit` gives it (bilinear, antialiased). An image too large to be held whole in RGB beside what
        Pillow loads is scaled horizontally and then vertically, where rounding may change values by one level.

    Raises
    ------
    BarError
        As `decode`; also if the image must have another size.
    """
    with _loaded(path, size) as (image, _, whole):
        upright = Upright(image)
        width, height = upright.size
        if exact and (width, height) != (size, size):
            raise BarError(
                f"is {width}x{height} and others are {size}x{size}: "
                f"say which size to bring all images to, such as size={size}"
            )
        if whole or upright.is_plain:
            square = ImageOps.fit(upright.whole(), (size, size), Image.Resampling.BILINEAR)
        else:
            square = _fit_by_strips(upright, size)
        return np.asarray(square).transpose(2, 0, 1)


def _fit_by_strips(upright: "Upright", size: int) -> Image.Image:
    """Scale and crop like `PIL.ImageOps.fit`, with only one strip in RGB at a time."""
    width, height = upright.size
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    reach = 2 + max(1, shorter // size)  # rows beyond the crop that the filter reads
    first, last = max(0, int(top) - reach), min(height, int(top) + shorter + 1 + reach)
    narrow = Image.new("RGB", (size, last - first))
    for row, strip in upright.strips(first, last):
        box = (left, 0, left + shorter, strip.height)
        narrow.paste(strip.resize((size, strip.height), Image.Resampling.BILINEAR, box), (0, row - first))
    box = (0, top - first, size, top - first + shorter)
    return narrow.resize((size, size), Image.Resampling.BILINEAR, box)


class Upright:
    """A loaded image, turned upright and converted to RGB strip by strip, on demand.

    Parameters
    ----------
    image : PIL.Image.Image
        Already loaded.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._turn = _TURNS.get(image.getexif().get(_ORIENTATION))  # Pillow rotates a TIFF when it loads it
        self._orientation = image.getexif().get(_ORIENTATION) if self._turn is not None else 1
        self.size = image.size if self._orientation < 5 else image.size[::-1]

    @property
    def is_plain(self) -> bool:
        """Whether the image is already upright and in RGB."""
        return self._turn is None and self._image.mode == "RGB" and not self._image.has_transparency_data

    def whole(self) -> Image.Image:
        """Return the whole image, upright and in RGB."""
        if self.is_plain:
            return self._image
        whole = Image.new("RGB", self.size)
        for top, strip in self.strips():
            whole.paste(strip, (0, top))
        return whole

    def strips(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Image.Image]]:
        """Yield the rows in [first, last) as strips in RGB, each with the number of its first row."""
        last = self.size[1] if last is None else last
        step = max(1, limits.STRIP // self.size[0])
        for top in range(first, last, step):
            yield top, self._strip(top, min(top + step, last))

    def _strip(self, top: int, bottom: int) -> Image.Image:
        width, height = self._image.size
        if self._orientation in (3, 4):
            box = (0, height - bottom, width, height - top)
        elif self._orientation in (5, 6):
            box = (top, 0, bottom, height)
        elif self._orientation in (7, 8):
            box = (width - bottom, 0, width - top, height)
        else:
            box = (0, top, width, bottom)
        strip = self._image.crop(box)
        if self._turn is not None:
            strip = strip.transpose(self._turn)
        return _to_rgb(_to_8_bits(strip, getattr(self._image, "tag_v2", {})))


@contextlib.contextmanager
def _loaded(path: str, side: int | None = None) -> Iterator[tuple[Image.Image, int, bool]]:
    """Load an image; yields it, the bytes reserved for it, and whether they suffice for all of it in RGB."""
    try:
        with limits.POOL.reserving(limits.memory_to_open(path)), Image.open(path, formats=_FORMATS) as image:
            _check_pixel_type(image)
            amount, whole = limits.memory_to_decode(image, path, side)
        with limits.POOL.reserving(amount), Image.open(path, formats=_FORMATS) as image:
            image.load()
            yield image, amount, whole
            if side is not None:
                image.close()  # its memory is freed before another image gets it
    except BarError as error:
        raise BarError(f"{path} {error}") from None
    except Image.DecompressionBombError as error:
        raise BarError(f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: scale it down") from error
    except PermissionError as error:
        raise BarError(f"{path} may not be read: {error.strerror}") from error
    except Exception as error:  # whatever a decoder raises on a file that it does not understand
        reason = str(error) or type(error).__name__
        raise BarError(f"{path} cannot be read as an image ({reason}): repair or remove it") from error


def _check_pixel_type(image: Image.Image) -> None:
    """Refuse images that Pillow would decode to something else than viewers show."""
    # Pillow opens 16 bits as "I;16" or, from a PGM and in older versions from a PNG, as "I"
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise BarError(
            f"holds {'floats' if image.mode == 'F' else 'integers of 32 bits'}, whose black and white nobody "
            "can tell: convert it to 8 or 16 bits"
        )
    on_its_side = image.format == "TIFF" and image.size != (image.tag_v2[256], image.tag_v2[257])
    if on_its_side and any(tile.codec_name == "raw" for tile in image.tile):
        raise BarError("is an uncompressed TIFF lying on its side, which Pillow scrambles: convert it to PNG")


def _to_8_bits(image: Image.Image, tags: dict) -> Image.Image:
    """Scale greys of more than 8 bits to 8 bits; those of a TIFF as its tags say."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    most = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample, which may also be 12
    levels = ((values * 255 + most // 2) // most).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is 0, which Pillow handles with 8 bits only
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if isinstance(transparent := image.info.get("transparency"), int):  # the grey level that a PNG declares transparent
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits to RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
