"""PNG files of plain colour: libpng gives Pillow's pixels, and every other file is Pillow's."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ssl_wm.data.decoding import upright_pixels
from ssl_wm.encoders.serving.decoding import decode_files
from ssl_wm.encoders.serving.plain_png import plain_pixels, plain_size
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.settings import ServeConfig

LIMITS = ServeConfig(max_pixels=64 * 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def written(pixels: np.ndarray, *, filters: list[int], parts: int = 1) -> bytes:
    """A PNG by the specification's words: one filter a row, the data in so many chunks."""
    height, width, _ = pixels.shape
    rows, before = [], np.zeros(3 * width, np.uint8)
    for row, kind in zip(pixels.reshape(height, -1), filters, strict=True):
        left = np.concatenate([np.zeros(3, np.uint8), row[:-3]])
        corner = np.concatenate([np.zeros(3, np.uint8), before[:-3]])
        rows.append(bytes([kind]) + (row - guess(kind, left, before, corner)).tobytes())
        before = row
    data = zlib.compress(b"".join(rows))
    step = -(-len(data) // parts)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunk(b"IDAT", data[i : i + step]) for i in range(0, len(data), step))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def guess(kind: int, left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    if kind == 4:
        a, b, c = (each.astype(int) for each in (left, above, corner))
        far = np.stack([abs(b - c), abs(a - c), abs(a + b - 2 * c)])
        return np.stack([a, b, c])[far.argmin(0), np.arange(len(a))].astype(np.uint8)
    halved = ((left.astype(int) + above) // 2).astype(np.uint8)
    return [np.zeros_like(left), left, above, halved][kind]


@given(st.lists(st.integers(0, 4), min_size=6, max_size=6), st.integers(1, 4))
def test_every_filter_and_split_gives_the_pixels_that_were_written(filters, parts):
    data = written(PIXELS, filters=filters, parts=parts)
    assert plain_size(data) == (6, 9)
    pixels = plain_pixels(data, size=(6, 9))
    assert pixels is not None
    assert torch.equal(pixels, torch.from_numpy(PIXELS).permute(2, 0, 1))


def test_what_pillow_writes_of_plain_colour_is_plain():
    assert plain_size(png(Image.fromarray(PIXELS))) == (6, 9)


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "00")
    return info


RGB = Image.fromarray(PIXELS)
OTHERS = {
    "alpha": png(RGB.convert("RGBA")),
    "transparent colour": png(RGB, transparency=tuple(PIXELS[0, 0].tolist())),
    "palette": png(RGB.quantize(8)),
    "grey": png(RGB.convert("L")),
    "16-bit grey": png(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
    "orientation": png(RGB, exif=oriented()),
    "text that may hold an orientation": png(RGB, pnginfo=with_text()),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
    "nothing": b"",
    "a header alone": png(RGB)[:33],
    "something behind the end": png(RGB) + b"more",
    "no end": png(RGB)[:-12],
    "interlaced": png(RGB)[:28] + b"\x01" + png(RGB)[29:],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_policy_must_decide_is_not_plain(kind):
    assert plain_size(OTHERS[kind]) is None


def test_a_turned_png_is_turned_by_the_service_too():
    turned = decode_files([OTHERS["orientation"]], limits=LIMITS)[0]
    assert torch.equal(turned, torch.from_numpy(np.rot90(PIXELS, -1).copy()).permute(2, 0, 1))


@given(st.data())
def test_a_damaged_file_gives_pillows_pixels_or_a_refusal(data):
    whole = bytearray(written(PIXELS, filters=[0, 1, 2, 3, 4, 1]))
    place = data.draw(st.integers(8, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        pixels = decode_files([bytes(whole)], limits=LIMITS)[0]
    except RefusedError:
        return
    expected = upright_pixels(Image.open(io.BytesIO(bytes(whole)), formats=["PNG"]))
    assert torch.equal(pixels, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_plain_file_without_its_last_rows_is_refused_as_damaged(capfd):
    whole = written(PIXELS, filters=[0] * 6)
    rows = zlib.decompress(whole[41:-16])
    cut = whole[:33] + chunk(b"IDAT", zlib.compress(rows[:60])) + whole[-12:]
    assert plain_size(cut) == (6, 9)
    assert plain_pixels(cut, size=(6, 9)) is None
    with pytest.raises(RefusedError, match="image 0: cannot be read"):
        decode_files([cut], limits=LIMITS)
    assert capfd.readouterr().err == ""
