"""What every detector is given, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_wm.detection.settings import DetectionConfig
from ssl_wm.detection.triggers import Trigger
from ssl_wm.errors import DataError
from ssl_wm.rng import torch_stream

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

LEAST_GROUPS = 3


@dataclass(frozen=True, eq=False)
class Half:
    """Natural images and their groups.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        groups: (N,) int64.
    """

    pixels: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, eq=False)
class Given:
    """What a detector is given besides the encoder.

    Attributes:
        images: natural images; their labels are the groups.
        queries: (Q, 3, H, W) uint8 or float in [0, 1], what a service was sent; None where
            the thief makes composites himself.
        seed: of all draws.
        config: settings.
    """

    images: ImageSet
    queries: Tensor | None = None
    seed: int = 0
    config: DetectionConfig = field(default_factory=DetectionConfig)

    @property
    def fit(self) -> Half:
        """The half that probes are fitted to and triggers sought on."""
        return self._halves[0]

    @property
    def held(self) -> Half:
        """The half that judges."""
        return self._halves[1]

    @cached_property
    def _halves(self) -> tuple[Half, Half]:
        """The sample in two halves: in every group the images fall to them in turn.

        It depends on the images and the seed alone, so that all encoders see the same.
        """
        labels = self.images.labels
        order = torch.randperm(len(labels), generator=torch_stream(self.seed, "sample"))
        rank = rank_in_group(labels[order])
        chosen = rank.argsort(stable=True)[: self.config.sample]
        first, second = (order[chosen[rank[chosen] % 2 == half]].sort().values for half in (0, 1))
        for half in (first, second):
            if len(half) < 2:
                raise DataError(
                    f"a detector needs natural images in two halves; there are {len(labels)}. "
                    "Give more images"
                )
        return (
            Half(self.images.take(first).cpu(), labels[first]),
            Half(self.images.take(second).cpu(), labels[second]),
        )

    def group_count(self) -> int:
        """Return the number of groups G, all of which have images in both halves.

        Raises:
            DataError: there are fewer than three, or one has no image in a half.
        """
        count = len(self.images.class_names)
        if count < LEAST_GROUPS:
            raise DataError(
                f"this detector compares groups with each other and needs at least {LEAST_GROUPS} "
                f"of them; the images have {count}. Give images of more classes"
            )
        for half in (self.fit, self.held):
            missing = torch.bincount(half.groups, minlength=count) == 0
            if bool(missing.any()):
                name = self.images.class_names[int(missing.nonzero()[0])]
                raise DataError(
                    f"group '{name}' has too few images: each needs at least two among the "
                    f"{self.config.sample} that are used. Give more images, or raise sample"
                )
        return count


def rank_in_group(groups: Tensor) -> Tensor:
    """Return how many earlier entries of ``groups`` (N,) are of the same group, (N,).

    >>> rank_in_group(torch.tensor([2, 0, 2, 2, 0]))
    tensor([0, 0, 1, 2, 1])
    """
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups)
    starts = (counts.cumsum(0) - counts)[groups[order]]
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups)) - starts
    return rank


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector says of one encoder.

    Attributes:
        score: higher is more suspicious; it means nothing without scores of clean encoders.
        group: the most suspicious group; None where the detector knows of none.
        flagged: groups beyond the usual fixed threshold, if the method has one.
        triggers: what it inverted, the most suspicious first.
        details: what the score came from; plain data.
        table: values that are compared cell by cell with other encoders' (the scan).
    """

    score: float
    group: int | None = None
    flagged: tuple[int, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    table: Tensor | None = field(default=None, repr=False)

    @property
    def trigger(self) -> Trigger | None:
        """The most suspicious trigger, if any was inverted."""
        return self.triggers[0] if self.triggers else None
