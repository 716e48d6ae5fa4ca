"""The commonest request image, decoded without Pillow: a PNG of 8-bit colour and nothing more.

Such a file holds its header, its pixels and its end, so no policy (alpha, orientation, palette,
depth) has anything to decide. libpng, through imagecodecs, needs a third of Pillow's time for
a small one (docs/serving.md). Whatever else a file is, or libpng refuses, is Pillow's.
"""

from __future__ import annotations

import struct

import imagecodecs
import torch
from torch import Tensor

_START = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR")
_HEADER = struct.Struct(">IIBBBBBI")  # width, height, depth, colour, three methods, checksum
_CHUNK = struct.Struct(">I4s")
_COLOUR = (8, 2, 0, 0, 0)  # 8 bits, red green blue, deflate, usual filters, not interlaced
_END = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return (H, W) of a PNG of 8-bit colour that holds nothing but pixels, else None.

    Pixels and checksums are not looked at.
    """
    place = len(_START) + _HEADER.size
    if not data.startswith(_START) or len(data) < place:
        return None
    width, height, *kind, _ = _HEADER.unpack_from(data, len(_START))
    if tuple(kind) != _COLOUR:
        return None
    last = len(data) - len(_END)
    while place < last:
        length, name = _CHUNK.unpack_from(data, place)
        if name != b"IDAT":
            return None
        place += length + 12
    return (height, width) if place == last and data.endswith(_END) else None


def plain_pixels(data: bytes, *, size: tuple[int, int]) -> Tensor | None:
    """Return the pixels (3, H, W) uint8 of a file of which ``plain_size`` is ``size``.

    None when libpng refuses it: Pillow then says what is wrong with it, or reads it.
    """
    try:
        pixels = imagecodecs.png_decode(data)
    except imagecodecs.PngError:
        return None
    if pixels.shape != (*size, 3):
        return None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
