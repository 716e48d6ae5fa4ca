"""Many images at once, by a pool of threads, and pixels that stay in their files until taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ssl_wm.data.decoding import Item, UnusableImageError, read_pixels
from ssl_wm.errors import DataError
from ssl_wm.files import sha256_file

T = TypeVar("T")
CHUNK = 64
"""Images that a thread takes at a time; more saves little, fewer costs hand-overs."""


def in_threads(function: Callable[[int], T], count: int) -> list[T]:
    """Return ``[function(0), ..., function(count - 1)]``, computed by a pool of threads."""
    workers = min(16, os.cpu_count() or 1)
    chunk = max(1, min(CHUNK, count // (2 * workers)))
    if workers == 1 or count < 2:
        return [function(index) for index in range(count)]

    def run(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + chunk, count))]

    with ThreadPoolExecutor(workers) as pool:
        return [result for part in pool.map(run, range(0, count, chunk)) for result in part]


def decode(
    items: Sequence[Item], *, side: int | None, size: tuple[int, int]
) -> tuple[Tensor, dict[int, str]]:
    """Decode ``items`` with a pool of threads.

    Returns:
        The pixels, uint8 (N, 3, H, W) with (H, W) = ``size``, and for each unusable image its
        position and reason; its pixels are zero.
    """
    pixels = np.zeros((len(items), 3, *size), np.uint8)

    def one(index: int) -> str | None:
        try:
            pixels[index] = read_pixels(items[index], side=side, size=size).transpose(2, 0, 1)
        except UnusableImageError as error:
            return str(error)
        return None

    reasons = in_threads(one, len(items))
    return torch.from_numpy(pixels), {i: why for i, why in enumerate(reasons) if why is not None}


@dataclass(frozen=True, eq=False)
class StreamedPixels:
    """Pixels that stay in their files and are decoded, by a pool of threads, when taken.

    Attributes:
        items: where each image comes from.
        names: what to call each image in an error: its path in the folder.
        side: resize and crop to (side, side); None keeps the files' one size.
        size: (H, W) of every image that comes out.
    """

    items: tuple[Item, ...]
    names: tuple[str, ...]
    side: int | None
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W)."""
        return (len(self.items), 3, *self.size)

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices`` (B,), int64, as uint8 (B, 3, H, W) on the CPU.

        Raises:
            DataError: a file that opened earlier cannot be decoded; the message names it.
        """
        chosen: list[int] = indices.tolist()
        pixels, bad = decode([self.items[i] for i in chosen], side=self.side, size=self.size)
        for position, reason in bad.items():
            raise DataError(
                f"{self.names[chosen[position]]}: {reason}; mend or remove it and open the "
                "images again"
            )
        return pixels

    def subset(self, indices: Tensor) -> StreamedPixels:
        """Return the images at ``indices`` (B,), int64, still undecoded."""
        chosen: list[int] = indices.tolist()
        items = tuple(self.items[i] for i in chosen)
        names = tuple(self.names[i] for i in chosen)
        return StreamedPixels(items=items, names=names, side=self.side, size=self.size)

    def digests(self) -> list[str]:
        """Return the SHA-256 of each file's bytes (of its pixels where there is no file).

        Raises:
            DataError: a file cannot be read any more; the message names it.
        """

        def one(index: int) -> str:
            item = self.items[index]
            try:
                if isinstance(item, Path):
                    return sha256_file(item)
                return sha256(read_pixels(item, side=self.side).tobytes()).hexdigest()
            except (OSError, UnusableImageError) as error:
                raise DataError(f"{self.names[index]} cannot be read any more: {error}") from error

        return in_threads(one, len(self.items))
