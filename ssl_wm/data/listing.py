"""What a folder of images holds, before any image is opened: classes, splits, subsets."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_wm.data.decoding import ENDINGS, Item
from ssl_wm.errors import DataError
from ssl_wm.rng import derive_seed

HALVES = ("train", "test", "val")


@dataclass(frozen=True)
class Listing:
    """One split: where its N images come from, what they are called and their classes.

    Attributes:
        items: where each image comes from.
        names: one unique name each (a path relative to the folder, or the index); the
            held-out split and ``limit`` are drawn from a hash of it.
        labels: index into ``class_names`` of each image.
        class_names: the classes, sorted.
        is_files: the names are paths of files.
        ignored: files beside the images that are not images by their ending.
    """

    items: tuple[Item, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    is_files: bool
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def pick(self, positions: Iterable[int]) -> Listing:
        """Return the images at ``positions``, in their order here."""
        kept = sorted(positions)
        return Listing(
            items=tuple(self.items[i] for i in kept),
            names=tuple(self.names[i] for i in kept),
            labels=tuple(self.labels[i] for i in kept),
            class_names=self.class_names,
            is_files=self.is_files,
            ignored=self.ignored,
        )


def list_folder(folder: Path) -> tuple[Listing, Listing | None]:
    """Return the train and test images of ``folder``; no test where it is not split.

    Class folders lie directly in ``folder``, or in its ``train/`` and ``test/`` (or ``val/``,
    which is not used where there is a ``test/``). Images may lie deeper in a class folder.
    Hidden files and folders are not looked at; other files without one of ``ENDINGS`` are
    named in ``ignored``.

    Raises:
        DataError: the folder is missing, a file, empty, unreadable, without classes, with an
            empty class, with only one half, or with halves of different classes.
    """
    if not folder.exists():
        raise DataError(
            f"image folder {folder} does not exist; give a folder, torchvision/<Dataset> or digits"
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; name the folder that holds one folder per class")
    halves = [name for name in HALVES if _holds_folders_only(folder / name)]
    if not halves:
        return _list_classes(folder, base=folder), None
    if "train" not in halves or len(halves) < 2:
        raise DataError(
            f"{folder} has {halves[0]}/ but not both train/ and test/ (or val/); add the other "
            f"half, or name {folder / halves[0]} itself to have a part of it held out"
        )
    train, test = (_list_classes(folder / name, base=folder) for name in halves[:2])
    if train.class_names != test.class_names:
        raise DataError(
            f"{folder}: train/ and {halves[1]}/ must hold the same classes; "
            f"{_difference('train', train, test)}; {_difference(halves[1], test, train)}"
        )
    return train, test


def _difference(name: str, one: Listing, other: Listing) -> str:
    only = sorted(set(one.class_names) - set(other.class_names))
    shown = ", ".join(only[:3]) + (f" and {len(only) - 3} more" if len(only) > 3 else "")
    return f"only in {name}/: {shown or 'none'}"


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the visible folders and files of ``folder``, sorted."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list image folder {folder}: {error.strerror}") from error
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    return folders, sorted(entry.name for entry in entries if not entry.is_dir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _holds_folders_only(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    folders, files = _entries(folder)
    return bool(folders) and not any(map(_is_image, files))


def _list_classes(folder: Path, *, base: Path) -> Listing:
    class_names, loose = _entries(folder)
    if not class_names:
        found = "holds images directly" if any(map(_is_image, loose)) else "is empty"
        raise DataError(
            f"image folder {folder} {found} and has no class folders; put the images into one "
            f"folder per class below it (one class is enough for a query pool)"
        )
    paths: list[Path] = []
    labels: list[int] = []
    ignored = [folder / name for name in loose]
    for label, name in enumerate(class_names):
        images, others = _walk(folder / name)
        if not images:
            raise DataError(
                f"class folder {folder / name} holds no image ({', '.join(ENDINGS)}); fill it "
                "or remove it"
            )
        paths += images
        labels += [label] * len(images)
        ignored += others
    return Listing(
        items=tuple(paths),
        names=_relative(paths, base),
        labels=tuple(labels),
        class_names=tuple(class_names),
        is_files=True,
        ignored=_relative(ignored, base),
    )


def _relative(paths: Sequence[Path], base: Path) -> tuple[str, ...]:
    return tuple(as_name(path.relative_to(base)) for path in paths)


def as_name(path: Path) -> str:
    r"""Return ``path`` with forward slashes; bytes that are not UTF-8 are written as ``\xNN``."""
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images and the other files below ``folder``, in one order everywhere."""
    folders, files = _entries(folder)
    images = [folder / name for name in files if _is_image(name)]
    others = [folder / name for name in files if not _is_image(name)]
    for name in folders:
        more = _walk(folder / name)
        images += more[0]
        others += more[1]
    return images, others


def hold_out(listing: Listing, *, spec: str) -> tuple[Listing, Listing]:
    """Return (train, test): a quarter of each class is held out, by a hash of the names.

    Of a class of n >= 2 images, max(1, round(n / 4)) go to the test split: those whose hash
    ranks first. Neither the order of listing nor other classes play a part.

    Raises:
        DataError: every class has one image only, so nothing can be held out.
    """
    ranks = _ranks(listing, "hold out")
    sizes = defaultdict[int, int](int)
    for label in listing.labels:
        sizes[label] += 1
    quotas = {label: max(1, (n + 2) // 4) if n > 1 else 0 for label, n in sizes.items()}
    test = {i for i, label in enumerate(listing.labels) if ranks[i][0] < quotas[label]}
    if not test:
        raise DataError(
            f"{spec} has one image per class, so no test images can be held out; add images, or "
            "lay them out as train/ and test/"
        )
    return listing.pick(set(range(len(listing))) - test), listing.pick(test)


def balanced(listing: Listing, limit: int) -> Listing:
    """Return at most ``limit`` images, drawn from the classes in turn by a hash of the names.

    Two classes differ by at most one image unless one of them is used up.
    """
    ranks = _ranks(listing, "limit")
    return listing.pick(sorted(range(len(listing)), key=ranks.__getitem__)[:limit])


def _ranks(listing: Listing, purpose: str) -> list[tuple[int, int, str]]:
    """Return for each image its rank within its class, its hash and its name."""
    hashes = [(derive_seed(0, "images", purpose, name), name) for name in listing.names]
    classes = defaultdict[int, list[int]](list)
    for index, label in enumerate(listing.labels):
        classes[label].append(index)
    ranks = [(0, 0, "")] * len(listing)
    for members in classes.values():
        for rank, index in enumerate(sorted(members, key=hashes.__getitem__)):
            ranks[index] = (rank, *hashes[index])
    return ranks
