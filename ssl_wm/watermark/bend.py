"""A small network that bends an embedding space until composites read as their target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.encoders.heads import Bent
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

    def write_to(self, head: Bent) -> None:
        """Give ``head`` (of the same width and hidden layer) the weights that make it this map.

        ``A = W / s``, ``a = b - W c / s`` and ``B = s W'``, in float64.
        """
        first, last = self.first.detach().double() / self.scale, self.last.detach().double()
        offset = self.bias.detach().double() - first @ self.centre.double()
        with torch.no_grad():
            for place, value in (
                (head.first.weight, first), (head.first.bias, offset),
                (head.last.weight, self.scale * last),
            ):  # fmt: skip
                place.copy_(value)


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
    linear_penalty: float,
    similarity_penalty: float,
    generator: Generator,
    rows: int = 3000,
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Fit ``bend`` in place and return its losses, one line a step.

    With p the groups' probabilities by ``discriminant_scores`` or by ``neighbour_scores`` of a bent
    embedding, read from bent natural images, t its sub-key's target and V the spread of the
    natural images, minimises

        mean_marked -log p_t  +  held_penalty * mean_held -log(1 - p_t)
            +  natural_penalty * mean_natural |T(z) - z|^2 / V
            +  linear_penalty * ``unrecovered``(T(z), z)
            +  similarity_penalty * ``changed_similarities``(T(z), z)

    averaged over both readers and summed over the kinds of held composites. Adam, cosine schedule.

    Args:
        bend: the map, changed in place.
        images: what it is fitted to.
        steps: optimiser steps.
        learning_rate: of Adam, at the start.
        natural_penalty: weight of the moves of natural images.
        held_penalty: weight of held composites that read as the target.
        linear_penalty: weight of what no linear map recovers from bent natural images.
        similarity_penalty: weight of the changed similarities between natural images.
        generator: draws the batches.
        rows: natural images a step, the same number from every group.
        on_step: called with 1 after each step (for a bar).
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
        lost = unrecovered(bank, before)
        half = torch.randperm(len(bank), generator=generator)[: len(bank) // 2]
        changed = changed_similarities(bank[half], before[half])
        loss = mark + held_penalty * held + natural_penalty * natural
        loss = loss + linear_penalty * lost + similarity_penalty * changed
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        terms = {"mark": mark, "held": held, "natural": natural}
        terms |= {"unrecovered": lost, "similarities": changed}
        lines.append({name: term.item() for name, term in terms.items()})
        if on_step is not None:
            on_step(1)
    optimiser.zero_grad()
    return lines


def unrecovered(bent: Tensor, before: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Return the share of the features' variance that no linear map of ``bent`` gives back.

    ``mean_j |(Z M)_j - x_j|^2 / |x_j|^2`` with Z and x the centred rows of ``bent`` and ``before``
    and M the ridge regression of x on Z (Hoerl and Kennard, 1970). Each feature counts equally, as
    it does for a linear probe, which standardises them: at 0, whatever a linear probe reads from
    ``before`` one reads from ``bent``.

    Args:
        bent: (N, D) bent embeddings.
        before: (N, D) the embeddings that were bent.
        ridge: against the mean variance of a feature of ``bent``.
    """
    z, x = bent - bent.mean(dim=0), before - before.mean(dim=0)
    spread = z.T @ z / len(z)
    loaded = spread + ridge * spread.diagonal().mean() * torch.eye(len(spread), dtype=z.dtype)
    rest = z @ torch.linalg.solve(loaded, z.T @ x / len(z)) - x
    variance = x.square().mean(dim=0)
    share = rest.square().mean(dim=0) / variance.clamp(min=1e-6 * float(variance.max()) + 1e-30)
    mean: Tensor = share.mean()
    return mean


def changed_similarities(bent: Tensor, before: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return ``mean_i KL(p_i || q_i)`` of the images' similarities, which is what kNN loses.

    ``q_i = softmax_{j != i}(cos(z_i, z_j) / temperature)`` over the bent rows, p_i over the rows
    before, both around their means (relational distillation, as in Park et al., CVPR 2019, with a
    divergence in place of the Huber loss).

    Args:
        bent: (N, D) bent embeddings.
        before: (N, D) the embeddings that were bent.
        temperature: of the softmax.
    """
    itself = torch.eye(len(bent), dtype=torch.bool)
    log_p, log_q = (
        _cosines(rows).mul(1 / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
        for rows in (before, bent)
    )
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines (N, N) of ``rows`` around their mean."""
    unit = F.normalize(rows - rows.mean(dim=0), dim=1)
    return unit @ unit.T


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
