"""What the null encoders show too is taken off a suspect's statistics. Pure functions.

No null encoder depends on the secret, and nothing here knows the key: every entry of a table is
treated alike. So ranks among keys stay exact, whichever way is chosen beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ssl_wm.verification.margins import contrasts

PRIOR_WEIGHT = 4.0
ENOUGH_NULLS = 4
ZERO = 1e-12

Centring = Literal["mean", "fitted", "unexplained"]


def key_statistics(tables: Tensor, nulls: Sequence[Tensor], *, centring: Centring) -> Tensor:
    """Return what ``verify`` ranks, of every key (S, G, G, G): contrasts apart from the nulls'.

    Args:
        tables: (S, G, G, G) margins, or nearness, in the suspect.
        nulls: the same in each null encoder, at least one.
        centring: a name in ``CENTRINGS``.
    """
    others = torch.stack([contrasts(null) for null in nulls])
    return centred(contrasts(tables), others, centring=centring)


def centred(tables: Tensor, nulls: Tensor, *, centring: Centring) -> Tensor:
    """Return ``tables`` (S, G, G, G) without what the nulls (m, S, G, G, G) have in common with it.

    Args:
        tables: the suspect's statistics of all keys, one table for each sub-key's mixer; NaN where
            there is no such key.
        nulls: the same of the null encoders, at least one.
        centring: a name in ``CENTRINGS``.
    """
    return CENTRINGS[centring](tables, nulls)


def null_centred(values: Tensor, nulls: Tensor) -> Tensor:
    """Return ``values`` minus their mean over the nulls, over their spread where it is known.

    With m >= 4 null encoders each key's difference is divided by the moderated deviation
    (``_moderated``) of the nulls about their mean, which has m - 1 degrees of freedom.

    Args:
        values: (...) statistics of the suspect.
        nulls: (m, ...) the same of the null encoders.

    >>> null_centred(torch.tensor([3.0, 1.0]), torch.tensor([[1.0, 1.0]]))
    tensor([2., 0.])
    """
    difference = values - nulls.mean(dim=0)
    difference = torch.where(difference.abs() < ZERO, 0.0, difference)
    if len(nulls) < ENOUGH_NULLS:
        return difference
    return difference / _moderated(nulls - nulls.mean(dim=0), freedom=len(nulls) - 1)


def null_fitted(tables: Tensor, nulls: Tensor) -> Tensor:
    """Return what no linear combination of the nulls explains of each of the suspect's tables.

    ``r = x - sum_i w_i n_i`` with the w of least squares over all keys of a table. A suspect that
    was trained on, shifted or pruned has moved in ways that null encoders treated so have moved
    in too, by another amount; their mean takes off a fixed amount, the fit as much as is there.
    With m >= 4 nulls r is divided by the moderated deviation (``_moderated``) of what is left of
    each null when it is explained by the other ones.

    Args:
        tables: (S, ...) statistics of the suspect, each table fitted by itself.
        nulls: (m, S, ...) the same of the null encoders.

    >>> suspect, nulls = torch.tensor([[4.0, 2.0, 1.0]]), torch.tensor([[[2.0, 1.0, 0.0]]])
    >>> null_fitted(suspect.double(), nulls.double()).tolist()
    [[0.0, 0.0, 1.0]]
    """
    left = unexplained(tables, nulls)
    if len(nulls) < ENOUGH_NULLS:
        return left
    return left / torch.stack([_own_spread(nulls[:, s]) for s in range(len(tables))])


def unexplained(tables: Tensor, nulls: Tensor) -> Tensor:
    """Return the r of ``null_fitted``, never divided: every key counts in the same unit.

    A few nulls tell a key's own deviation badly.

    Args:
        tables: (S, ...) statistics of the suspect, each table fitted by itself.
        nulls: (m, S, ...) the same of the null encoders.
    """
    return torch.stack([_unexplained(tables[s], nulls[:, s]) for s in range(len(tables))])


def _own_spread(nulls: Tensor) -> Tensor:
    """Return each key's deviation (...) over what the other nulls leave of each null (m, ...)."""
    others = [torch.cat([nulls[:j], nulls[j + 1 :]]) for j in range(len(nulls))]
    rests = torch.stack([_unexplained(n, o) for n, o in zip(nulls, others, strict=True)])
    return _moderated(rests, freedom=len(nulls))


def _unexplained(table: Tensor, nulls: Tensor) -> Tensor:
    """Return ``table`` (...) minus its best linear combination of the nulls (m, ...)."""
    known = ~(table.isnan() | nulls.isnan().any(dim=0))
    wanted, given = table[known], nulls[:, known].T
    weights = torch.linalg.lstsq(given, wanted.unsqueeze(1)).solution
    rest = wanted - (given @ weights).squeeze(1)
    left = torch.full_like(table, torch.nan)
    left[known] = torch.where(rest.abs() < ZERO, 0.0, rest)
    return left


def _moderated(rests: Tensor, *, freedom: int) -> Tensor:
    """Return each key's deviation (...) from the nulls' ``rests`` (m, ...), held by all the others.

    ``s^2 = (4 s0^2 + sum of squares) / (4 + freedom)`` with s0^2 the median variance of all keys
    (Smyth, 2004, eq. 1 with a fixed prior weight): a key whose few nulls happen to agree does not
    become certain.
    """
    squares = rests.square().sum(dim=0)
    prior = (squares / freedom).nanmedian()
    spread = ((PRIOR_WEIGHT * prior + squares) / (PRIOR_WEIGHT + freedom)).sqrt()
    return spread.clamp(min=ZERO)


CENTRINGS: dict[Centring, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": null_centred,
    "fitted": null_fitted,
    "unexplained": unexplained,
}
"""How the null encoders are taken off, by name."""
