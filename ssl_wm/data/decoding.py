"""From one image file to uint8 RGB pixels: the stated policy.

======================================  ====================================================
What the file holds                     What is done
======================================  ====================================================
grey or bilevel (L, 1)                  the one channel is repeated three times
alpha or a transparent colour (RGBA,    composited on white; a palette is resolved first
LA, PA, palette, tRNS)
palette without transparency            resolved to RGB
CMYK, YCbCr, LAB, HSV                   Pillow's conversion to RGB; ICC profiles are ignored
16-bit grey (I;16, and I in 0..65535)   v / 257, rounded; its alpha is ignored
16-bit colour                           Pillow reads the high byte of each channel
32-bit integer (I) outside 0..65535     unusable: its scale is not known
floating point (F) in [0, 1]            v * 255, rounded
floating point (F) outside [0, 1]       unusable: its scale is not known
EXIF orientation                        applied; EXIF that cannot be read is ignored
animated or of several pages            the first frame
width or height below 2 pixels          unusable
empty (0 bytes), truncated, unreadable  unusable
above ``PIL.Image.MAX_IMAGE_PIXELS``    unusable (a decompression bomb)
======================================  ====================================================

Only ``FORMATS`` are tried, whatever a file's name says. Resizing to a side S takes the centred
square of the upright image to (S, S), bilinear and antialiased: the same as resizing the
shorter side to S and cropping the centre. An image that is (S, S) already is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ssl_wm.errors import DataError

Item = Path | Callable[[], Image.Image]
"""Where one image comes from: a file, or a function that returns it."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp"),
    *(".tif", ".tiff", ".webp", ".gif"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableImageError(DataError):
    """One image cannot be used; the message is the reason, without the file's name."""


def read_size(item: Item) -> tuple[int, int]:
    """Return (H, W) of the upright image from its header; no pixel of a file is decoded.

    Raises:
        UnusableImageError: the header is unreadable, or the policy refuses the size.
    """
    with _opened(item) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (H, W) of an opened image as it comes out upright; no pixel of a file is decoded."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # .size may be upright already
        width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
        turned = image.tag_v2.get(ExifTags.Base.Orientation, 1)
    elif image.format == "PNG" and "exif" not in image.info:
        turned = 1  # getexif would decode the pixels to look behind them
    else:
        turned = _orientation(image)
    return (width, height) if turned in (5, 6, 7, 8) else (height, width)


def read_pixels(
    item: Item, *, side: int | None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of one image under the policy of this module.

    Args:
        item: the file, or a function that returns the image.
        side: resize and crop to (side, side); None keeps the image's own size.
        size: (H, W) that must come out; None accepts any.

    Raises:
        UnusableImageError: the image cannot be decoded, or comes out at another size.
    """
    with _opened(item) as image:
        return upright_pixels(image, side=side, size=size)


def upright_pixels(
    image: Image.Image, *, side: int | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return what ``read_pixels`` returns, (H, W, 3), from an opened image."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = to_rgb(image if turn is None else image.transpose(turn))
    if side is not None and rgb.size != (side, side):
        rgb = _fit(rgb, side)
    if size is not None and (rgb.height, rgb.width) != size:
        raise UnusableImageError(
            f"decodes to {rgb.height} x {rgb.width} pixels where {size[0]} x {size[1]} "
            "were expected from its header"
        )
    return np.asarray(rgb)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as 8-bit RGB under the policy of this module (orientation aside).

    Raises:
        UnusableImageError: integer or floating-point values have no known scale.

    >>> to_rgb(Image.new("L", (2, 2), 7)).getpixel((0, 0))
    (7, 7, 7)
    >>> to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise UnusableImageError(
                f"floating-point pixels in [{low:g}, {high:g}]; [0, 1] was expected"
            )
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise UnusableImageError(f"integer pixels in [{low}, {high}]; 0..65535 was expected")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _fit(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata says nothing against the pixels
        return 1


def check_sides(height: int, width: int) -> None:
    """Do nothing when an image of ``height`` x ``width`` pixels may be decoded.

    Raises:
        UnusableImageError: one pixel wide or high, or a decompression bomb.
    """
    most = Image.MAX_IMAGE_PIXELS
    if min(width, height) < 2:
        raise UnusableImageError(f"one pixel wide or high ({height} x {width})")
    if most is not None and width * height > most:
        raise UnusableImageError(
            f"{height} x {width} pixels, above the limit of {most} (decompression bomb)"
        )


@contextmanager
def told_why(item: Item | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises in the block, about ``item``, into an ``UnusableImageError``."""
    try:
        yield
    except UnusableImageError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside a codec
        raise UnusableImageError(_reason(item, error)) from error


@contextmanager
def _opened(item: Item) -> Iterator[Image.Image]:
    with (
        told_why(item),
        Image.open(item, formats=FORMATS) if isinstance(item, Path) else item() as image,
    ):
        check_sides(image.height, image.width)
        yield image


def _reason(item: Item | None, error: Exception) -> str:
    if isinstance(item, Path) and item.is_file() and item.stat().st_size == 0:
        return "empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"above the limit of {Image.MAX_IMAGE_PIXELS} pixels (decompression bomb)"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(f"cannot be read: {text or type(error).__name__}".split())
