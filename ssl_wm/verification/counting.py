"""How many joint keys fit a suspect as well as the owner's, counted one by one.

Random joint keys can say no more than "one in so many million". But where the owner's key fits
well, few joint keys of all fit as well, and they can be found: those whose first sub-key leaves
enough for the best of the others, and so on down (branch and bound). The count gives the exact
rank among all joint keys that there are, with no draw in it.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.verification.statistics import NOT_A_NUMBER, draw_joint_keys, joint_statistic

TAIL = 1e-5
"""Share of all joint keys in which a key must lie for its rank to be told, where they are many."""
SLACK = 1e-12
BLOCK = 1_000_000
"""Joint keys in memory at once, about."""


def joint_keys(groups: int, *, sub_keys: int) -> int:
    """Return the number of joint keys: ordered draws of three groups a sub-key, all different.

    >>> joint_keys(20, sub_keys=3)
    60949324800
    """
    return math.perm(groups, 3 * sub_keys)


def rank_of_all(tables: Tensor, key: np.ndarray, *, most: int) -> tuple[int | None, float]:
    """Return the key's rank among all joint keys where it is to be told, and when it is.

    Args:
        tables: (S, G, G, G) statistics; NaN where there is no such key.
        key: (S, 3) the joint key.
        most: partial and whole keys that are looked at, at most.

    Returns:
        The rank, or None; and a share of all joint keys: only of those that lie in the first
            such share can the rank be told. It is ``TAIL`` at most, or 1 where all keys of all
            sub-keys, whether they go together or not, are no more than ``most``.

    Raises:
        VerificationError: the key's statistic is NaN.
    """
    everyone = joint_keys(tables.shape[1], sub_keys=len(tables))
    together = math.prod(int((~table.isnan()).sum()) for table in tables)
    if together <= most:
        return count_at_least(tables, key, limit=len(tables) * together), 1.0
    share = min(TAIL, most / everyone)
    rank = count_at_least(tables, key, limit=most)
    return (None if rank is None or rank > share * everyone else rank), share


def count_at_least(tables: Tensor, key: np.ndarray, *, limit: int) -> int | None:
    """Return how many joint keys have a statistic at least the key's, itself included.

    Args:
        tables: (S, G, G, G) statistics; NaN where there is no such key.
        key: (S, 3) the joint key.
        limit: partial and whole keys that are looked at, at most.

    Returns:
        The count, or None where more than ``limit`` would have to be looked at. Which of the two
        is decided by the key's statistic alone: the larger it is, the fewer are looked at.

    Raises:
        VerificationError: the key's statistic is NaN.

    >>> import torch
    >>> table = torch.full((6, 6, 6), torch.nan, dtype=torch.float64)
    >>> table[0, 1, 2], table[0, 1, 3], table[3, 4, 5] = 3.0, 2.0, 1.0
    >>> key = np.array([[0, 1, 2], [3, 4, 5]])
    >>> count_at_least(torch.stack([table, table]), key, limit=100)
    2
    """
    observed = float(joint_statistic(tables, key[None])[0])
    if math.isnan(observed):
        raise VerificationError(NOT_A_NUMBER)
    levels = [_descending(table.double().numpy()) for table in tables]
    rest = np.cumsum([0.0, *(values[0] for values, _ in levels[:0:-1])])[::-1]
    needed = observed - rest - 2 * SLACK * max(1.0, abs(observed))
    left = limit

    def below(sums: np.ndarray, groups: np.ndarray, level: int) -> int:
        """Return how many whole keys that begin with these partial ones are at least the key's."""
        nonlocal left
        values, triples = levels[level]
        enough = np.searchsorted(-values, sums - needed[level], side="right")
        left -= int(enough.sum())
        if left < 0:
            raise _TooManyError
        found = 0
        for part in _parts(enough):
            rows = np.repeat(part, enough[part])
            within = np.arange(len(rows)) - np.repeat(_before(enough[part]), enough[part])
            more = triples[within]
            apart = (groups[rows][:, :, None] != more[:, None, :]).all(axis=(1, 2))
            whole = sums[rows[apart]] + values[within[apart]]
            if level + 1 == len(levels):
                found += int((whole >= observed - SLACK).sum())
            elif len(whole):
                both = np.concatenate([groups[rows[apart]], more[apart]], axis=1)
                found += below(whole, both, level + 1)
        return found

    try:
        return below(np.zeros(1), np.empty((1, 0), dtype=np.int32), 0)
    except _TooManyError:
        return None


class _TooManyError(Exception):
    """More keys would have to be looked at than may be."""


def null_sample(tables: Tensor, *, draws: int) -> np.ndarray:
    """Return the statistics of ``draws`` random joint keys, for a plot of where the key lies."""
    keys = draw_joint_keys(tables.shape[1], sub_keys=len(tables), draws=draws, seed=0)
    return joint_statistic(tables, keys)


def _descending(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a table's entries (N,), the largest first, and where they stand (N, 3)."""
    places = np.argwhere(~np.isnan(table))
    values = table[tuple(places.T)]
    order = np.argsort(-values, kind="stable")
    return values[order], places[order].astype(np.int32)


def _before(counts: np.ndarray) -> np.ndarray:
    before: np.ndarray = np.cumsum(counts) - counts
    return before


def _parts(counts: np.ndarray) -> list[np.ndarray]:
    """Return the rows with a count, in parts whose counts sum to about ``BLOCK``."""
    rows = np.flatnonzero(counts)
    if len(rows) == 0:
        return []
    return np.split(rows, np.flatnonzero(np.diff(_before(counts[rows]) // BLOCK)) + 1)
