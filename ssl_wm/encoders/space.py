"""The space that vectors span: its centre, its groups' centres, its directions and axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_A_DIRECTION = 8
"""Images for each principal direction that vectors are read in; further ones are left out."""


def group_centres(z: Tensor, groups: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Return the space's centre (D,) and the groups' unit centres (G, D) around it, float64.

    Args:
        z: (N, D) embeddings of natural images.
        groups: (N,) group of each, in [0, count).
        count: number of groups G; each has at least one image.

    The space's centre is the mean of the groups' means, so unequal groups weigh the same.
    """
    member = F.one_hot(groups, count).double()
    means = (member.T @ z.double()) / member.sum(dim=0).unsqueeze(1)
    centre = means.mean(dim=0)
    return centre, directions(means, centre=centre)


def directions(z: Tensor, *, centre: Tensor) -> Tensor:
    """Return the unit vectors (N, D) from ``centre`` (D,) to ``z`` (N, D), float64.

    In float64 no float32 scale overflows or falls below the least norm, so that a thief who
    multiplies the embeddings by 1e-15 or 1e20 changes nothing.
    """
    return F.normalize(z.double() - centre, dim=1, eps=1e-100)


def evening(z: Tensor, *, floor: float = 3.0) -> Tensor:
    """Return the map (D, D), float64, after which no direction of a space outweighs the others.

    ``(S + floor s I)^(-1/2)`` with S the covariance of the rows and s its mean eigenvalue: a
    principal direction of variance v shrinks by ``sqrt(v + floor s)``. That is whitening, shrunk
    towards a multiple of the identity (Ledoit and Wolf, 2004, with a fixed intensity), so that
    directions with little but noise in them stay small. It turns with the space: rotated rows
    give the rotated map, scaled rows the map over their scale.

    Args:
        z: (N, D) embeddings of natural images.
        floor: what is added to every variance, in mean variances.

    >>> long = torch.tensor([[9.0, 0.0], [-9.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> before, after = (rows.norm(dim=1)[[0, 2]] for rows in (long, long.double() @ evening(long)))
    >>> round(float(before[0] / before[1]), 1), round(float(after[0] / after[1]), 1)
    (9.0, 7.0)
    """
    rows = z.double() - z.double().mean(dim=0)
    scale = rows.abs().max().clamp(min=1e-100)  # so that no square leaves float64's range
    variances, axes = torch.linalg.eigh(torch.cov((rows / scale).T, correction=0))
    mean = variances.mean().clamp(min=1e-100)
    shrunk = axes * (variances.clamp(min=0) / mean + floor).rsqrt()
    even: Tensor = shrunk @ axes.T / (scale * mean.sqrt())
    return even


@dataclass(frozen=True)
class Axes:
    """Leading principal coordinates of a space, ``(z - mean) @ directions``.

    Attributes:
        mean: (D,) float64.
        directions: (D, K) float64, scaled so that each coordinate has variance 1.
    """

    mean: Tensor
    directions: Tensor


def leading_axes(z: Tensor, *, count: int) -> Axes:
    """Return the ``count`` leading principal coordinates of embeddings ``z`` (N, D).

    Directions without variance are left out, so there may be fewer.

    >>> leading_axes(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), count=2).directions.abs().tolist()
    [[0.3333333333333333], [0.0]]
    """
    rows = z.double()
    mean = rows.mean(dim=0)
    return axes_from(mean, torch.cov((rows - mean).T, correction=0).view(2 * [len(mean)]), count)


def axes_from(mean: Tensor, covariance: Tensor, count: int) -> Axes:
    """Return the ``count`` leading principal coordinates of a cloud, float64, or all there are.

    Args:
        mean: (D,) of the cloud.
        covariance: (D, D).
        count: K at most; directions without variance are left out.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    kept = min(count, int((variances > 1e-9 * variances[-1].clamp(min=1e-300)).sum()))
    order = torch.arange(len(mean) - 1, len(mean) - 1 - kept, -1)
    return Axes(mean, vectors[:, order] * variances[order].rsqrt())


def smooth_products(q: Tensor) -> Tensor:
    """Return the smooth products (N, K (K - 1) / 2) of every two coordinates of ``q`` (N, K).

    ``h(a + b) - h(a - b)`` with ``h(u) = gelu(u) + gelu(-u)``, which is u^2 near 0 (up to a factor)
    and |u| far from it: near 0 the product of a and b, and far away
    ``2 sign(ab) min(|a|, |b|)``, so that no row goes far. Pairs in the order of ``pairs_of``.

    >>> smooth_products(torch.tensor([[10.0, -3.0], [0.0, 5.0]])).round().flatten().tolist()
    [-6.0, 0.0]
    """
    a, b = (q[:, side] for side in pairs_of(q.shape[1]).to(q.device).T)
    return _even(a + b) - _even(a - b)


def product_units(axes: Axes, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (W (4 J, D), b (4 J,)), float64, of units that make J of the smooth products.

    With the units ``gelu(W z + b)`` in four blocks of J, the products are the sum of the first
    two blocks minus that of the last two.

    Args:
        axes: K coordinates of vectors z (D,).
        places: J places in the order of ``pairs_of``.
    """
    pairs = pairs_of(axes.directions.shape[1])[list(places)]
    a, b = (axes.directions[:, side].T for side in pairs.T)
    weight = torch.cat([a + b, -a - b, a - b, b - a])
    return weight, -weight @ axes.mean


def pairs_of(count: int) -> Tensor:
    """Return every two of ``count`` places, (count (count - 1) / 2, 2)."""
    return torch.triu_indices(count, count, 1).T


def _even(u: Tensor) -> Tensor:
    return F.gelu(u) + F.gelu(-u)
