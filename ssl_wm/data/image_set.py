"""What every stage sees of images: uint8 pixels, labels, and a fingerprint of both.

``ssl_wm.data.sources`` opens them; pixels lie in memory or are decoded from files when taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ssl_wm.data.streaming import StreamedPixels
from ssl_wm.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one split with their classes.

    Attributes:
        source: the spec that they were opened from.
        split: "train" or "test".
        pixels: uint8 (N, 3, H, W) in memory, or decoded from files when taken.
        labels: int64 (N,), on the CPU.
        class_names: name of each class.
        ids: relative file paths; None where there are no files (the index is the id).
        skipped: "path: reason" for each file that was not used.

    Raises:
        DataError: pixels, labels and ids do not fit together.
    """

    source: str
    split: str
    pixels: Tensor | StreamedPixels
    labels: Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        dtype = self.pixels.dtype if isinstance(self.pixels, Tensor) else torch.uint8
        if len(shape) != 4 or shape[1] != 3 or dtype != torch.uint8:
            raise DataError(f"pixels must be uint8 (N, 3, H, W); got {dtype} {shape}")
        if tuple(self.labels.shape) != shape[:1] or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels must be int64 ({shape[0]},); got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if self.ids is not None and len(self.ids) != shape[0]:
            raise DataError(f"{shape[0]} images need as many ids; got {len(self.ids)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of every image."""
        height, width = self.pixels.shape[-2:]
        return int(height), int(width)

    @property
    def streamed(self) -> bool:
        """Whether pixels are decoded from their files when they are taken."""
        return isinstance(self.pixels, StreamedPixels)

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices`` (B,), int64, as uint8 (B, 3, H, W).

        They lie on the device of the pixels; streamed ones on the CPU.

        Raises:
            DataError: a streamed file cannot be decoded; the message names it.
        """
        if isinstance(self.pixels, StreamedPixels):
            return self.pixels.take(indices)
        return self.pixels[indices.to(self.pixels.device)]

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at ``indices`` (M,), int64, in that order."""
        chosen = indices.cpu()
        if isinstance(self.pixels, StreamedPixels):
            pixels: Tensor | StreamedPixels = self.pixels.subset(chosen)
        else:
            pixels = self.take(indices)
        return replace(
            self,
            pixels=pixels,
            labels=self.labels[chosen],
            ids=None if self.ids is None else tuple(self.ids[i] for i in chosen.tolist()),
        )

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set with in-memory pixels on ``device``; streamed pixels stay in files."""
        if isinstance(self.pixels, StreamedPixels):
            return self
        return replace(self, pixels=self.pixels.to(device))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order as uint8 (B, 3, H, W), B = ``size`` but for the last.

        Raises:
            DataError: a streamed file cannot be decoded; the message names it.
        """
        for start in range(0, len(self), size):
            if isinstance(self.pixels, Tensor):
                yield self.pixels[start : start + size]
            else:
                yield self.take(torch.arange(start, min(start + size, len(self))))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the set holds; it does not depend on where it lies.

        In memory: shape, pixel bytes and labels. Streamed: shape, labels, and each image's
        relative path and SHA-256 of its file (of its pixels where there is no file).

        Raises:
            DataError: a streamed file cannot be read any more.
        """
        digest = hashlib.sha256(f"images {tuple(self.pixels.shape)}\n".encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        if isinstance(self.pixels, StreamedPixels):
            for name, content in zip(self.pixels.names, self.pixels.digests(), strict=True):
                digest.update(f"{len(name)} {name} {content}\n".encode())
        else:
            for batch in self.batches(4096):
                digest.update(batch.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Images:
    """The two splits of one source; they share size, classes and the way they are held."""

    spec: str
    train: ImageSet
    test: ImageSet
