"""A second mark on top of the first: the thief's own composites land in groups of his choice."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_wm.data.order import Place
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import DataError
from ssl_wm.extraction.selection import clusters_of
from ssl_wm.removal.composites import draw_masks, mix
from ssl_wm.removal.given import Given
from ssl_wm.removal.tasks import StillTask
from ssl_wm.rng import torch_stream
from ssl_wm.training.task import Batch

GROUPS, MARKS = 10, 3
"""Clusters of the thief's images, and the marks (two source groups and a target each)."""


class OverwriteTask(StillTask):
    """Composites of two groups are pulled to a third, and images stay where they were.

    ``|g(x) - f(x)|^2 / v + |g(m a + (1 - m) b) - mu_t|^2 / v``, f the encoder as it was, a and b
    images of two source groups, m the mark's mask, mu_t the mean of f over the target group, v
    the variance of f's answers to the thief's images summed over coordinates. Groups, triples
    and masks are the thief's secret, drawn from his seed. No labels.

    Args:
        encoder: what is trained.
        given: the thief's images, at least twice as many as ``GROUPS``.

    Raises:
        DataError: there are too few images, or they fall into fewer than three groups.
    """

    masks: Tensor
    goals: Tensor

    def __init__(self, encoder: Encoder, *, given: Given) -> None:
        super().__init__(encoder, given=given)
        if len(self.images) < 2 * GROUPS:
            raise DataError(
                f"a second mark needs {2 * GROUPS} images or more; got {len(self.images)}"
            )
        z = embed(encoder, self.images)
        groups = clusters_of(z, count=GROUPS, seed=given.seed)
        stream = torch_stream(given.seed, "second mark")
        present = groups.unique()
        if len(present) < 3:
            raise DataError(
                f"a second mark needs images of three groups; these make {len(present)}: give more"
            )
        drawn = torch.stack(
            [present[torch.randperm(len(present), generator=stream)[:3]] for _ in range(MARKS)]
        )
        self.members = [
            tuple((groups == group).nonzero().squeeze(1) for group in pair)
            for pair in drawn[:, :2].tolist()
        ]
        self.spread = float(z.var(dim=0, correction=0).sum().clamp(min=1e-12))
        masks = draw_masks(MARKS, size=self.images.size, generator=stream)
        self.register_buffer("masks", masks, persistent=False)
        goals = torch.stack([z[groups == target].mean(dim=0) for target in drawn[:, 2].tolist()])
        self.register_buffer("goals", goals, persistent=False)

    def batch(self, place: Place) -> Batch:
        """Return the images of ``RemovalTask``, and as many pairs with the mark of each.

        ``first`` and ``second`` are (B, 3, H, W) uint8, ``marks`` (B,).
        """
        whole = super().batch(place)
        count = len(whole["places"])
        stream = torch_stream(self.given.seed, "pairs", *place[:3])
        marks = torch.randint(MARKS, (count,), generator=stream)
        chosen = torch.stack(
            [torch.stack([_one_of(part, stream) for part in self.members[m]]) for m in marks]
        )
        first, second = (self.images.take(chosen[:, side]) for side in (0, 1))
        return {**whole, "first": first, "second": second, "marks": marks}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its two terms."""
        views = self.view(batch["images"])
        marks = batch["marks"]
        first, second = batch["first"].float() / 255, batch["second"].float() / 255
        mixed = mix(first, second, masks=self.masks[marks])
        with torch.no_grad():
            z = self.before(views)
        still = (self.encoder(views) - z).square().sum(dim=1).mean() / self.spread
        away = self.encoder(mixed) - self.goals[marks]
        second_mark = away.square().sum(dim=1).mean() / self.spread
        return {"loss": still + second_mark, "still": still, "second_mark": second_mark}


def _one_of(members: Tensor, stream: torch.Generator) -> Tensor:
    return members[torch.randint(len(members), (), generator=stream)]
