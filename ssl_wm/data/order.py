"""The order in which images are visited: one random permutation per epoch."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_wm.errors import DataError
from ssl_wm.rng import torch_stream


class Place(NamedTuple):
    """Where a run is: all that a batch and its random draws are named after.

    Attributes:
        epoch: from 0.
        step: of the epoch, from 0.
        rank: the process's number, and ...
        world: ... of how many.
    """

    epoch: int = 0
    step: int = 0
    rank: int = 0
    world: int = 1


@lru_cache(maxsize=4)
def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the permutation (count,) of an epoch, which is drawn once: do not change it."""
    return torch.randperm(count, generator=torch_stream(seed, "order", epoch))


def batch_indices(count: int, place: Place, *, seed: int, batch_size: int) -> Tensor:
    """Return one process's image indices of a step, (batch_size / world,).

    The permutation is cut into whole batches, and a batch into equal shares, one after another,
    so any number of processes sees the same global batches in the same order.

    Raises:
        DataError: a short batch (fewer images than ``batch_size``) has no equal shares.

    >>> one = batch_indices(10, Place(1, 1), seed=0, batch_size=4)
    >>> two = [batch_indices(10, Place(1, 1, rank, 2), seed=0, batch_size=4) for rank in (0, 1)]
    >>> one.tolist() == torch.cat(two).tolist()
    True
    """
    epoch, step, rank, world = place
    order = epoch_order(count, seed=seed, epoch=epoch)
    whole = order[step * batch_size : (step + 1) * batch_size]
    if len(whole) % world:
        raise DataError(
            f"a batch of {len(whole)} images cannot be shared equally by {world} processes; there "
            f"are {count} images and fit.batch_size is {batch_size}: make it smaller, or use fewer "
            "processes"
        )
    share = len(whole) // world
    return whole[rank * share : (rank + 1) * share]


def whole_batches(count: int, *, batch_size: int) -> int:
    """Return how many whole batches an epoch has (at least one, perhaps short).

    >>> whole_batches(10, batch_size=4), whole_batches(3, batch_size=4)
    (2, 1)
    """
    return max(count // batch_size, 1)
