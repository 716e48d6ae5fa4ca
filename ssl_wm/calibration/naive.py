"""Rules that other schemes use, on the same data, for comparison only: none is calibrated.

Each takes the composites of one key in one suspect for a sample and asks whether they lie
nearer to the target than in the clean encoder. What it leaves out is that *another encoder*
moves all composites together: the composites are no independent witnesses, however many there
are. ``ssl_wm.calibration.calibrate`` measures what follows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_wm.rng import numpy_stream
from ssl_wm.verification.margins import composite_margins

WSR_THRESHOLD = 0.3
NAIVE = {
    "t-test": "one-sided t-test over composites, margin minus the null encoders' margin",
    "bootstrap": "lower bootstrap bound over composites of the same mean above 0",
    "wsr": "at least 30 % of the composites nearest to the target's centre",
}
"""What each rule does; the threshold of the last is MEA-Defender's (Lv et al., 2024)."""


def all_margins(cosines: Tensor, *, pairs: list[tuple[int, int]]) -> Tensor:
    """Return each composite's margin to every group, (P, n, G) float32.

    Args:
        cosines: (P, n, G) cosines of n composites of each ordered pair to the groups' centres.
        pairs: the P pairs.
    """
    rows = [
        composite_margins(part, a=a, b=b).float()
        for (a, b), part in zip(pairs, cosines, strict=True)
    ]
    return torch.stack(rows)


def of_triples(values: Tensor, triples: np.ndarray) -> np.ndarray:
    """Return the composites' values for joint keys, (K, S * n).

    Args:
        values: (S, P, n, G), one per sub-key, ordered pair, composite and target.
        triples: (K, S, 3) joint keys (A, B, t).
    """
    groups = values.shape[-1]
    a, b, target = (triples[:, :, place].astype(np.int64) for place in range(3))
    pair = a * (groups - 1) + b - (b > a)
    found = values.numpy()[np.arange(values.shape[0]), pair, :, target]
    chosen: np.ndarray = found.reshape(len(triples), -1)
    return chosen


def naive_rules(
    away: np.ndarray, nearest: np.ndarray, *, alpha: float, resamples: int
) -> dict[str, np.ndarray]:
    """Return the accusations (K,) bool of each rule in ``NAIVE``.

    Args:
        away: (K, N) margins of the composites of K keys, less the null encoders' mean margin.
        nearest: (K, N) bool, whether the target's centre is the composite's nearest.
        alpha: one-sided level.
        resamples: of the bootstrap.
    """
    return {
        "t-test": t_test(away, alpha=alpha),
        "bootstrap": bootstrap(away, alpha=alpha, resamples=resamples),
        "wsr": nearest.mean(axis=1) >= WSR_THRESHOLD,
    }


def t_test(differences: np.ndarray, *, alpha: float) -> np.ndarray:
    """Return whether the mean of each row (K, N) is above 0 by a one-sided t-test, (K,) bool."""
    from scipy.stats import t

    count = differences.shape[1]
    mean = differences.mean(axis=1, dtype=np.float64)
    error = differences.std(axis=1, ddof=1, dtype=np.float64) / np.sqrt(count)
    accused: np.ndarray = mean > t.ppf(1 - alpha, df=count - 1) * error
    return accused


def bootstrap(
    differences: np.ndarray, *, alpha: float, resamples: int = 999, seed: int = 0
) -> np.ndarray:
    """Return whether the lower percentile bound of each row's mean is above 0, (K,) bool.

    Args:
        differences: (K, N).
        alpha: one-sided level; at most a share alpha of the resampled means may be 0 or less.
        resamples: of the N composites, the same for every row.
        seed: of the resamples.
    """
    count = differences.shape[1]
    stream = numpy_stream(seed, "naive bootstrap")
    weights = stream.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    means = differences @ weights.astype(differences.dtype).T
    accused: np.ndarray = (means <= 0).mean(axis=1) < alpha
    return accused
