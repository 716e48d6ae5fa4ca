from __future__ import annotations

import os
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ssl_wm.data.decoding import UnusableImageError, read_pixels, read_size, to_rgb
from ssl_wm.data.streaming import StreamedPixels, decode, in_threads
from ssl_wm.errors import DataError
from ssl_wm.files import sha256_bytes

GREY = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10
COLOUR = np.stack([GREY, 255 - GREY, GREY[::-1]], axis=2)
ALPHA = np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)
DEEP = np.linspace(0, 65535, GREY.size).astype(np.uint16).reshape(GREY.shape)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def repeat(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def palette() -> Image.Image:
    image = Image.fromarray(GREY // 10 % 3).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])[GREY // 10 % 3]
RGBA = Image.fromarray(np.dstack([COLOUR, ALPHA]))
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
ROWS = {
    "rgb": (Image.fromarray(COLOUR), "PNG", {}, COLOUR),
    "grey": (Image.fromarray(GREY), "PNG", {}, repeat(GREY)),
    "bilevel": (Image.fromarray(GREY > 99), "PNG", {}, repeat((GREY > 99) * 255)),
    "rgba": (RGBA, "PNG", {}, over_white(COLOUR, ALPHA)),
    "la": (LA, "PNG", {}, over_white(repeat(GREY), ALPHA)),
    "webp alpha": (RGBA, "WEBP", {"lossless": True, "exact": True}, over_white(COLOUR, ALPHA)),
    "palette": (palette(), "PNG", {}, PALETTE),
    "palette, one transparent": (
        palette(),
        "PNG",
        {"transparency": 1},
        np.where((PALETTE == [0, 255, 0]).all(-1, keepdims=True), 255, PALETTE),
    ),
    "palette, alpha each": (
        palette(),
        "PNG",
        {"transparency": bytes([255, 128, 0])},
        over_white(PALETTE, np.array([255, 128, 0])[GREY // 10 % 3]),
    ),
    "transparent grey": (
        Image.fromarray(GREY),
        "PNG",
        {"transparency": 50},
        repeat(np.where(GREY == 50, 255, GREY)),
    ),
    "cmyk": (
        Image.merge("CMYK", [Image.fromarray(c) for c in (GREY, *[GREY * 0] * 3)]),
        "TIFF",
        {},
        np.dstack([255 - GREY, GREY * 0 + 255, GREY * 0 + 255]),
    ),
    "16-bit png": (Image.fromarray(DEEP), "PNG", {}, repeat(DEEP / 257)),
    "16-bit tiff": (Image.fromarray(DEEP), "TIFF", {}, repeat(DEEP / 257)),
    "16-bit pgm": (Image.fromarray(DEEP), "PPM", {}, repeat(DEEP / 257)),
    "32-bit in 16": (Image.fromarray(DEEP.astype(np.int32)), "TIFF", {}, repeat(DEEP / 257)),
    "float": (
        Image.fromarray((DEEP / 65535).astype(np.float32)),
        "TIFF",
        {},
        repeat(DEEP / 257),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_policy_gives_the_stated_pixels(row, tmp_path):
    image, kind, options, expected = ROWS[row]
    path = tmp_path / "image.bin"
    image.save(path, kind, **options)
    pixels = read_pixels(path, side=None)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (6, 4, 3)
    assert read_size(path) == (6, 4)
    assert np.abs(pixels - expected).max() <= 0.51 + ("alpha" in row or row in ("rgba", "la"))


def test_a_file_of_sixteen_bit_extremes_keeps_black_and_white(tmp_path):
    Image.fromarray(np.array([[0, 65535], [128, 129]], np.uint16)).save(tmp_path / "deep.png")
    assert read_pixels(tmp_path / "deep.png", side=None)[..., 0].tolist() == [[0, 255], [0, 1]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), 70000, np.int32), "integer pixels in [70000, 70000]"),
        (np.full((4, 4), -1, np.int32), "integer pixels in [-1, -1]"),
        (np.full((4, 4), 200, np.float32), "floating-point pixels in [200, 200]"),
        (np.full((4, 4), np.nan, np.float32), "floating-point pixels in [nan, nan]"),
    ],
)
def test_values_without_a_known_scale_are_unusable_not_black(values, says, tmp_path):
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(UnusableImageError) as caught:
        read_pixels(tmp_path / "odd.tif", side=None)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_header_size(kind, orientation, tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (250, 0, 0)
    upright[8:, 16:] = (0, 0, 250)
    stored = {  # how a camera stores the upright image under each orientation (EXIF 2.3, 4.6.4)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, kind, exif=exif)
    assert read_size(path) == (16, 32)
    pixels = read_pixels(path, side=None)
    assert pixels.shape == upright.shape
    corners = (slice(2, None, 11), slice(2, None, 25))  # away from the edges that JPEG blurs
    assert np.abs(pixels[corners].astype(int) - upright[corners]).max() < 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"junkjunkjunk",
        b"II*\0\x08\0\0\0\x01",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # "abc" as orientation
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image(kind, exif, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a", kind, exif=b"Exif\0\0" + exif)
    assert read_size(tmp_path / "a") == (6, 4)
    assert read_pixels(tmp_path / "a", side=None).shape == (6, 4, 3)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind, tmp_path):
    first, second = Image.new("RGB", (4, 6), (255, 0, 0)), Image.new("RGB", (4, 6), (0, 0, 255))
    path = tmp_path / "frames"
    first.save(path, kind, save_all=True, append_images=[second])
    assert np.abs(read_pixels(path, side=None) - np.array([255, 0, 0.0])).max() < 6


def _encoded(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_truncated_files_are_unusable(kind, share, tmp_path):
    data = _encoded(kind)
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnusableImageError):
        read_pixels(tmp_path / "cut", side=None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty file (0 bytes)"),
        (b"not an image at all", "not an image in one of the formats JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in one of"),
    ],
)
@pytest.mark.parametrize("read", [read_size, partial(read_pixels, side=None)])
def test_files_that_are_no_images_give_a_plain_reason(read, content, says, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnusableImageError) as caught:
        read(tmp_path / "a.jpg")
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_or_forbidden_file_gives_the_system_reason(tmp_path):
    with pytest.raises(UnusableImageError, match="cannot be read: No such file"):
        read_size(tmp_path / "gone.png")


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_one_pixel_images_are_unusable(shape, tmp_path):
    Image.new("L", shape[::-1]).save(tmp_path / "thin.png")
    for read in (read_size, partial(read_pixels, side=8)):
        with pytest.raises(UnusableImageError, match="one pixel wide or high"):
            read(tmp_path / "thin.png")


@pytest.mark.parametrize("side", [11, 20])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_unusable_even_when_pillow_only_warns(
    side, action, tmp_path, monkeypatch
):
    import warnings

    Image.new("L", (side, side)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(UnusableImageError, match="decompression bomb"):
            read_size(tmp_path / "bomb.png")


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (31, 33)])
def test_resizing_takes_the_centred_square_without_squeezing(width, height):
    image = Image.new("RGB", (width, height), (255, 0, 0))
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    image.paste((0, 0, 255), (left + 1, top + 1, left + short - 1, top + short - 1))
    pixels = read_pixels(lambda: image, side=10)
    assert pixels.shape == (10, 10, 3)
    assert (pixels[2:-2, 2:-2] == (0, 0, 255)).all()


@given(arrays(np.uint8, st.tuples(st.integers(2, 40), st.integers(2, 40), st.just(3))))
def test_resizing_agrees_with_torch_antialiased_bilinear_resizing(array):
    import torch.nn.functional as F

    short = min(array.shape[:2])
    square = array[:short, :short]
    ours = read_pixels(lambda: Image.fromarray(square), side=8)
    theirs = F.interpolate(
        torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float(),
        size=(8, 8),
        mode="bilinear",
        antialias=True,
    )
    assert np.abs(ours.transpose(2, 0, 1) - theirs[0].numpy()).max() <= 1.5


def test_a_wide_strip_is_cropped_without_being_blown_up_first():
    strip = Image.new("RGB", (30000, 2), (9, 9, 9))
    assert (read_pixels(lambda: strip, side=64) == 9).all()


@given(arrays(np.uint8, (5, 7, 3)))
def test_rgb_pixels_of_the_right_size_pass_untouched(array):
    image = Image.fromarray(array)
    assert to_rgb(image) is image
    assert (read_pixels(lambda: image, side=None, size=(5, 7)) == array).all()


def test_threads_return_results_in_order_whatever_the_count():
    for count in (0, 1, 2, 63, 64, 65, 1000):
        assert in_threads(lambda index: index * index, count) == [i * i for i in range(count)]


def _files(folder: Path, count: int = 9) -> list[Path]:
    rng = np.random.default_rng(1)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), np.uint8)).save(path)
    return paths


