"""Which images of his pool a thief sends: one table, apart from the loss.

The first images of a selection are the held-out slice, so every selection comes in random order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.errors import ConfigError, choose
from ssl_wm.rng import derive_seed, torch_stream

CLUSTERS = 100
"""Most clusters that ``cluster-balanced`` makes."""


def select_random(count: int, *, budget: int | None, seed: int) -> Tensor:
    """Return ``budget`` indices (budget,) of a pool of ``count`` images, without replacement.

    Args:
        count: images in the pool.
        budget: images to send; None sends all.
        seed: of the draw.

    Raises:
        ConfigError: the budget is larger than the pool, or not positive.

    >>> select_random(5, budget=2, seed=0).shape
    torch.Size([2])
    """
    if budget is not None and not 1 <= budget <= count:
        raise ConfigError(
            f"the query budget must be 1 to {count} (the pool's images); got {budget}"
        )
    order = torch.randperm(count, generator=torch_stream(seed, "queries"))
    return order[:budget]


def k_centres(features: Tensor, *, budget: int, seed: int) -> Tensor:
    """Return the indices (budget,) of the greedy k-centre choice, in the order of choice.

    Farthest first (Gonzalez, 1985; for queries Sener and Savarese, ICLR 2018): the first is
    drawn by ``seed``, each next is the image whose nearest chosen one is farthest, by the
    Euclidean distance of unit features. No choice of as many images covers the pool with less
    than half of its radius. Exact; takes ``budget * N * D`` multiplications.

    Args:
        features: (N, D) of the pool.
        budget: images to choose, 1 to N.
        seed: of the first.
    """
    points = F.normalize(features.float(), dim=1)
    first = int(torch.randint(len(points), (), generator=torch_stream(seed, "first centre")))
    chosen = torch.empty(budget, dtype=torch.int64)
    farness = torch.full((len(points),), float("inf"))
    for place in range(budget):
        index = first if place == 0 else int(farness.argmax())
        chosen[place] = index
        farness = torch.minimum(farness, 1 - points @ points[index])
        farness[index] = float("-inf")
    return chosen


def clusters_of(features: Tensor, *, count: int, seed: int) -> Tensor:
    """Return the spherical k-means cluster (N,) int64 of each row of ``features`` (N, D)."""
    import faiss

    points = F.normalize(features.float() - features.float().mean(dim=0), dim=1)
    kmeans = faiss.Kmeans(
        points.shape[1], count, niter=25, nredo=3, spherical=True,
        seed=derive_seed(seed, "pool clusters") % 2**31,
        max_points_per_centroid=10**7, min_points_per_centroid=1,
    )  # fmt: skip
    kmeans.train(points.numpy())
    return (points @ torch.from_numpy(kmeans.centroids).T).argmax(dim=1)


def cluster_balanced(features: Tensor, *, budget: int, seed: int) -> Tensor:
    """Return indices (budget,), as evenly from the k-means clusters of ``features`` as they allow.

    One image of each cluster in turn, drawn at random, until the budget is spent; a cluster
    that has run out is passed over.

    Args:
        features: (N, D) of the pool.
        budget: images to choose, 1 to N.
        seed: of the clusters and the draws.
    """
    count = min(CLUSTERS, budget, len(features))
    order = torch.randperm(len(features), generator=torch_stream(seed, "balanced draw"))
    clusters = clusters_of(features, count=count, seed=seed)[order]
    turn = torch.empty(len(order), dtype=torch.int64)
    for cluster in range(count):
        members = (clusters == cluster).nonzero().squeeze(1)
        turn[members] = torch.arange(len(members))
    return order[turn.argsort(stable=True)[:budget]]


@dataclass(frozen=True)
class Selection:
    """One way of choosing images.

    Attributes:
        choose: features (N, D), budget and seed -> indices; None draws at random.
        says: in words.
    """

    choose: Callable[..., Tensor] | None
    says: str


SELECTIONS: dict[str, Selection] = {
    "random": Selection(None, "a random draw without replacement"),
    "k-centre": Selection(k_centres, "farthest first in feature space"),
    "cluster-balanced": Selection(cluster_balanced, "evenly from k-means clusters"),
}


def select(
    name: str, count: int, *, budget: int | None, seed: int, features: Callable[[], Tensor]
) -> Tensor:
    """Return the indices (budget,) that selection ``name`` chooses, in random order.

    Args:
        name: in ``SELECTIONS``.
        count: images in the pool.
        budget: images to send; None sends all.
        seed: of all draws.
        features: gives (count, D); called only where the selection looks at the pool.

    Raises:
        ConfigError: the name is unknown, or the budget out of range.
    """
    how = SELECTIONS[choose(name, SELECTIONS, what="selection")]
    drawn = select_random(count, budget=budget, seed=seed)
    if how.choose is None or len(drawn) == count:
        return drawn
    chosen = how.choose(features(), budget=len(drawn), seed=seed)
    shuffle = torch.randperm(len(chosen), generator=torch_stream(seed, "order of queries"))
    return chosen[shuffle]
