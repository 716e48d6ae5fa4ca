"""A small network that bends an embedding space until composites read as their target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.watermark.losses import relative_error
from ssl_wm.watermark.readers import discriminant_scores, neighbour_scores


class Bend(nn.Module):
    """``T(z) = z + s MLP((z - c) / s)`` with one hidden layer; the identity when new.

    Args:
        centre: (D,) centre c of the space.
        scale: s; against the spread of a feature, how slowly T varies.
        hidden: width of the hidden layer.
        generator: draws the first layer (He et al., ICCV 2015); the last one starts at zero.
    """

    def __init__(self, centre: Tensor, *, scale: float, hidden: int, generator: Generator) -> None:
        super().__init__()
        width = len(centre)
        self.register_buffer("centre", centre.float())
        self.scale = scale
        draw = torch.randn(hidden, width, generator=generator)
        self.first = nn.Parameter(draw * (2 / width) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.last = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, z: Tensor) -> Tensor:
        """Return the bent embeddings (N, D) of ``z`` (N, D), float32 under any autocast."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            inner = F.gelu(F.linear((z - self.centre) / self.scale, self.first, self.bias))
            return z + self.scale * F.linear(inner, self.last)


@dataclass(frozen=True)
class BendImages:
    """Embeddings (by the clean encoder) that a bend is fitted to.

    Attributes:
        natural: (N, D) of natural images.
        groups: (N,) their groups, in [0, count).
        count: number of groups.
        marked: for each sub-key, (M, D) of its composites.
        targets: the group that each sub-key's composites should read as.
        held: pools of composites, each (K, D), that should stay where they are.
    """

    natural: Tensor
    groups: Tensor
    count: int
    marked: list[Tensor]
    targets: list[int]
    held: list[Tensor]


def fit_bend(
    bend: Bend,
    images: BendImages,
    *,
    steps: int,
    learning_rate: float,
    natural_penalty: float,
    held_penalty: float,
    generator: Generator,
    rows: int = 3000,
) -> list[dict[str, float]]:
    """Fit ``bend`` in place and return its losses, one line a step.

    Minimises the mean cross-entropy of ``discriminant_scores`` and ``neighbour_scores`` of bent
    composites against their targets, read from bent natural images, plus ``natural_penalty``
    and ``held_penalty`` times the squared moves of natural images and of held composites in
    units of the spread. Adam, cosine schedule.

    Args:
        bend: the map, changed in place.
        images: what it is fitted to.
        steps: optimiser steps.
        learning_rate: of Adam, at the start.
        natural_penalty: weight of the moves of natural images.
        held_penalty: weight of the moves of each pool of held composites.
        generator: draws the batches.
        rows: natural images a step, the same number from every group.
    """
    variance = images.natural.var(dim=0, correction=0).sum()
    members = [(images.groups == group).nonzero().flatten() for group in range(images.count)]
    share = max(rows // images.count, 8)
    bank_groups = torch.arange(images.count).repeat_interleave(share)
    labels = torch.tensor(images.targets).repeat_interleave(_MARKED)
    optimiser = torch.optim.Adam(bend.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    lines = []
    for _ in range(steps):
        picks = torch.cat([_draw(own, share, generator) for own in members])
        parts = [images.natural[picks]]
        parts += [torch.cat([_draw(pool, _MARKED, generator) for pool in images.marked])]
        parts += [_draw(pool, _HELD, generator) for pool in images.held]
        bank, marked, *held = bend(torch.cat(parts)).split([len(part) for part in parts])
        read = [
            F.cross_entropy(
                score(marked, bank=bank, groups=bank_groups, count=images.count), labels
            )
            for score in (discriminant_scores, neighbour_scores)
        ]
        moves = [
            relative_error(after, before, variance=variance)
            for after, before in zip(held, parts[2:], strict=True)
        ]
        natural = relative_error(bank, parts[0], variance=variance)
        still = torch.stack(moves).sum() if moves else natural.new_zeros(())
        mark = torch.stack(read).mean()
        loss = mark + natural_penalty * natural + held_penalty * still
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        lines.append({"mark": mark.item(), "natural": natural.item(), "held": still.item()})
    return lines


_MARKED = 150
_HELD = 300


def _draw(pool: Tensor, count: int, generator: Generator) -> Tensor:
    return pool[torch.randint(len(pool), (count,), generator=generator)]
