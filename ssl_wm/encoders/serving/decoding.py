"""From a request's bytes to pixels, with every limit checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import orjson
import pybase64
import torch
from PIL import Image, JpegImagePlugin, PngImagePlugin
from torch import Tensor

from ssl_wm.data.decoding import (
    UnusableImageError,
    check_sides,
    told_why,
    upright_pixels,
    upright_size,
)
from ssl_wm.encoders.serving.plain_png import plain_pixels, plain_size
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.settings import ServeConfig

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
Encoding = Literal["float", "base64"]


@dataclass(frozen=True)
class Asked:
    """What a request asks: image files as they came, and how to write the answer."""

    files: tuple[bytes, ...]
    encoding: Encoding


def parse_json(body: bytes, *, limits: ServeConfig) -> Asked:
    """Return what a JSON body asks: ``{"images": [base64, ...], "encoding_format": "float"}``.

    An image may be a data URL, of which only the base64 part is used; no address is followed.

    Raises:
        RefusedError: 422, it is not that; 413, there are too many images.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _unusable("the body is not JSON") from None
    if not isinstance(data, dict):
        raise _unusable('the body must be a JSON object, {"images": [base64, ...]}')
    unknown = sorted(set(data) - {"images", "encoding_format", "model"})
    if unknown:
        raise _unusable("the body may hold 'images', 'encoding_format' and 'model'; got more")
    images = data.get("images")
    if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
        raise _unusable("'images' must be a list of base64 strings")
    check_count(len(images), limits=limits)
    files = tuple(_from_base64(text, index) for index, text in enumerate(images))
    return Asked(files, parse_encoding(data.get("encoding_format", "float")))


def parse_encoding(value: Any) -> Encoding:
    """Return ``value`` when it names a way to write embeddings.

    Raises:
        RefusedError: 422, it does not.
    """
    if value == "float":
        return "float"
    if value == "base64":
        return "base64"
    raise _unusable("'encoding_format' must be 'float' or 'base64' (little-endian float32)")


def check_count(count: int, *, limits: ServeConfig) -> None:
    """Do nothing when a request may hold ``count`` images.

    Raises:
        RefusedError: 422, there are none; 413, there are too many.
    """
    if count == 0:
        raise _unusable("there are no images; send at least one")
    if count > limits.max_images:
        raise RefusedError(
            413, "too_many_images",
            f"{count} images in a request, and {limits.max_images} are accepted; send fewer at a "
            "time",
        )  # fmt: skip


def _from_base64(text: str, index: int) -> bytes:
    _, _, data = text.rpartition("base64,") if text.startswith("data:") else ("", "", text)
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError:
        raise _unusable(f"image {index} is not base64") from None


def decode_files(files: Sequence[bytes], *, limits: ServeConfig) -> list[Tensor]:
    """Return the pixels of PNG and JPEG ``files``, each (3, H, W) uint8.

    All headers are read before the first pixel is decoded. The policy of ``data.decoding``
    holds: alpha on white, EXIF orientation applied, the first frame of an animation.

    Raises:
        RefusedError: 413, an image or all together have too many pixels; 422, one is damaged or
            of another format. The message names the image by its place, nothing of its content.
    """
    opened, total = [], 0
    for index, data in enumerate(files):
        image, (height, width) = _header(data, index)
        opened.append((image, (height, width)))
        total += height * width
        if limits.max_pixels is not None and height * width > limits.max_pixels:
            raise _too_large(f"image {index} has {height} x {width} pixels", limits.max_pixels)
        if total > limits.max_request_pixels:
            raise _too_large("the images together have too many pixels", limits.max_request_pixels)
    return [_pixels(image, size, index) for index, (image, size) in enumerate(opened)]


def _header(data: bytes, index: int) -> tuple[Image.Image | bytes, tuple[int, int]]:
    """Return the opened image, or the file itself where it is a plain PNG, and its (H, W)."""
    try:
        with told_why():
            plain = plain_size(data)
            if plain is not None:
                check_sides(*plain)
                return data, plain
            image = _open(data)
            check_sides(image.height, image.width)
            return image, upright_size(image)
    except UnusableImageError as error:
        if "decompression bomb" in str(error):
            raise RefusedError(413, "too_large", f"image {index}: {error}") from None
        raise _unusable(f"image {index}: {error}") from None


def _pixels(image: Image.Image | bytes, size: tuple[int, int], index: int) -> Tensor:
    if isinstance(image, bytes):
        plain = plain_pixels(image, size=size)
        if plain is not None:
            return plain
    try:
        with told_why():
            opened = _open(image) if isinstance(image, bytes) else image
            pixels = upright_pixels(opened)
    except UnusableImageError as error:
        raise _unusable(f"image {index}: {error}") from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _open(data: bytes) -> Image.Image:
    """Return the image in ``data``, header alone read; never more than these two decoders run."""
    if data.startswith(PNG):
        return PngImagePlugin.PngImageFile(BytesIO(data))
    if data.startswith(JPEG):
        return JpegImagePlugin.JpegImageFile(BytesIO(data))
    raise UnusableImageError("neither a PNG nor a JPEG file")


def _unusable(message: str) -> RefusedError:
    return RefusedError(422, "unusable", message)


def _too_large(what: str, most: int) -> RefusedError:
    return RefusedError(413, "too_large", f"{what}; {most} are accepted: send fewer or smaller")
