"""Images from one spec string: a folder, ``torchvision/<Dataset>`` or ``digits``.

``open_images`` reads them under the policy of ``ssl_wm.data.decoding``.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from ssl_wm.data.catalogue import list_digits, list_torchvision
from ssl_wm.data.decoding import UnusableImageError, read_size
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.data.listing import Listing, balanced, hold_out, list_folder
from ssl_wm.data.streaming import StreamedPixels, decode, in_threads
from ssl_wm.errors import ConfigError, DataError

MEMORY_LIMIT = 2 * 2**30
"""Bytes of pixels, train and test together, up to which they are held in memory."""
DEFAULT_SIDE = 224
"""Side in pixels that images are brought to when they differ in size."""
BAD_SHARE = 0.01
"""Share of unusable images above which a source is refused."""

log = logging.getLogger("ssl_wm")


def open_images(
    spec: str,
    *,
    size: int | None = None,
    limit: int | None = None,
    download: bool = False,
    root: Path | None = None,
) -> Images:
    """Open the images that ``spec`` names.

    Where the source has no test split, a quarter of each class is held out: a class of n
    images gives max(1, round(n / 4)), chosen by a hash of the image's id (relative path or
    index), so that the choice does not depend on the order of listing. One class is enough
    for a pool of queries; probes and keys need two or more.

    Args:
        spec: a folder with one folder per class, directly or below ``train/`` and ``test/``
            (or ``val/``); ``torchvision/<Dataset>``; or ``digits``.
        size: resize and crop to (size, size) pixels. None keeps the size where all images
            share one, and means 224 where they differ.
        limit: use at most so many images of each split, drawn evenly from the classes by a
            hash of the id. Images that it leaves out are not read.
        download: let torchvision download the data set.
        root: folder of torchvision's data sets; None means ``./data``.

    Returns:
        Both splits, in memory (up to 2 GiB of pixels together) or streamed from their files.
        Unusable images are left out, listed in ``skipped`` and logged once as a warning.

    Raises:
        ConfigError: unknown data set, or a size or limit out of range.
        DataError: nothing there, a layout that is not understood, more than 1 % of the images
            unusable, or none usable in a split.
    """
    if size is not None and size < 2:
        raise ConfigError(f"size must be at least 2 pixels; got {size}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 image; got {limit}")
    train, test = _list(spec, root=root or Path("data"), download=download)
    ignored = train.ignored + (test.ignored if test is not None else ())
    if ignored:
        log.warning(
            "%s: %d other files are not read as images; first: %s", spec, len(ignored), ignored[0]
        )
    if test is None:
        train, test = hold_out(train, spec=spec)
    if limit is not None:
        train, test = balanced(train, limit), balanced(test, limit)
    return _read(spec, train, test, size)


def _list(spec: str, *, root: Path, download: bool) -> tuple[Listing, Listing | None]:
    if spec == "digits":
        return list_digits(), None
    if spec.startswith("torchvision/"):
        return list_torchvision(spec.removeprefix("torchvision/"), root=root, download=download)
    folder = Path(spec).expanduser()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", spec)
    if scheme and not folder.exists():
        raise DataError(
            f"unknown scheme '{scheme[1]}:' in image spec {spec}; give a folder, "
            "torchvision/<Dataset> or digits"
        )
    return list_folder(folder)


def _read(spec: str, train: Listing, test: Listing, size: int | None) -> Images:
    """Find the common size, decode or prepare to stream, and account for unusable images."""
    halves = {"train": train, "test": test}
    items = train.items + test.items

    def header(index: int) -> tuple[int, int] | str:
        try:
            return read_size(items[index])
        except UnusableImageError as error:
            return str(error)

    headers = in_threads(header, len(items))
    sizes = {found for found in headers if not isinstance(found, str)}
    side = size or (DEFAULT_SIDE if len(sizes) > 1 else None)
    shape = (side, side) if side else next(iter(sizes), (DEFAULT_SIDE, DEFAULT_SIDE))
    bad = {index: found for index, found in enumerate(headers) if isinstance(found, str)}
    in_memory = (len(items) - len(bad)) * 3 * shape[0] * shape[1] <= MEMORY_LIMIT
    sets = {}
    start = 0
    for split, half in halves.items():
        reasons = {i - start: why for i, why in bad.items() if start <= i < start + len(half)}
        start += len(half)
        sets[split] = _image_set(spec, split, half, reasons, side, shape, in_memory=in_memory)
    _account(spec, sets["train"], sets["test"])
    return Images(spec=spec, train=sets["train"], test=sets["test"])


def _image_set(
    spec: str,
    split: str,
    listing: Listing,
    bad: dict[int, str],
    side: int | None,
    shape: tuple[int, int],
    *,
    in_memory: bool,
) -> ImageSet:
    usable = [index for index in range(len(listing)) if index not in bad]
    items = tuple(listing.items[index] for index in usable)
    pixels: Tensor | StreamedPixels
    if in_memory:
        pixels, failed = decode(items, side=side, size=shape)
        if failed:
            pixels = pixels[[i for i in range(len(items)) if i not in failed]]
            bad = bad | {usable[i]: why for i, why in failed.items()}
            usable = [index for index in usable if index not in bad]
    else:
        names = tuple(listing.names[index] for index in usable)
        pixels = StreamedPixels(items=items, names=names, side=side, size=shape)
    return ImageSet(
        source=spec,
        split=split,
        pixels=pixels,
        labels=torch.tensor([listing.labels[index] for index in usable], dtype=torch.int64),
        class_names=listing.class_names,
        ids=tuple(listing.names[index] for index in usable) if listing.is_files else None,
        skipped=tuple(f"{listing.names[index]}: {bad[index]}" for index in sorted(bad)),
    )


def _account(spec: str, train: ImageSet, test: ImageSet) -> None:
    """Warn once of unusable images; refuse the source when they are too many."""
    skipped = train.skipped + test.skipped
    if not skipped:
        return
    count = len(train) + len(test) + len(skipped)
    empty = next((half.split for half in (train, test) if len(half) == 0), None)
    if empty is not None or len(skipped) > BAD_SHARE * count:
        why = f"none is left to {empty}" if empty else f"at most {BAD_SHARE:.0%} may be"
        raise DataError(
            f"{spec}: {len(skipped)} of {count} images are unusable ({why}); first: "
            f"{skipped[0]}; mend or remove them"
        )
    log.warning(
        "%s: %d of %d images are unusable and left out; first: %s",
        spec, len(skipped), count, skipped[0],
    )  # fmt: skip
