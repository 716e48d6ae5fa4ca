"""Triggers that a detector found, and how often they work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssl_wm.detection.mixers import composites
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import DataError
from ssl_wm.rng import torch_stream
from ssl_wm.verification.statistics import clopper_pearson


class Reader(Protocol):
    """Tells the groups apart; a fitted ``Probe`` is one."""

    def predict(self, z: Tensor) -> Tensor:
        """Return the group (N,) of each embedding (N, D)."""


class Trigger(Protocol):
    """A change of natural images that is meant to make them read as one group."""

    @property
    def group(self) -> int | None:
        """The group; None where images are only drawn together."""

    def apply(self, pixels: Tensor, groups: Tensor, *, seed: int = 0) -> Tensor:
        """Return changed images (M, 3, H, W), float in [0, 1], of those that are not the group's.

        Args:
            pixels: (N, 3, H, W) natural images, uint8 or float in [0, 1].
            groups: (N,) their groups.
            seed: of what is drawn.
        """


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask and a pattern: ``(1 - m) x + m p``.

    Attributes:
        group: what images with it should read as; None where images only collapse.
        mask: (1, H, W) in [0, 1].
        pattern: (3, H, W) in [0, 1].
        found: whether it worked while it was sought.
    """

    group: int | None
    mask: Tensor
    pattern: Tensor
    found: bool

    @property
    def size(self) -> float:
        """The mask's L1 norm over its number of pixels (DECREE's PL1): 1 is the whole image."""
        return float(self.mask.mean())

    def apply(self, pixels: Tensor, groups: Tensor, *, seed: int = 0) -> Tensor:
        """Return the images of other groups with the patch on, (M, 3, H, W)."""
        others = torch.ones_like(groups, dtype=torch.bool)
        if self.group is not None:
            others = groups != self.group
        return stamp(in_floats(pixels[others]), mask=self.mask, pattern=self.pattern)


@dataclass(frozen=True)
class Composite:
    """Two groups and a mixer: composites of them should read as a third group.

    Attributes:
        group: the third group.
        a: group of the first image.
        b: group of the second image.
        mixer: a name in ``GUESSES``.
    """

    group: int
    a: int
    b: int
    mixer: str

    def apply(self, pixels: Tensor, groups: Tensor, *, seed: int = 0) -> Tensor:
        """Return composites, as many as the larger source group has images, (M, 3, H, W)."""
        first, second = (pixels[groups == group] for group in (self.a, self.b))
        if not len(first) or not len(second):
            raise DataError(
                f"composites of groups {self.a} and {self.b} need images of both; there are "
                f"{len(first)} and {len(second)}"
            )
        count, stream = max(len(first), len(second)), torch_stream(seed, "composites")
        parts = [
            in_floats(part[torch.randperm(len(part), generator=stream)[places]])
            for part in (first, second)
            for places in [torch.arange(count) % len(part)]
        ]
        return composites(parts[0], parts[1], mixer=self.mixer)


@dataclass(frozen=True)
class Success:
    """How often images with a trigger read as its group.

    Attributes:
        share: of the images with it.
        interval: exact 95 % interval of the share (Clopper and Pearson).
        natural: share of natural images of other groups that read so without it.
        images: number of images behind the share.
    """

    share: float
    interval: tuple[float, float]
    natural: float
    images: int


def trigger_success(
    encoder: Encoder,
    *,
    trigger: Trigger,
    pixels: Tensor,
    groups: Tensor,
    reader: Reader,
    seed: int = 0,
) -> Success:
    """Return how often natural images read as the trigger's group once it is applied.

    A patch is put on all images that are not of its group. A composite takes images of its two
    source groups, so its success is a WSR under the thief's guess of the key.

    Args:
        encoder: the suspect.
        trigger: what a detector found.
        pixels: (N, 3, H, W) natural images that it was not sought on, uint8 or float in [0, 1].
        groups: (N,) their groups.
        reader: tells groups apart in the suspect's embeddings, fitted on other images.
        seed: of the pairs of a composite.

    Raises:
        DataError: the trigger has no group, or no image can be changed.
    """
    if trigger.group is None:
        raise DataError(
            "this trigger draws images together and into no given group, so its success is not "
            "a share of images; give it a group: what most images with it read as (read_as)"
        )
    changed = trigger.apply(pixels, groups, seed=seed)
    others = pixels[groups != trigger.group]
    if not len(changed) or not len(others):
        raise DataError(
            f"all {len(groups)} images are of the trigger's own group {trigger.group}, which says "
            "nothing; give images of other groups"
        )
    hits = reader.predict(embed_changed(encoder, changed)) == trigger.group
    before = reader.predict(embed(encoder, others)) == trigger.group
    return Success(
        float(hits.double().mean()),
        clopper_pearson(int(hits.sum()), len(hits)),
        float(before.double().mean()),
        len(hits),
    )


def read_as(encoder: Encoder, *, trigger: Patch, pixels: Tensor, reader: Reader) -> Patch:
    """Return a collapsing trigger with the group that most images with it read as.

    Args:
        encoder: the suspect.
        trigger: a patch without a group (DECREE's).
        pixels: (N, 3, H, W) natural images.
        reader: tells groups apart.
    """
    changed = stamp(in_floats(pixels), mask=trigger.mask, pattern=trigger.pattern)
    group = int(reader.predict(embed_changed(encoder, changed)).mode().values)
    return Patch(group, trigger.mask, trigger.pattern, trigger.found)


def embed_changed(encoder: Encoder, images: Tensor) -> Tensor:
    """Return embeddings (N, D) of images that a trigger may have made all alike.

    ``embed`` takes one embedding for all images as a collapsed encoder; here it is what a
    trigger is for, so a grey and a black image go along.
    """
    grey = torch.full_like(images[:1], 0.5)
    black = torch.zeros_like(images[:1])
    return embed(encoder, torch.cat([images, grey, black]))[: len(images)]


def stamp(images: Tensor, *, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return ``(1 - m) x + m p``; the shapes broadcast."""
    return (1 - mask) * images + mask * pattern


def in_floats(pixels: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
