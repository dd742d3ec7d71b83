"""What the pixels of an image file are. The only place that decodes."""

import numpy as np
from PIL import Image, ImageOps

from bar.errors import BarError

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # Pillow would hand others to programs, such as gs
_BACKGROUND = "white"  # under transparent pixels


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
            return to_rgb(_to_8_bits(image))
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


def to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies it, and some are large
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
