"""Data sets by name: ``torchvision/<Dataset>`` and ``digits``, as listings of images."""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

from PIL import Image

from ssl_wm.data.decoding import Item
from ssl_wm.data.listing import Listing, as_name
from ssl_wm.errors import ConfigError, DataError, choose

TRAIN_SPLITS = ("train", "trainval", "train-standard")
TEST_SPLITS = ("test", "val", "valid")

Choice = dict[str, Any]


class Dataset(Protocol):
    """What torchvision's data sets share: a length, and pairs of an image and a target."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[object, object]: ...


def list_digits() -> Listing:
    """Return scikit-learn's 1,797 digits: 8 x 8 grey, as 32 x 32 RGB (bilinear).

    All arithmetic before the rounding is exact in float32 (multiples of 255/1024 below 256),
    so that the pixels are the same on every machine.
    """
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None]  # (1797, 1, 8, 8), 0..16
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    grey = (large * 255 / 16).round().to(torch.uint8)[:, 0].numpy()
    return Listing(
        items=tuple(partial(Image.fromarray, image) for image in grey),
        names=tuple(map(str, range(len(grey)))),
        labels=tuple(int(label) for label in data.target),
        class_names=tuple(str(name) for name in data.target_names),
        is_files=False,
    )


def list_torchvision(name: str, *, root: Path, download: bool) -> tuple[Listing, Listing | None]:
    """Return the train and test images of a torchvision data set below ``root``.

    A data set with ``train=`` is opened with True and False; one with ``split=`` with the
    first that it knows of ``TRAIN_SPLITS`` and of ``TEST_SPLITS``; another one is not split
    (None in the place of the test images).

    Raises:
        ConfigError: no such data set (the nearest is named), it takes more than a root and a
            split, or an optional package is missing.
        DataError: it is not below ``root``, cannot be downloaded, or has no class labels.
    """
    kind = _find(name)
    parameters = _parameters(kind)
    settings: dict[str, Any] = {"root": str(root)}
    if "download" in parameters:
        settings["download"] = download
    elif download:
        raise DataError(
            f"torchvision/{name} cannot be downloaded by torchvision; get it from its site, put "
            f"it into {root} and open it without download"
        )
    opened: Sequence[Choice] = [{}]
    held_out: Sequence[Choice] = []
    if "train" in parameters:
        opened, held_out = [{"train": True}], [{"train": False}]
    elif "split" in parameters:
        opened = [{"split": split} for split in TRAIN_SPLITS]
        held_out = [{"split": split} for split in TEST_SPLITS]
    halves = [_open(kind, choices, settings) for choices in (opened, held_out) if choices]
    listings = [_list(half, name, root) for half in halves]
    count = 1 + max(label for listing in listings for label in listing.labels)
    names = getattr(halves[0], "classes", None) or ()
    class_names = tuple(map(_class_name, names if len(names) >= count else range(count)))
    listings = [replace(listing, class_names=class_names) for listing in listings]
    return listings[0], listings[1] if held_out else None


def _class_name(name: object) -> str:
    return ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)


def _find(name: str) -> type:
    """Return the torchvision data set ``name`` when a root and a split are all it needs."""
    from torchvision import datasets

    known = {n: getattr(datasets, n) for n in datasets.__all__}
    kinds = {n: k for n, k in known.items() if inspect.isclass(k) and "root" in _parameters(k)}
    needs = {
        n: [
            p.name
            for p in inspect.signature(k).parameters.values()
            if p.name != "root" and p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        for n, k in kinds.items()
    }
    if needs.get(name):
        raise ConfigError(
            f"torchvision/{name} needs more than a root and a split ({', '.join(needs[name])}); "
            "save its images as a folder with one folder per class and name that folder"
        )
    bases = {"VisionDataset", "DatasetFolder", "ImageFolder"}
    usable = sorted(n for n in kinds if not needs[n] and n not in bases)
    near = {n.casefold(): n for n in usable}.get(name.casefold())
    if name not in usable and near is not None:
        raise ConfigError(f"unknown torchvision dataset '{name}'; did you mean '{near}'?")
    found: type = kinds[choose(name, usable, what="torchvision dataset")]
    return found


def _parameters(kind: type) -> set[str]:
    """Return what the constructor takes, through ``**kwargs`` also what its parents take."""
    names: set[str] = set()
    for owner in kind.__mro__[:-1]:
        if "__init__" not in owner.__dict__:
            continue
        parameters = inspect.signature(owner.__dict__["__init__"]).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _open(kind: type, choices: Sequence[Choice], settings: dict[str, Any]) -> Dataset:
    """Return the data set under the first of ``choices`` that it knows."""
    name, unknown = kind.__name__, ""
    for choice in choices:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # download messages
                dataset: Dataset = kind(**settings, **choice)
            return dataset
        except ValueError as error:
            unknown = str(error)
        except ImportError as error:
            raise ConfigError(f"torchvision/{name} needs an optional package: {error}") from error
        except (RuntimeError, OSError) as error:
            asked = settings.get("download")
            exits = "check the connection" if asked else "open it with download=True"
            if "download" not in settings:
                exits = "get it from its site (torchvision cannot download it)"
            raise DataError(
                f"torchvision/{name} is not in {settings['root']}; {exits}, or give the root "
                f"that holds it ({_one_line(error)})"
            ) from error
    raise ConfigError(f"torchvision/{name} has none of the splits {choices}: {_one_line(unknown)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _list(dataset: Dataset, name: str, root: Path) -> Listing:
    count = len(dataset)
    labels = _labels(dataset, count) if count else None
    if labels is None:
        raise DataError(
            f"torchvision/{name} gives no single class per image, which probes and keys need; "
            "use another data set, or save its images as a folder with one folder per class"
        )
    paths = _paths(dataset, count)
    if paths is None:
        items: tuple[Item, ...] = tuple(partial(_image, dataset, index) for index in range(count))
        return Listing(items, tuple(map(str, range(count))), labels, (), is_files=False)
    names = tuple(as_name(Path(os.path.relpath(path, root))) for path in paths)
    return Listing(tuple(paths), names, labels, (), is_files=True)


def _image(dataset: Dataset, index: int) -> Image.Image:
    image = dataset[index][0]
    if not isinstance(image, Image.Image):
        raise TypeError(f"the data set gives a {type(image).__name__}, not a PIL image")
    return image


def _labels(dataset: Dataset, count: int) -> tuple[int, ...] | None:
    """Return the classes, without decoding where a usual attribute holds them."""
    ends: dict[int, int | None] = {}
    for index in (0, count - 1):
        with contextlib.suppress(Exception):  # an unreadable image is accounted for later
            ends[index] = _as_class(dataset[index][1])
    if None in ends.values():
        return None
    for name in ("targets", "labels", "_labels", "y", "samples", "_samples"):
        values = getattr(dataset, name, None)
        if values is None or len(values) != count:
            continue
        if name.endswith("samples"):
            values = [pair[1] for pair in values]
        labels = [label for value in values if (label := _as_class(value)) is not None]
        if len(labels) == count and all(labels[i] == label for i, label in ends.items()):
            return tuple(labels)
    labels = [label for i in range(count) if (label := _as_class(_pair(dataset, i)[1])) is not None]
    return tuple(labels) if len(labels) == count else None


def _pair(dataset: Dataset, index: int) -> tuple[object, object]:
    try:
        return dataset[index]
    except Exception as error:
        raise DataError(
            f"image {index} of torchvision/{type(dataset).__name__} cannot be read "
            f"({_one_line(error)}); get the data set again"
        ) from error


def _as_class(value: object) -> int | None:
    if not isinstance(value, SupportsIndex):
        return None
    try:
        label = operator.index(value)
    except TypeError:  # a tensor of floats, or of several values
        return None
    return label if label >= 0 else None


def _paths(dataset: Dataset, count: int) -> list[Path] | None:
    """Return the image files, where a usual attribute lists one for each image."""
    for name in ("samples", "_samples", "imgs", "_image_files", "_images"):
        values = getattr(dataset, name, None)
        if not isinstance(values, list | tuple) or len(values) != count:
            continue
        firsts = [v[0] if isinstance(v, tuple | list) else v for v in values]
        if all(isinstance(first, str | os.PathLike) for first in firsts):
            return [Path(first) for first in firsts]
    return None
