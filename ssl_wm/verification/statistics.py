"""The tests behind a verdict. Pure functions; no test here assumes a distribution.

Test A1, exact for any suspect that is independent of the secret: the key was drawn uniformly
from a finite set of keys, so its rank among them is uniform whatever the suspect and the null
encoders are. With several sub-keys the *joint* key (all triples together, disjoint groups) is
the one draw, and any fixed function of the joint key may be ranked: no independence of the
sub-keys is needed. Test A2 keeps the groups and ranks the recipes. Test B ranks the suspect
among null encoders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.rng import numpy_stream

NOT_A_NUMBER = (
    "the margin of a key is not a number, so nothing can be ranked; check that every group has "
    "images and that the encoder's embeddings are finite and of sane scale"
)


def clopper_pearson(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the exact interval of a binomial rate (Clopper and Pearson, 1934).

    >>> [round(x, 3) for x in clopper_pearson(360, 1000)]
    [0.33, 0.391]
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def rank_p_value(statistics: Tensor, key: tuple[int, int, int]) -> tuple[float, int, int]:
    """Return (p, rank, number) of a key among all keys of a table.

    ``p = #{keys with a statistic at least the key's, itself included} / number``: exact, since
    the table holds every key that the generator can draw.

    Args:
        statistics: (G, G, G) statistic of each key (A, B, t); NaN where there is no such key.
        key: the key's (A, B, t).

    Raises:
        VerificationError: the key's own statistic is NaN.

    >>> import torch
    >>> table = torch.full((3, 3, 3), torch.nan)
    >>> table[0, 1, 2], table[1, 0, 2], table[2, 1, 0] = 3.0, 1.0, 2.0
    >>> rank_p_value(table, (2, 1, 0))
    (0.6666666666666666, 2, 3)
    """
    if bool(statistics[key].isnan()):
        raise VerificationError(NOT_A_NUMBER)
    known = statistics[~statistics.isnan()]
    rank = int((known >= statistics[key]).sum())
    return rank / len(known), rank, len(known)


def standardise(statistics: Tensor) -> Tensor:
    """Return a table in robust units: minus its median, over 1.4826 median deviations.

    The units let sub-keys of different mixers be added. They are a function of the whole
    table, not of the key, so ranks among joint keys stay exact.
    """
    known = statistics[~statistics.isnan()]
    median = known.median()
    scale = 1.4826 * (known - median).abs().median()
    return (statistics - median) / scale.clamp(min=1e-12)


def joint_statistic(tables: Tensor, triples: np.ndarray) -> np.ndarray:
    """Return the sum over sub-keys of their table entries, (B,).

    Args:
        tables: (S, G, G, G), one per sub-key.
        triples: (B, S, 3) int, joint keys.
    """
    values = tables.numpy()
    total = np.zeros(len(triples))
    for place in range(len(values)):
        a, b, target = triples[:, place].T
        total += values[place][a, b, target]
    return total


def draw_joint_keys(groups: int, *, sub_keys: int, draws: int, seed: int) -> np.ndarray:
    """Return uniform draws of joint keys, (draws, sub_keys, 3): all groups different.

    A partial Fisher-Yates shuffle of the groups in each row.
    """
    stream = numpy_stream(seed, "joint-keys")
    order = np.tile(np.arange(groups, dtype=np.uint16), (draws, 1))
    rows = np.arange(draws)
    for place in range(3 * sub_keys):
        other = place + stream.integers(groups - place, size=draws)
        order[:, place], order[rows, other] = order[rows, other], order[:, place].copy()
    return order[:, : 3 * sub_keys].reshape(draws, sub_keys, 3)


def joint_p_value(
    tables: Tensor, key: np.ndarray, *, draws: int, seed: int, block: int = 500_000
) -> tuple[float, np.ndarray]:
    """Return the Monte-Carlo p-value of a joint key and a sample of its null.

    ``p = (1 + #{draws with a statistic at least the key's}) / (1 + draws)``, valid in finite
    samples (Phipson and Smyth, 2010, eq. 2) since the key is one more draw from the same
    generator under the null.

    Args:
        tables: (S, G, G, G) statistics.
        key: (S, 3) the joint key.
        draws: random joint keys.
        seed: of the draws; public, so that anybody gets the same p.
        block: draws held in memory at once.

    Returns:
        p, and the statistics of up to 20,000 of the draws for plotting.

    Raises:
        VerificationError: a statistic is NaN where there is such a key.
    """
    observed = joint_statistic(tables, key[None])[0]
    at_least, kept = 0, np.empty(0)
    for number, start in enumerate(range(0, draws, block)):
        size = min(block, draws - start)
        keys = draw_joint_keys(tables.shape[1], sub_keys=len(key), draws=size, seed=seed + number)
        null = joint_statistic(tables, keys)
        if np.isnan(observed) or np.isnan(null).any():
            raise VerificationError(NOT_A_NUMBER)
        at_least += int((null >= observed - 1e-12).sum())
        kept = null[:20_000] if number == 0 else kept
    return (1 + at_least) / (1 + draws), kept


def bootstrap_mean(
    values: Tensor, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values`` (n,).

    It describes this suspect and this key only ("within-model"): no false-accusation rate
    follows from it.
    """
    stream = numpy_stream(seed, "bootstrap")
    array = values.double().numpy()
    means = np.array(
        [array[stream.integers(len(array), size=len(array))].mean() for _ in range(draws)]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def recipe_p_value(recipes: Tensor) -> tuple[float, float]:
    """Return (p, smallest p possible) of the key's recipes for its own groups (test A2).

    Each sub-key's own recipe is one more draw from the generator of its decoys, independently
    of the other sub-keys, so all combinations of one recipe per sub-key are equally likely:
    ``p = #{combinations with a sum at least the key's} / (R + 1)^S``, exact.

    Args:
        recipes: (S, R + 1) statistic of each recipe, the key's own first. S is at most 3; of
            more sub-keys the first three are used.

    Raises:
        VerificationError: a statistic is NaN.

    >>> recipe_p_value(torch.tensor([[3.0, 1.0, 2.0], [5.0, 6.0, 0.0]]))
    (0.3333333333333333, 0.1111111111111111)
    """
    used = recipes[:3].double()
    if bool(used.isnan().any()):
        raise VerificationError(NOT_A_NUMBER)
    sums, last = torch.zeros(1, dtype=torch.float64), used[-1]
    for row in used[:-1]:
        sums = (sums.unsqueeze(1) + row).flatten()
    least = sums[0] + last[0] - 1e-12  # the key's own, summed in the same order
    at_least = sum(int((some.unsqueeze(1) + last >= least).sum()) for some in sums.split(4096))
    number = len(sums) * len(last)
    return at_least / number, 1 / number


def conformal_p_value(suspect: Tensor, nulls: Tensor) -> tuple[float, float]:
    """Return (p, smallest p possible) of the suspect among null encoders (test B).

    ``p = (1 + #{nulls that score at least the suspect's score}) / (m + 1)``, where the score is
    the sum over sub-keys of the statistic over its deviation among all m + 1 encoders. All
    encoders are treated alike, so p is valid if an innocent suspect is exchangeable with the
    null encoders (Vovk et al., 2005, proposition 2.4).

    Args:
        suspect: (S,) statistic of each sub-key.
        nulls: (m, S) the same of the null encoders.

    Raises:
        VerificationError: a statistic is NaN.

    >>> conformal_p_value(torch.tensor([2.0]), torch.tensor([[0.0], [1.0], [0.5]]))
    (0.25, 0.25)
    """
    everyone = torch.cat([suspect.unsqueeze(0), nulls]).double()
    if bool(everyone.isnan().any()):
        raise VerificationError(NOT_A_NUMBER)
    deviation = everyone.std(dim=0, correction=0).clamp(min=1e-12)
    scores = ((everyone - everyone.mean(dim=0)) / deviation).sum(dim=1)
    count = len(everyone)
    return int((scores >= scores[0] - 1e-12).sum()) / count, 1 / count


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, 1979): family-wise and step-down.

    Rejecting those at most alpha keeps the chance of any false rejection at most alpha,
    whatever their dependence.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted


def alpha_of_look(alpha: float, look: int) -> float:
    """Return what the n-th use of a key may spend, ``alpha * 6 / (pi n)^2``.

    The sum over all n is alpha, so however many suspects are tried one after another, the
    chance of any false accusation stays at most alpha (union bound).

    >>> round(alpha_of_look(0.01, 1), 6), round(sum(alpha_of_look(1, n) for n in range(1, 9999)), 3)
    (0.006079, 1.0)
    """
    return alpha * 6 / (math.pi * look) ** 2


def ways_to_reveal(chosen: int, known: int) -> int:
    """Return in how many ways an owner could have picked the sub-keys that he reveals.

    He may have looked first and revealed those that did best, so p is multiplied by it.

    >>> ways_to_reveal(1, 3), ways_to_reveal(3, 3)
    (3, 1)
    """
    return math.comb(known, chosen)
