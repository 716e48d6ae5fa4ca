from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_wm.data.catalogue import list_digits, list_torchvision
from ssl_wm.data.sources import open_images
from ssl_wm.errors import ConfigError, DataError


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write ``array`` of uint8 in the idx format of MNIST (magic, sizes, bytes)."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def fashion_mnist(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng, halves = np.random.default_rng(0), {}
    for half, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / f"{half}-images-idx3-ubyte", images)
        write_idx(folder / f"{half}-labels-idx1-ubyte", labels)
        halves[half] = images, labels
    return halves


def save(path: Path, seed: int, size: tuple[int, int] = (12, 10), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def test_a_dataset_with_a_train_flag_gives_its_arrays(tmp_path):
    halves = fashion_mnist(tmp_path)
    images = open_images("torchvision/FashionMNIST", root=tmp_path)
    for half, found in (("train", images.train), ("t10k", images.test)):
        pixels, labels = halves[half]
        assert torch.equal(found.pixels[:, 1], torch.from_numpy(pixels))
        assert found.labels.tolist() == labels.tolist()
    assert images.train.class_names[:2] == ("T-shirt/top", "Trouser")
    assert images.train.ids is None
    assert images.train.source == "torchvision/FashionMNIST"


def test_a_dataset_of_arrays_streams_the_same_pixels(tmp_path, monkeypatch):
    fashion_mnist(tmp_path)
    whole = open_images("torchvision/FashionMNIST", root=tmp_path, size=16).train
    monkeypatch.setattr("ssl_wm.data.sources.MEMORY_LIMIT", 0)
    streamed = open_images("torchvision/FashionMNIST", root=tmp_path, size=16).train
    assert not isinstance(streamed.pixels, torch.Tensor)
    assert torch.equal(streamed.take(torch.arange(20)), whole.pixels)
    assert streamed.fingerprint == streamed.subset(torch.arange(20)).fingerprint


def test_a_dataset_with_a_split_of_files_gives_them_as_files(tmp_path):
    for split in ("train", "val"):
        for index, folder in enumerate(["n01440764", "n02102040"]):
            for n in range(3):
                save(tmp_path / "imagenette2" / split / folder / f"{n}.JPEG", 10 * index + n)
    images = open_images("torchvision/Imagenette", root=tmp_path)
    assert len(images.train) == len(images.test) == 6
    assert images.train.ids[0] == "imagenette2/train/n01440764/0.JPEG"
    assert images.test.ids[-1] == "imagenette2/val/n02102040/2.JPEG"
    assert images.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.train.class_names[0] == "tench, Tinca tinca"


def test_a_dataset_without_class_names_numbers_them(tmp_path):
    base = tmp_path / "gtsrb"
    for label in range(2):
        for n in range(2):
            save(base / "GTSRB" / "Training" / f"0000{label}" / f"{n}.ppm", n)
            save(base / "GTSRB" / "Final_Test" / "Images" / f"{label}{n}.ppm", n)
    rows = [f"{label}{n}.ppm;{label}" for label in range(2) for n in range(2)]
    (base / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]))
    images = open_images("torchvision/GTSRB", root=tmp_path, size=8)
    assert images.train.class_names == ("0", "1")
    assert images.test.labels.tolist() == [0, 0, 1, 1]
    assert images.test.size == (8, 8)


def test_a_dataset_without_a_split_holds_a_quarter_out(tmp_path):
    for name in ("Forest", "River"):
        for n in range(8):
            save(tmp_path / "eurosat" / "2750" / name / f"{n}.jpg", n)
    images = open_images("torchvision/EuroSAT", root=tmp_path)
    assert images.train.labels.bincount().tolist() == [6, 6]
    assert images.test.labels.bincount().tolist() == [2, 2]
    assert not set(images.train.ids) & set(images.test.ids)


def test_a_corrupt_first_file_is_accounted_for_not_raised_by_the_loader(tmp_path):
    for name in ("Forest", "River"):
        for n in range(8):
            save(tmp_path / "eurosat" / "2750" / name / f"{n}.jpg", n)
    (tmp_path / "eurosat" / "2750" / "Forest" / "0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 16 images .* eurosat/2750/Forest/0\.jpg"):
        open_images("torchvision/EuroSAT", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("CIFR10", ConfigError, "did you mean 'CIFAR10'?"),
        ("cifar10", ConfigError, "did you mean 'CIFAR10'?"),
        ("FakeData", ConfigError, "unknown torchvision dataset 'FakeData'"),
        ("EMNIST", ConfigError, "needs more than a root and a split (split)"),
        ("CIFAR10", DataError, "open it with download=True, or give the root"),
        ("Imagenette", DataError, "open it with download=True, or give the root"),
        ("ImageNet", DataError, "get it from its site (torchvision cannot download it)"),
    ],
)
def test_an_unknown_or_missing_dataset_names_the_way_out(name, error, says, tmp_path):
    with pytest.raises(error) as caught:
        open_images(f"torchvision/{name}", root=tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_asking_to_download_what_cannot_be_says_so(tmp_path):
    with pytest.raises(DataError, match=r"torchvision/ImageNet cannot be downloaded"):
        list_torchvision("ImageNet", root=tmp_path, download=True)


def test_a_failed_download_is_told_from_a_missing_dataset(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("Error\ndownloading")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", offline)
    with pytest.raises(DataError, match=r"check the connection.*\(Error downloading\)"):
        list_torchvision("FashionMNIST", root=tmp_path, download=True)


def test_what_a_download_prints_stays_off_standard_output(tmp_path, monkeypatch, capsys):
    fashion_mnist(tmp_path)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", lambda _: print("done"))
    list_torchvision("FashionMNIST", root=tmp_path, download=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "done\ndone\n")


@pytest.mark.parametrize("target", ["a caption", [1, 2], torch.tensor([0.5]), -1, None])
def test_targets_that_are_no_class_are_refused(target, tmp_path, monkeypatch):
    fashion_mnist(tmp_path)
    item = Image.new("L", (28, 28)), target
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__getitem__", lambda *_: item)
    with pytest.raises(DataError, match="gives no single class per image"):
        list_torchvision("FashionMNIST", root=tmp_path, download=False)


def test_labels_come_from_the_items_where_no_attribute_agrees(tmp_path, monkeypatch):
    fashion_mnist(tmp_path)
    item = Image.new("L", (28, 28)), torch.tensor(3)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__getitem__", lambda *_: item)
    train, _ = list_torchvision("FashionMNIST", root=tmp_path, download=False)
    assert set(train.labels) == {3}


def test_digits_are_the_bilinear_enlargement_of_the_originals():
    from sklearn.datasets import load_digits

    listing = list_digits()
    data = load_digits()
    assert listing.labels == tuple(data.target)
    position = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    low = np.floor(position).astype(int)
    share = (position - low)[:, None]
    weights = np.eye(8)[low] * (1 - share) + np.eye(8)[np.minimum(low + 1, 7)] * share
    for index in (0, 500, 1796):
        expected = weights @ data.images[index] @ weights.T * 255 / 16
        assert np.abs(np.asarray(listing.items[index]()) - expected).max() <= 0.5
