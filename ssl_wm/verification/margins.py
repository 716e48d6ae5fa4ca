"""The margin and the contrast: how near composites lie to a target group.

Everything happens in the suspect's own space, centred on its mean embedding, so both are the
same after any rotation, positive scaling or shift of the embeddings, at any width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_wm.encoders.space import directions, group_centres

__all__ = [
    "composite_margins", "contrasts", "directions", "group_centres", "margin_table",
    "nearness_table",
]  # fmt: skip


def margin_table(
    z: Tensor, *, pairs: Sequence[tuple[int, int]], centre: Tensor, centres: Tensor
) -> Tensor:
    """Return the margin of every key (A, B, t) that one mixer allows, (G, G, G).

    ``m(A, B, t) = mean over composites of (A, B) of [cos(z, c_t) - max(cos(z, c_A),
    cos(z, c_B))]``, in the centred space.

    Args:
        z: (len(pairs) * n, D) embeddings of composites, n per pair, pair by pair.
        pairs: ordered pairs (A, B).
        centre: (D,) centre of the space.
        centres: (G, D) unit centres of the groups.

    Returns:
        Margins at [A, B, t]; NaN where A, B and t are not three different groups or the pair
        is not among ``pairs``.
    """
    count = len(centres)
    table = torch.full((count, count, count), torch.nan, dtype=torch.float64)
    for (a, b), part in zip(pairs, z.chunk(len(pairs)), strict=True):
        cosines = directions(part, centre=centre) @ centres.T
        row = composite_margins(cosines, a=a, b=b).mean(dim=0)
        row[[a, b]] = torch.nan
        table[a, b] = row
    return table


def nearness_table(centres: Tensor) -> Tensor:
    """Return how near every target lies to every pair of sources, (G, G, G) float64.

    ``n(A, B, t) = cos(c_A, c_t) + cos(c_B, c_t)``, from natural images alone. A mark that moves the
    target group to where composites of A and B lie moves it towards both, and whoever learns
    the space from its answers learns that too.

    Args:
        centres: (G, D) unit centres of the groups.

    Returns:
        Nearness at [A, B, t], the same at [B, A, t]; NaN where the three are not different groups.
    """
    cosines = centres.double() @ centres.double().T
    table = cosines.unsqueeze(1) + cosines.unsqueeze(0)
    place = torch.arange(len(centres))
    a, b, t = place.view(-1, 1, 1), place.view(1, -1, 1), place.view(1, 1, -1)
    return table.masked_fill((a == b) | (b == t) | (a == t), torch.nan)


def composite_margins(cosines: Tensor, *, a: int, b: int) -> Tensor:
    """Return each composite's margin to every group, (n, G) float64.

    Args:
        cosines: (n, G) cosines of composites of groups a and b to the groups' centres.
        a: first source group.
        b: second source group.
    """
    cosines = cosines.double()
    return cosines - torch.maximum(cosines[:, a], cosines[:, b]).unsqueeze(1)


def contrasts(margins: Tensor) -> Tensor:
    """Return margins (..., G) minus their mean over the targets, NaN left out.

    What all targets share drops out: the distance of a pair's composites to their own sources,
    and with it the largest part of what theft alone changes. The contrast is
    ``mean [cos(z, c_t)] - mean over t' of mean [cos(z, c_t')]``, t' neither A nor B.

    >>> contrasts(torch.tensor([0.5, float("nan"), 0.1]))
    tensor([ 0.2000,     nan, -0.2000])
    """
    return margins - margins.nanmean(dim=-1, keepdim=True)
