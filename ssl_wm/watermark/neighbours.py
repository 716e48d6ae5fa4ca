"""What a map of the space costs the nearest neighbours of natural images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1000


def neighbours_right(z: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.1) -> Tensor:
    """Return which images (N,) bool get their own label from their k nearest others.

    A neighbour votes with ``exp(cosine / temperature)`` (Wu et al., CVPR 2018, section 3.4); no
    image votes on itself.

    Args:
        z: (N, D) embeddings.
        labels: (N,) int64.
        k: neighbours; at most N - 1 count.
        temperature: of the vote.
    """
    rows = F.normalize(z.float(), dim=1)
    columns, k = rows.T.contiguous(), min(k, len(z) - 1)
    found = []
    for start in range(0, len(z), BLOCK):
        cosines = rows[start : start + BLOCK] @ columns
        place = torch.arange(len(cosines))
        cosines[place, place + start] = -torch.inf
        nearest, index = cosines.topk(k, dim=1)
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(cosines), int(labels.max()) + 1)
        found.append(votes.scatter_add_(1, labels[index], weights).argmax(dim=1))
    return torch.cat(found) == labels


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
