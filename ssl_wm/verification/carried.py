"""What a suspect knows of each carrier (``watermark/carriers.py``, ``places.py``), and its test.

The suspect is asked natural images alone. Of every carrier that the key could have drawn, it is
read how much of it the suspect's answers give beyond the clean encoder's: the owner's ranks among
all are compared with those of a random draw. The key drew its carriers uniformly, so the p-value
is exact whatever the suspect is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssl_wm.encoders.space import ROWS_A_DIRECTION

if TYPE_CHECKING:
    from ssl_wm.verification.settings import VerifyConfig
    from ssl_wm.watermark.open_key import OpenKey

FLAT = 1e-6
"""Directions with less than this share of the first one's variance are left out."""
NOTHING = 1e-10
"""Where no more than this share of an encoder's variance is left, what is left is rounding."""


@dataclass(frozen=True)
class Base:
    """The clean encoder, as carriers are read against it.

    Attributes:
        z: (N, D) its answers to the reference images.
        carriers: (N, P) every carrier of them.
    """

    z: Tensor
    carriers: Tensor

    @cached_property
    def known(self) -> Tensor:
        """Orthonormal columns (N, k) that span its answers."""
        return _basis(self.z)

    @cached_property
    def values(self) -> Tensor:
        """The carriers (N, P) less what is linear in its answers."""
        return _without(self.known, _centred(self.carriers.double()))


def reads_carriers(key: OpenKey, config: VerifyConfig) -> bool:
    """Return whether the key has carriers, and the suspect's answers are such as to show them."""
    return key.terms.carriers > 0 and config.access == "embeddings"


def carried_shares(z: Tensor, base: Base) -> Tensor:
    """Return which share of each carrier answers ``z`` give beyond the clean encoder's, (P,).

    The partial R^2 of ``z`` in the regression of the carrier on the clean answers and ``z``
    together. No invertible linear map of ``z`` changes it.

    Args:
        z: (N, D') a suspect's answers to the reference images.
        base: the clean encoder's, to the same images.
    """
    rows, values = _scaled(z), base.values
    left = _without(base.known, rows)
    if float(left.square().sum()) <= NOTHING * float(rows.square().sum()):
        return torch.zeros(values.shape[1], dtype=torch.float64)
    further = _basis(left)
    whole = values.square().sum(dim=0).clamp(min=1e-300)
    shares: Tensor = (further.T @ values).square().sum(dim=0) / whole
    return shares


def carried_statistics(shares: Tensor, nulls: Sequence[Tensor]) -> Tensor:
    """Return ``shares`` (P,) minus what is best explained by a constant and the nulls' shares.

    Least squares over all carriers: some are easier to know than others, for any network. Nulls
    that know nothing, such as the clean encoder itself, explain nothing.
    """
    if not len(shares):
        return shares
    useful = [null for null in nulls if float(null.std(correction=0)) > 1e-9]
    given = torch.stack([torch.ones_like(shares), *useful], dim=1)
    explained: Tensor = given @ torch.linalg.lstsq(given, shares.unsqueeze(1)).solution
    return shares - explained.squeeze(1)


def carried_ranks(statistics: Tensor, own: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Return the places of own carriers (S, C) among all, 1 the least; of equal ones the least.

    >>> carried_ranks(torch.tensor([0.1, 0.3, 0.3]), [[0, 2], [1, 2]]).tolist()
    [[1, 2], [2, 2]]
    """
    values = statistics.numpy()
    ranks: np.ndarray = 1 + np.searchsorted(np.sort(values), values[np.asarray(own)], side="left")
    return ranks


def carried_p_value(ranks: np.ndarray, *, count: int) -> float:
    """Return the chance that random carriers have a sum of places as large as ``ranks``.

    The exact null of the rank-sum statistic (Wilcoxon, 1945), of several independent draws
    together: each sub-key draws its different ones of ``count``.

    Args:
        ranks: (S, C) of each sub-key's carriers, 1 to ``count``.
        count: number of all carriers.

    >>> carried_p_value(np.array([[8, 9, 10]]), count=10) == 1 / 120
    True
    """
    sub_keys, each = ranks.shape
    return float(rank_sum_tail(sub_keys, each=each, count=count)[ranks.sum()])


def rank_sum_tail(sub_keys: int, *, each: int, count: int) -> np.ndarray:
    """Return the chance of a sum of places of at least s, at index s, for random carriers."""
    ways = np.array([1.0])
    for _ in range(sub_keys):
        ways = np.convolve(ways, _rank_sums(each, count))
    tail: np.ndarray = np.cumsum(ways[::-1])[::-1] / ways.sum()
    return tail


def least_p_value(own: Sequence[Sequence[int]], *, count: int) -> float:
    """Return the p-value of own carriers (S, C) that are known better than all others.

    >>> least_p_value([[7, 2, 4]], count=10) == 1 / 120
    True
    """
    places, shared = np.unique(np.asarray(own), return_counts=True)
    statistics = torch.zeros(count)
    statistics[places] = torch.from_numpy(shared + np.linspace(0.5, 0, len(places))).float()
    return carried_p_value(carried_ranks(statistics, own), count=count)


def both(one: np.ndarray | float, other: np.ndarray | float) -> np.ndarray:
    """Return Fisher's combination of two independent p-values (Fisher, 1925).

    ``q (1 - ln q)`` with q their product: the chance that two uniform numbers have as small a
    product.

    >>> both(0.1, 0.1).round(4), both(1.0, 1.0)
    (np.float64(0.0561), np.float64(1.0))
    """
    product = np.asarray(one) * other
    combined: np.ndarray = np.minimum(1.0, product * (1 - np.log(product)))
    return combined


def _rank_sums(each: int, count: int) -> np.ndarray:
    """Return the number of ways (at index s) to choose ``each`` of 1..count with sum s."""
    ways = np.zeros((each + 1, each * count + 1))
    ways[0, 0] = 1
    for rank in range(1, count + 1):
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    chosen: np.ndarray = ways[each]
    return chosen


def _scaled(z: Tensor) -> Tensor:
    """Return ``z`` centred and of largest entry 1, so that no square leaves float64's range."""
    rows = _centred(z.double())
    return rows / rows.abs().max().clamp(min=1e-300)


def _centred(z: Tensor) -> Tensor:
    return z - z.mean(dim=0)


def _basis(z: Tensor) -> Tensor:
    """Return orthonormal columns (N, k) that span the principal directions of ``z`` (N, D)."""
    rows = _scaled(z)
    variances, vectors = torch.linalg.eigh(rows.T @ rows)
    most = max(1, len(rows) // ROWS_A_DIRECTION)
    kept = (variances > FLAT * variances[-1].clamp(min=1e-300)).nonzero().flatten()[-most:]
    basis: Tensor = rows @ (vectors[:, kept] * variances[kept].rsqrt())
    return basis


def _without(basis: Tensor, rows: Tensor) -> Tensor:
    """Return ``rows`` (N, D) less their projection on orthonormal columns."""
    return rows - basis @ (basis.T @ rows)
