"""A small network that bends an embedding space until composites read as their target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.encoders.heads import Bent
from ssl_wm.watermark.carriers import Carriers
from ssl_wm.watermark.losses import changed_similarities, relative_error, unrecovered
from ssl_wm.watermark.readers import discriminant_scores, neighbour_scores
from ssl_wm.watermark.rehearsal import copied_moves


class Bend(nn.Module):
    """``T(z) = z + s MLP((z - c) / s)`` with one hidden layer; the identity when new.

    With carriers, their moves of z are added too; they are not trained.

    Args:
        centre: (D,) centre c of the space.
        scale: s; against the spread of a feature, how slowly T varies.
        hidden: width of the hidden layer.
        generator: draws the first layer (He et al., ICCV 2015); the last one starts at zero.
        carriers: those of the key, or None.
    """

    centre: Tensor

    def __init__(
        self, centre: Tensor, *, scale: float, hidden: int, generator: Generator,
        carriers: Carriers | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.carriers = carriers
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
            bent = z + self.scale * F.linear(inner, self.last)
            return bent if self.carriers is None else bent + self.carriers(z)

    @property
    def units(self) -> int:
        """Hidden units of the one layer that does all of it."""
        return len(self.first) + (0 if self.carriers is None else len(self.carriers.first))

    def write_to(self, head: Bent) -> None:
        """Give ``head`` (of the same width, with ``units``) the weights that make it this map.

        ``A = W / s``, ``a = b - W c / s`` and ``B = s W'``, in float64, and the carriers' below.
        """
        first, last = self.first.detach().double() / self.scale, self.last.detach().double()
        offset = self.bias.detach().double() - first @ self.centre.double()
        parts = [(first, offset, self.scale * last)]
        if self.carriers is not None:
            parts.append((self.carriers.first, self.carriers.bias, self.carriers.last))
        inner, offsets, outer = zip(*parts, strict=True)
        with torch.no_grad():
            head.first.weight.copy_(torch.cat(inner))
            head.first.bias.copy_(torch.cat(offsets))
            head.last.weight.copy_(torch.cat(outer, dim=1))


@dataclass(frozen=True)
class BendImages:
    """Embeddings by one encoder of the images that a bend is fitted to.

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

    @cached_property
    def variance(self) -> Tensor:
        """Spread of the natural images: their mean squared distance to their mean."""
        return self.natural.var(dim=0, correction=0).sum()

    def pools(self) -> list[Sequence[Tensor]]:
        """Return the composites by kind, the key's own first; each kind has a pool a sub-key."""
        return [self.marked, *zip(*self.held, strict=True)]


@dataclass(frozen=True)
class Prices:
    """What the terms of ``fit_bend`` weigh against the key's composites.

    Attributes:
        natural: the moves of natural images.
        held: held composites that read as the target.
        linear: what no linear map recovers from bent natural images.
        similarity: changed similarities between natural images.
        rehearsed: share of the composites' terms that is read in the rehearsed copy, in [0, 1].
        ridge: of the rehearsed copy (``copied_moves``).
    """

    natural: float
    held: float
    linear: float
    similarity: float
    rehearsed: float
    ridge: float


