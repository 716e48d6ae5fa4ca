"""Composite (trigger) images: which pairs are mixed, and the mixed pixels.

Composites are rounded to 8 bits, so whoever holds the key renders the same bytes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ssl_wm.rng import torch_stream

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.watermark.mixers import Mixer


def mix_images(a: Tensor, b: Tensor, *, mixer: Mixer, generator: Generator) -> Tensor:
    """Return uint8 composites (B, 3, H, W) of uint8 ``a`` and ``b`` of the same shape."""
    mixed = mixer.mix(a.float() / 255, b.float() / 255, generator=generator)
    return (mixed * 255).round().clamp(0, 255).to(torch.uint8)


def draw_members(groups: Tensor, group: int, *, count: int, generator: Generator) -> Tensor:
    """Return ``count`` indices of images of ``group``, drawn with replacement, (count,)."""
    members = (groups == group).nonzero().flatten()
    picks = torch.randint(len(members), (count,), generator=generator)
    return members[picks]


def composites(
    images: ImageSet,
    groups: Tensor,
    *,
    pairs: Sequence[tuple[int, int]],
    mixer: Mixer,
    per_pair: int,
    seed: bytes,
) -> Tensor:
    """Return fresh composites of the images of each ordered pair of groups.

    Args:
        images: where the sources come from.
        groups: (N,) group of each image.
        pairs: ordered (A, B); each has its own stream below ``seed``, so a pair's composites
            do not depend on which other pairs are asked for.
        mixer: how they are mixed.
        per_pair: composites per pair.
        seed: secret seed of the pairs and of the mixer's own draws.

    Returns:
        (len(pairs) * per_pair, 3, H, W) uint8, pair by pair.
    """
    rendered = []
    for a, b in pairs:
        stream = torch_stream(seed, "pair", a, b)
        first = images.take(draw_members(groups, a, count=per_pair, generator=stream))
        second = images.take(draw_members(groups, b, count=per_pair, generator=stream))
        rendered.append(mix_images(first, second, mixer=mixer, generator=stream))
    return torch.cat(rendered)


def ordered_pairs(count: int) -> list[tuple[int, int]]:
    """Return all ordered pairs of ``count`` groups.

    >>> ordered_pairs(3)
    [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    """
    return [(a, b) for a in range(count) for b in range(count) if a != b]
