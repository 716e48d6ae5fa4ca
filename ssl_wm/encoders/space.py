"""The space that an encoder's embeddings span: its centre and the centres of groups."""

from __future__ import annotations

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