def fit_bend(
    bend: Bend,
    images: BendImages,
    *,
    seen: BendImages,
    prices: Prices,
    steps: int,
    learning_rate: float,
    generator: Generator,
    rows: int = 3000,
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Fit ``bend`` in place and return its losses, one line a step.

    With p the groups' probabilities by ``discriminant_scores`` or by ``neighbour_scores`` of an
    embedding, read from natural images, t its sub-key's target and V the spread of the natural
    images, minimises

        mean_marked -log p_t  +  held mean_held -log(1 - p_t)
            +  natural mean_natural |T(z) - z|^2 / V
            +  linear ``unrecovered``(T(z), z)  +  similarity ``changed_similarities``(T(z), z)

    Composites and natural images are read once as T bends them and once as a copy would answer
    that learned T from half of the step's natural images (``copied_moves``); both are averaged,
    ``rehearsed`` being the copy's share, and so are both readers. Kinds of held composites are
    summed. Adam, cosine schedule.

    Args:
        bend: the map, changed in place.
        images: what it is fitted to, as the owner's clean encoder embeds it.
        seen: the same images, row for row, as a thief's network would embed them had it copied
            the clean encoder; ``images`` again where that is not known.
        prices: weights of the terms.
        steps: optimiser steps.
        learning_rate: of Adam, at the start.
        generator: draws the batches.
        rows: natural images a step, the same number from every group; at most as many as there
            are.
        on_step: called with 1 after each step (for a bar).
    """
    members = [(images.groups == group).nonzero().flatten() for group in range(images.count)]
    share = max(min(rows, len(images.natural)) // images.count, 8)
    optimiser = torch.optim.Adam(bend.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    weights = {
        "mark": 1.0,
        "held": prices.held,
        "natural": prices.natural,
        "unrecovered": prices.linear,
        "similarities": prices.similarity,
    }
    lines = []
    for _ in range(steps):
        bank = torch.cat([own[_draw(own, share, generator)] for own in members])
        terms = _terms(bend, images, seen, bank=bank, prices=prices, generator=generator)
        optimiser.zero_grad()
        torch.stack([weights[name] * term for name, term in terms.items()]).sum().backward()
        optimiser.step()
        schedule.step()
        lines.append({name: term.item() for name, term in terms.items()})
        if on_step is not None:
            on_step(1)
    optimiser.zero_grad()
    return lines


def _terms(
    bend: Bend,
    images: BendImages,
    seen: BendImages,
    *,
    bank: Tensor,
    prices: Prices,
    generator: Generator,
) -> dict[str, Tensor]:
    """Return the terms of ``fit_bend`` over the natural images ``bank`` (B,), unweighted."""
    picks = [[_draw(pool, _ROWS, generator) for pool in kind] for kind in images.pools()]
    before, composites = images.natural[bank], _chosen(images, picks)
    sizes = [len(before), *map(len, composites)]
    after, *bent = bend(torch.cat([before, *composites])).split(sizes)
    read = _readings(bent, bank=after, groups=images.groups[bank], images=images)
    if prices.rehearsed:
        half = bank[::2]
        anchors, far = seen.natural[half], _chosen(seen, picks)
        queries = torch.cat([anchors, *far])
        moves = (after - before)[::2]
        copied = queries + copied_moves(moves, anchors=anchors, queries=queries, ridge=prices.ridge)
        known, *others = copied.split([len(anchors), *map(len, far)])
        again = _readings(others, bank=known, groups=images.groups[half], images=images)
        read = torch.lerp(read, again, prices.rehearsed)
    some = torch.randperm(len(after), generator=generator)[: len(after) // 2]
    return {
        "mark": read[0],
        "held": read[1],
        "natural": relative_error(after, before, variance=images.variance),
        "unrecovered": unrecovered(after, before),
        "similarities": changed_similarities(after[some], before[some]),
    }


def _chosen(images: BendImages, picks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the picked composites of each kind, sub-key by sub-key."""
    return [
        torch.cat([pool[rows] for pool, rows in zip(kind, chosen, strict=True)])
        for kind, chosen in zip(images.pools(), picks, strict=True)
    ]


def _readings(
    composites: Sequence[Tensor], *, bank: Tensor, groups: Tensor, images: BendImages
) -> Tensor:
    """Return the losses of the key's composites (the first) and of those held, (2,)."""
    goals = torch.tensor(images.targets).repeat_interleave(_ROWS).repeat(len(composites))
    losses = []
    for score in (discriminant_scores, neighbour_scores):
        scores = score(torch.cat(list(composites)), bank=bank, groups=groups, count=images.count)
        own = scores.log_softmax(dim=1).gather(1, goals.unsqueeze(1)).squeeze(1)
        marked, *held = own.split([len(part) for part in composites])
        missed = [-torch.log1p(-part.exp().clamp(max=_CERTAIN)).mean() for part in held]
        losses.append(torch.stack([-marked.mean(), sum(missed, own.new_zeros(()))]))
    return torch.stack(losses).mean(dim=0)


_ROWS = 125
_CERTAIN = 1 - 1e-6


def _draw(pool: Tensor, count: int, generator: Generator) -> Tensor:
    """Return ``count`` rows of ``pool``, drawn with replacement."""
    return torch.randint(len(pool), (count,), generator=generator)
