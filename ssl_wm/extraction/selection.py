"""Which images of his pool a thief sends."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream


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
