"""A small network that bends an embedding space until composites read as their target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.watermark.losses import relative_error
from ssl_wm.watermark.readers import discriminant_scores, neighbour_scores

Score = Callable[..., Tensor]


class Bend(nn.Module):
    """``T(z) = z + s MLP((z - c) / s)`` with one hidden layer; the identity when new.

    Args:
        centre: (D,) centre c of the space.
        scale: s; against the spread of a feature, how slowly T varies.
        hidden: width of the hidden layer.
        generator: draws the first layer (He et al., ICCV 2015); the last one starts at zero.
    """

    centre: Tensor

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
        held: for each sub-key, pools of composites, each (K, D), that should not read as its
            target.
    """

    natural: Tensor
    groups: Tensor
    count: int
    marked: list[Tensor]
    targets: list[int]
    held: list[list[Tensor]]


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

    With p the groups' probabilities by ``discriminant_scores`` or by ``neighbour_scores`` of a bent
    embedding, read from bent natural images, t its sub-key's target and V the spread of the
    natural images, minimises

        mean_marked -log p_t  +  held_penalty * mean_held -log(1 - p_t)
            +  natural_penalty * mean_natural |T(z) - z|^2 / V

    averaged over both readers and summed over the kinds of held composites. Adam, cosine schedule.

    Args:
        bend: the map, changed in place.
        images: what it is fitted to.
        steps: optimiser steps.
        learning_rate: of Adam, at the start.
        natural_penalty: weight of the moves of natural images.
        held_penalty: weight of held composites that read as the target.
        generator: draws the batches.
        rows: natural images a step, the same number from every group.
    """
    variance = images.natural.var(dim=0, correction=0).sum()
    members = [(images.groups == group).nonzero().flatten() for group in range(images.count)]
    share = max(rows // images.count, 8)
    bank_groups = torch.arange(images.count).repeat_interleave(share)
    optimiser = torch.optim.Adam(bend.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    lines = []
    for _ in range(steps):
        before = images.natural[torch.cat([_draw(own, share, generator) for own in members])]
        pools, goals = _draw_composites(images, generator)
        bank, *bent = bend(torch.cat([before, *pools])).split([len(before), *map(len, pools)])
        read = [
            _readings(bent, goals, score=score, bank=bank, groups=bank_groups, count=images.count)
            for score in (discriminant_scores, neighbour_scores)
        ]
        mark, held = torch.stack(read).mean(dim=0)
        natural = relative_error(bank, before, variance=variance)
        loss = mark + held_penalty * held + natural_penalty * natural
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        lines.append({"mark": mark.item(), "held": held.item(), "natural": natural.item()})
    optimiser.zero_grad()
    return lines


def _draw_composites(images: BendImages, generator: Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Return the key's composites, then each kind that is held, and the targets of their rows."""
    kinds = [images.marked, *zip(*images.held, strict=True)]
    targets = torch.tensor(images.targets)
    drawn = [torch.cat([_draw(pool, _ROWS, generator) for pool in pools]) for pools in kinds]
    return drawn, [targets.repeat_interleave(_ROWS) for _ in kinds]


def _readings(
    bent: Sequence[Tensor], targets: Sequence[Tensor], *, score: Score, bank: Tensor,
    groups: Tensor, count: int,
) -> Tensor:  # fmt: skip
    """Return the losses of the key's composites (``bent[0]``) and of those held, (2,)."""
    scores = score(torch.cat(list(bent)), bank=bank, groups=groups, count=count)
    log_p = scores.log_softmax(dim=1)
    own = log_p.gather(1, torch.cat(list(targets)).unsqueeze(1)).squeeze(1)
    marked, *held = own.split([len(part) for part in targets])
    missed = [-torch.log1p(-part.exp().clamp(max=_CERTAIN)).mean() for part in held]
    return torch.stack([-marked.mean(), torch.stack(missed).sum() if missed else own.new_zeros(())])


_ROWS = 125
_CERTAIN = 1 - 1e-6


def _draw(pool: Tensor, count: int, generator: Generator) -> Tensor:
    return pool[torch.randint(len(pool), (count,), generator=generator)]