def test_decode_reports_each_unusable_image_and_keeps_the_others_in_place(tmp_path):
    paths = _files(tmp_path)
    paths[3].write_bytes(b"")
    Image.new("RGB", (5, 5)).save(paths[7])
    pixels, bad = decode(paths, side=None, size=(6, 4))
    assert pixels.shape == (9, 3, 6, 4)
    assert list(bad) == [3, 7]
    assert bad[3] == "empty file (0 bytes)"
    assert bad[7].startswith("decodes to 5 x 5 pixels where 6 x 4")
    for index in set(range(9)) - set(bad):
        expected = torch.from_numpy(np.array(Image.open(paths[index]))).permute(2, 0, 1)
        assert torch.equal(pixels[index], expected)


def _streamed(folder: Path) -> StreamedPixels:
    paths = _files(folder)
    return StreamedPixels(
        items=tuple(paths), names=tuple(p.name for p in paths), side=None, size=(6, 4)
    )


def test_streamed_pixels_equal_the_decoded_ones_in_the_asked_order(tmp_path):
    streamed = _streamed(tmp_path)
    whole, _ = decode(streamed.items, side=None, size=(6, 4))
    chosen = torch.tensor([5, 0, 5, 8])
    assert streamed.shape == (9, 3, 6, 4)
    assert torch.equal(streamed.take(chosen), whole[chosen])
    assert torch.equal(streamed.subset(chosen).take(torch.tensor([3, 0])), whole[[8, 5]])
    assert streamed.take(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 6, 4)


def test_a_streamed_file_that_breaks_later_is_named(tmp_path):
    streamed = _streamed(tmp_path)
    os.truncate(streamed.items[4], 50)
    with pytest.raises(DataError, match=r"^4\.png: .*open the images again$"):
        streamed.take(torch.tensor([2, 4]))
    streamed.items[4].unlink()
    with pytest.raises(DataError, match=r"4\.png cannot be read any more"):
        streamed.digests()


def test_digests_follow_the_bytes_of_files_and_the_pixels_of_functions(tmp_path):
    streamed = _streamed(tmp_path)
    before = streamed.digests()
    Image.new("RGB", (4, 6)).save(streamed.items[2])
    assert [a == b for a, b in zip(before, streamed.digests(), strict=True)].index(False) == 2
    made = StreamedPixels((partial(Image.new, "RGB", (4, 6)),), ("0",), None, (6, 4))
    assert made.digests() == [sha256_bytes(bytes(72))]


def test_a_cmyk_jpeg_is_not_read_as_its_negative(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg")
    assert np.abs(read_pixels(tmp_path / "cyan.jpg", side=None) - [0.0, 255, 255]).max() < 6
