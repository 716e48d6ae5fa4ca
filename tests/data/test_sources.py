from __future__ import annotations

import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssl_wm.data import sources
from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.sources import open_images
from ssl_wm.data.streaming import StreamedPixels
from ssl_wm.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def folder_of(
    folder: Path, per_class: int = 8, classes: str = "ab", size: tuple[int, int] = (6, 4)
) -> Path:
    """Write PNG files of noise, ``size`` = (H, W), into one folder per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def image_set(count: int = 6, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return ImageSet("x", "train", pixels, torch.arange(count) % 2, ("a", "b"))


def test_a_flat_folder_is_read_whole_with_a_quarter_held_out(tmp_path):
    images = open_images(str(folder_of(tmp_path)))
    assert (len(images.train), len(images.test)) == (12, 4)
    assert (images.train.split, images.test.split) == ("train", "test")
    assert images.train.labels.bincount().tolist() == [6, 6]
    assert images.train.class_names == ("a", "b")
    assert images.train.size == images.test.size == (6, 4)
    assert not set(images.train.ids) & set(images.test.ids)
    for half in (images.train, images.test):
        assert half.labels.dtype == torch.int64
        for index, name in enumerate(half.ids):
            expected = torch.from_numpy(np.array(Image.open(tmp_path / name))).permute(2, 0, 1)
            assert torch.equal(half.pixels[index], expected)
            assert half.class_names[half.labels[index]] == name.split("/")[0]


def test_the_two_halves_of_a_folder_are_kept_apart(tmp_path):
    folder_of(tmp_path / "train", per_class=3)
    folder_of(tmp_path / "val", per_class=2)
    images = open_images(str(tmp_path))
    assert (len(images.train), len(images.test)) == (6, 4)
    assert images.test.ids[0] == "val/a/000.png"


def test_images_of_several_sizes_become_224_unless_a_size_is_given(tmp_path):
    folder_of(tmp_path, per_class=2)
    folder_of(tmp_path, per_class=2, classes="c", size=(9, 9))
    assert open_images(str(tmp_path)).train.size == (224, 224)
    assert open_images(str(tmp_path), size=8).test.size == (8, 8)


@pytest.mark.parametrize("size", [None, 5])
def test_streaming_gives_the_same_pixels_labels_and_ids(size, tmp_path, monkeypatch):
    folder_of(tmp_path, per_class=12)
    held = open_images(str(tmp_path), size=size)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    streamed = open_images(str(tmp_path), size=size)
    for half in ("train", "test"):
        one, two = getattr(held, half), getattr(streamed, half)
        assert isinstance(one.pixels, torch.Tensor)
        assert isinstance(two.pixels, StreamedPixels)
        assert (one.ids, one.size, len(one)) == (two.ids, two.size, len(two))
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(torch.cat(list(two.batches(7))), one.pixels)
        chosen = torch.tensor([3, 0, 3])
        assert torch.equal(two.subset(chosen).take(torch.arange(3)), one.take(chosen))
        assert two.subset(chosen).ids == one.subset(chosen).ids
    assert streamed.train.to("cpu") is streamed.train


def test_both_halves_are_held_the_same_way(tmp_path, monkeypatch):
    folder_of(tmp_path)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 16 * 3 * 6 * 4 - 1)  # each half alone would fit
    images = open_images(str(tmp_path))
    assert isinstance(images.train.pixels, StreamedPixels)
    assert isinstance(images.test.pixels, StreamedPixels)


@pytest.mark.parametrize("memory", [0, 2**31])
def test_unusable_images_are_left_out_listed_and_logged_once(memory, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", memory)
    folder_of(tmp_path, per_class=100)
    (tmp_path / "a" / "005.png").write_bytes(b"")
    Image.new("L", (1, 1)).save(tmp_path / "b" / "007.png")
    with caplog.at_level(logging.WARNING, logger="ssl_wm"):
        images = open_images(str(tmp_path))
    skipped = sorted(images.train.skipped + images.test.skipped)
    assert skipped == [
        "a/005.png: empty file (0 bytes)",
        "b/007.png: one pixel wide or high (1 x 1)",
    ]
    assert len(images.train) + len(images.test) == 198
    assert not {"a/005.png", "b/007.png"} & set(images.train.ids + images.test.ids)
    (record,) = caplog.records
    assert record.name == "ssl_wm"
    assert "2 of 200 images are unusable and left out; first: " in record.getMessage()


def test_images_that_fail_in_the_header_and_in_the_pixels_leave_the_rest_aligned(tmp_path):
    for half, per_class in (("train", 100), ("test", 2)):
        folder_of(tmp_path / half, per_class=per_class, size=(20, 20))
    (tmp_path / "train" / "a" / "001.png").write_bytes(b"")
    path = tmp_path / "train" / "b" / "050.png"
    path.write_bytes(path.read_bytes()[:600])
    images = open_images(str(tmp_path))
    assert [line.split(": ")[0] for line in images.train.skipped] == [
        "train/a/001.png",
        "train/b/050.png",
    ]
    assert not images.test.skipped
    assert len(images.train) == len(images.train.ids) == 198
    for index, name in enumerate(images.train.ids):
        expected = torch.from_numpy(np.array(Image.open(tmp_path / name))).permute(2, 0, 1)
        assert torch.equal(images.train.pixels[index], expected)
        assert images.train.class_names[images.train.labels[index]] == name.split("/")[1]


@pytest.mark.parametrize("broken", [3, 200])
def test_too_many_unusable_images_are_an_error_that_names_one(broken, tmp_path):
    folder_of(tmp_path, per_class=100)
    files = sorted(tmp_path.rglob("*.png"))
    for path in files[:broken]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        open_images(str(tmp_path))
    message = str(caught.value)
    assert f"{broken} of 200 images are unusable" in message
    assert "first: a/0" in message
    assert "not an image in one of the formats" in message
    assert "\n" not in message


def test_files_that_are_no_images_are_told_of(tmp_path, caplog):
    folder_of(tmp_path)
    (tmp_path / "a" / "boxes.csv").touch()
    with caplog.at_level(logging.WARNING, logger="ssl_wm"):
        open_images(str(tmp_path))
    (record,) = caplog.records
    assert "1 other files are not read as images; first: a/boxes.csv" in record.getMessage()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ftp://host/images", "unknown scheme 'ftp:'"),
        ("hf-hub:someone/images", "unknown scheme 'hf-hub:'"),
        ("no/such/folder", "image folder no/such/folder does not exist"),
        ("timm/resnet18", "image folder timm/resnet18 does not exist"),
    ],
)
def test_a_spec_that_names_nothing_says_what_a_spec_is(spec, says):
    with pytest.raises(DataError) as caught:
        open_images(spec)
    assert says in str(caught.value)
    assert "torchvision/<Dataset> or digits" in str(caught.value)


@pytest.mark.parametrize("setting", [{"size": 1}, {"size": -8}, {"limit": 0}])
def test_a_size_or_limit_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match="must be at least"):
        open_images("digits", **setting)


def test_limit_is_balanced_repeatable_and_reads_no_other_file(tmp_path):
    folder_of(tmp_path, per_class=20, classes="abc")
    first = open_images(str(tmp_path), limit=7)
    assert (len(first.train), len(first.test)) == (7, 7)
    assert sorted(first.train.labels.bincount().tolist()) == [2, 2, 3]
    used = set(first.train.ids + first.test.ids)
    for path in tmp_path.rglob("*.png"):
        if path.relative_to(tmp_path).as_posix() not in used:
            path.write_bytes(b"broken")
    again = open_images(str(tmp_path), limit=7)
    assert again.train.ids == first.train.ids
    assert again.train.fingerprint == first.train.fingerprint


def test_one_class_is_enough_for_a_pool(tmp_path):
    images = open_images(str(folder_of(tmp_path, classes="a")))
    assert images.train.class_names == ("a",)


def test_digits_are_always_there_and_never_change():
    images = open_images("digits")
    assert (len(images.train), len(images.test)) == (1346, 451)
    assert images.train.size == (32, 32)
    assert images.train.ids is None
    assert images.train.class_names == tuple("0123456789")
    assert images.train.fingerprint == (
        "99189d4eab543c59830c044afdd7663963a6e630d4810aa874ea0c91f348e986"
    )


def test_digits_can_be_resized_and_limited():
    images = open_images("digits", size=16, limit=30)
    assert images.train.pixels.shape == (30, 3, 16, 16)
    assert images.test.labels.bincount().tolist() == [3] * 10


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": torch.zeros(6, 3, 4, 4)},
        {"pixels": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)},
        {"labels": torch.zeros(5, dtype=torch.int64)},
        {"labels": torch.zeros(6)},
        {"ids": ("a",)},
    ],
)
def test_a_set_whose_parts_do_not_fit_is_refused(change):
    with pytest.raises(DataError):
        replace(image_set(), **change)


def test_batches_cover_all_images_once_in_order():
    images = image_set(10)
    batches = list(images.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), images.pixels)


def test_equal_sets_share_a_fingerprint_however_they_came_about():
    images = image_set(6)
    order = torch.tensor([4, 1, 5])
    other = ImageSet(
        "y", "test", images.pixels[order], images.labels[order], ("p", "q"), ("1", "2", "3")
    )
    assert images.subset(order).fingerprint == other.fingerprint
    assert images.subset(order.flip(0)).fingerprint != other.fingerprint
    strided = replace(images, pixels=images.pixels.contiguous(memory_format=torch.channels_last))
    assert strided.fingerprint == images.fingerprint


@given(st.integers(0, 359), st.integers(1, 255))
def test_one_changed_pixel_changes_the_fingerprint(position, step):
    images = image_set(6)
    pixels = images.pixels.clone()
    pixels.view(-1)[position] += step
    assert replace(images, pixels=pixels).fingerprint != images.fingerprint


def test_labels_and_shape_are_part_of_the_fingerprint():
    images = image_set(6)
    prints = {
        images.fingerprint,
        replace(images, labels=images.labels.flip(0)).fingerprint,
        replace(images, pixels=images.pixels.view(6, 3, 5, 4)).fingerprint,
        images.subset(torch.arange(5)).fingerprint,
    }
    assert len(prints) == 4


def test_a_streamed_fingerprint_moves_with_the_folder_and_sees_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    one = open_images(str(folder_of(tmp_path / "here"))).train
    two = open_images(str(folder_of(tmp_path / "there"))).train
    assert one.fingerprint == two.fingerprint
    path = tmp_path / "there" / two.ids[3]
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_images(str(tmp_path / "there")).train.fingerprint != one.fingerprint


def test_a_streamed_file_that_breaks_after_opening_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    images = open_images(str(folder_of(tmp_path))).train
    (tmp_path / images.ids[2]).write_bytes(b"broken")
    with pytest.raises(DataError, match=f"^{images.ids[2]}: not an image"):
        list(images.batches(4))


@pytest.mark.parametrize("name", ["cifar10", "gtsrb32"])
def test_the_shared_archives_open_as_image_folders(name, tmp_path):
    archive = SHARED / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{name}.tar.xz is not beside the repository")
    with tarfile.open(archive) as tar:
        for count, member in enumerate(tar):
            if count > 300:
                break
            tar.extract(member, tmp_path, filter="data")
    found = sorted((tmp_path / name).iterdir())[0]
    images = open_images(str(found), limit=20)
    assert images.train.size == (32, 32)
    assert not images.train.skipped
