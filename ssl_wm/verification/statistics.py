"""The tests behind a verdict. Pure functions; no test here assumes a distribution.

Test A, exact for any suspect that is independent of the secret: the key was drawn uniformly
from a finite set of keys, so its rank among them is uniform whatever the suspect and the null
encoders are. With several sub-keys the *joint* key (all triples together, disjoint groups) is
the one draw, and any fixed function of the joint key may be ranked: no independence of the
sub-keys is needed.
"""

from __future__ import annotations

import numpy as np
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
