"""What a map of the space costs the nearest neighbours of natural images."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_wm.encoders.nearest import nearest, vote


def neighbours_right(z: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.1) -> Tensor:
    """Return which images (N,) bool get their own label from their k nearest others.

    Args:
        z: (N, D) embeddings; at least 2.
        labels: (N,) int64.
        k: neighbours; at most N - 1 count.
        temperature: of the vote (``encoders.nearest.vote``).
    """
    k = min(k, len(z) - 1)
    cosines, index = nearest(z, z, k=k + 1)
    own = index == torch.arange(len(z)).unsqueeze(1)
    own[:, -1] |= ~own.any(dim=1)  # equal images may have crowded the image itself out
    kept = cosines[~own].view(len(z), k), index[~own].view(len(z), k)
    return vote(kept[0], labels[kept[1]], temperature=temperature) == labels


def neighbours_lost(before: Tensor, after: Tensor, labels: Tensor) -> float:
    """Return how many points of leave-one-out kNN accuracy a map of the embeddings costs.

    Args:
        before: (N, D) embeddings.
        after: (N, E) the same images' embeddings after the map.
        labels: (N,) int64.

    >>> apart = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> neighbours_lost(apart, apart[[0, 2, 1, 3]], torch.tensor([0, 0, 1, 1]))
    100.0
    """
    right = [neighbours_right(z, labels).double().mean() for z in (before, after)]
    return 100 * float(right[0] - right[1])
