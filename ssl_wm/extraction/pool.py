"""What a thief can send: images of his pool, views of them, and images that he made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.data.views import ViewConfig, augment
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

MADE_LIMIT = 2 * 2**30
"""Bytes of made images that are held in memory."""


@dataclass(frozen=True)
class Views:
    """Sending views of images in place of the images.

    Attributes:
        config: the augmentation; views are rounded to 8 bits, as any image that is sent.
        seed: of their parameters.
        name: of their random stream, so that each epoch can have its own.
        count: views of each image.
        unit: whether the answers are brought to length 1 before they are averaged.
    """

    config: ViewConfig
    seed: int
    name: str = ""
    count: int = 1
    unit: bool = False


@dataclass(frozen=True, eq=False)
class QueryPool:
    """A pool of images with further ones (M, 3, H, W) uint8 that the thief made himself.

    Index ``len(images) + k`` is the k-th of the made ones.
    """

    images: ImageSet
    made: Tensor

    def __len__(self) -> int:
        return len(self.images) + len(self.made)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of every image."""
        return self.images.size

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the pool that the made images come from."""
        return self.images.fingerprint

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at ``indices`` (B,), int64, as uint8 (B, 3, H, W)."""
        own = indices >= len(self.images)
        first = self.images.take(indices[~own])
        if not bool(own.any()):
            return first
        second = self.made.to(first.device)[(indices[own] - len(self.images)).to(first.device)]
        result = first.new_empty((len(indices), *second.shape[1:]))
        result[~own.to(first.device)] = first
        result[own.to(first.device)] = second
        return result


def sent_images(images: Tensor, *, views: Views | None, call: int) -> Tensor:
    """Return what goes out in call number ``call`` for ``images``, uint8 (B, 3, H, W)."""
    if views is None:
        return images
    stream = torch_stream(views.seed, "asked views", views.name, call, device=images.device)
    seen = augment(images, config=views.config, generator=stream)
    return (seen * 255).round().to(torch.uint8)


def paste_windows(
    pool: ImageSet, parents: Tensor, *, count: int, seed: int, least: float = 0.1, most: float = 0.6
) -> Tensor:
    """Return ``count`` composites (count, 3, H, W) uint8: a window of one image in another.

    Each draws two different parents, a window with an area in [least, most] of the image and a
    ratio in [1/2, 2], and its place, which is the same in both (the box of CutMix, Yun et al.,
    ICCV 2019).

    Args:
        pool: the thief's images.
        parents: (P,) indices of those that may be mixed, at least two.
        count: composites to make.
        seed: of all draws.
        least: smallest area of a window, as a share of the image.
        most: largest area.

    Raises:
        ConfigError: fewer than two parents, or the composites would fill more than 2 GiB.
    """
    height, width = pool.size
    if len(parents) < 2:
        raise ConfigError(f"composites need two images to mix; got {len(parents)}")
    check_memory(count, size=pool.size)
    stream = torch_stream(seed, "composites")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=stream)

    first = torch.randint(len(parents), (count,), generator=stream)
    step = torch.randint(1, len(parents), (count,), generator=stream)
    second = (first + step) % len(parents)
    area, slant = uniform(least, most), uniform(-0.5, 0.5).exp2()
    high = (area.sqrt() * slant * height).round().clamp(1, height)
    wide = (area.sqrt() / slant * width).round().clamp(1, width)
    top = (uniform(0, 1) * (height - high + 1)).floor()
    left = (uniform(0, 1) * (width - wide + 1)).floor()
    y, x = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    top, left, high, wide = (part.view(-1, 1, 1) for part in (top, left, high, wide))
    inside = ((y >= top) & (y < top + high) & (x >= left) & (x < left + wide)).unsqueeze(1)
    made = torch.empty(count, 3, height, width, dtype=torch.uint8)
    for places in torch.arange(count).split(1024):
        ground = pool.take(parents[first[places]]).cpu()
        pasted = pool.take(parents[second[places]]).cpu()
        made[places] = torch.where(inside[places], pasted, ground)
    return made


def check_memory(count: int, *, size: tuple[int, int]) -> None:
    """Do nothing when ``count`` made images of ``size`` (H, W) fit into memory.

    Raises:
        ConfigError: they do not.
    """
    needed = count * 3 * size[0] * size[1]
    if needed > MADE_LIMIT:
        raise ConfigError(
            f"{count} made images of {size[1]} x {size[0]} pixels take {needed / 2**30:.1f} GiB of "
            f"memory and {MADE_LIMIT / 2**30:.0f} GiB are allowed; lower the budget or --size"
        )
