"""The space that an encoder's embeddings span: its centre, its groups' centres, its directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
