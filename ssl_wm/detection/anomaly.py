"""How far suspicious values lie from the others, and what clean encoders say of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ssl_wm.errors import ConfigError

LEAST_DEVIATION = 0.01
"""Of the largest magnitude."""


def mad_index(values: Tensor) -> Tensor:
    """Return how many robust deviations each value lies *below* the median, (G,) float64.

    ``(median - v) / (1.4826 median |v - median|)`` (Wang et al., 2019, section IV-C, with a
    sign: only small triggers are suspicious). The deviation is taken as at least a hundredth of
    the largest magnitude: where most values are equal, as those of triggers that were not found,
    it would be 0 and any difference infinite.

    Args:
        values: (G,).

    Raises:
        ConfigError: there are fewer than three, or one is not finite.

    >>> import torch
    >>> mad_index(torch.tensor([1.0, 5.0, 6.0, 7.0, 6.0])).round(decimals=2).tolist()
    [3.37, 0.67, 0.0, -0.67, 0.0]
    """
    values = values.double()
    if len(values) < 3 or not bool(values.isfinite().all()):
        raise ConfigError(
            "an anomaly index compares one finite value with at least two others; got "
            f"{[round(v, 4) for v in values.tolist()]}"
        )
    median = values.quantile(0.5)
    deviation = 1.4826 * (values - median).abs().quantile(0.5)
    least = LEAST_DEVIATION * float(values.abs().max())
    return (median - values) / deviation.clamp(min=max(least, 1e-300))


def conformal_p(score: float, nulls: Sequence[float]) -> tuple[float, float]:
    """Return (p, smallest p possible) of a score among those of clean encoders.

    ``p = (1 + #{nulls that are at least the score}) / (1 + n)``: valid if a clean suspect is
    exchangeable with the null encoders (Vovk et al., 2005, proposition 2.4).

    Args:
        score: the suspect's.
        nulls: n scores of clean encoders.

    Raises:
        ConfigError: there are no nulls, or a score is NaN.

    >>> conformal_p(2.5, [1.0, 2.0, 3.0])
    (0.5, 0.25)
    """
    if not nulls:
        raise ConfigError(
            "a score says nothing by itself: give at least one clean encoder to compare with "
            "(19 allow p = 0.05, 99 allow p = 0.01)"
        )
    if any(math.isnan(value) for value in (score, *nulls)):
        raise ConfigError("a score is NaN, so nothing can be compared; look at the encoders")
    count = 1 + len(nulls)
    return (1 + sum(value >= score for value in nulls)) / count, 1 / count


@dataclass(frozen=True)
class Roc:
    """How well a score tells marked encoders from clean ones.

    Attributes:
        area: share of pairs (marked, clean) in which the marked one scores higher; ties half.
        interval: of the area.
        confidence: of the interval.
        marked: number of marked encoders.
        clean: number of clean encoders.
    """

    area: float
    interval: tuple[float, float]
    confidence: float
    marked: int
    clean: int


def roc(
    marked_scores: Sequence[float], clean_scores: Sequence[float], *, confidence: float = 0.95
) -> Roc:
    """Return the ROC area of a score with an interval.

    The area is the Mann-Whitney statistic over the number of pairs. The interval holds all areas
    that lie within z standard errors of it, where the standard error is Hanley and McNeil's
    (1982) at *that* area (Newcombe, 2006, method 5): with few encoders it stays wide also at an
    area of 1, where Hanley and McNeil's, DeLong's and the bootstrap's collapse to a point.

    Args:
        marked_scores: (n1,) of marked encoders (or queries).
        clean_scores: (n2,) of clean ones.
        confidence: of the interval.

    Raises:
        ConfigError: one of the two is empty, a score is NaN, or the confidence is not in (0, 1).

    >>> roc([0.9, 0.8, 0.3], [0.1, 0.3]).area
    0.9166666666666666
    """
    from scipy.stats import norm, rankdata

    marked, clean = len(marked_scores), len(clean_scores)
    if not marked or not clean:
        raise ConfigError(
            f"an ROC area needs scores of both kinds; got {marked} marked and {clean} clean"
        )
    if any(math.isnan(value) for value in (*marked_scores, *clean_scores)):
        raise ConfigError("a score is NaN, so scores cannot be compared; look at the encoders")
    if not 0 < confidence < 1:
        raise ConfigError(f"the confidence of an interval lies in (0, 1); got {confidence}")
    ranks = rankdata([*marked_scores, *clean_scores])
    wins = float(ranks[:marked].sum()) - marked * (marked + 1) / 2
    area = wins / (marked * clean)
    interval = _interval(area, marked, clean, z=float(norm.ppf((1 + confidence) / 2)))
    return Roc(area, interval, confidence, marked, clean)


def hanley_mcneil(area: float, marked: int, clean: int) -> float:
    """Return the standard error of an ROC area (Hanley and McNeil, 1982, equation 1).

    ``[a (1 - a) + (n1 - 1)(q1 - a^2) + (n2 - 1)(q2 - a^2)] / (n1 n2)`` is its square, with
    ``q1 = a / (2 - a)`` and ``q2 = 2 a^2 / (1 + a)``.

    Args:
        area: a.
        marked: n1.
        clean: n2.
    """
    return _error(area, marked - 1, clean - 1, pairs=marked * clean)


def _error(area: float, first: float, second: float, *, pairs: int) -> float:
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    square = area * (1 - area) + first * (q1 - area**2) + second * (q2 - area**2)
    return math.sqrt(max(0.0, square) / pairs)


def _interval(area: float, marked: int, clean: int, *, z: float) -> tuple[float, float]:
    """Return the areas at which ``|area - a| = z se(a)``, by bisection.

    As in Newcombe's method 5 both (n1 - 1) and (n2 - 1) are replaced by their mean.
    """
    mean = (marked + clean) / 2 - 1

    def bound(end: float) -> float:
        inside, outside = area, end
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(area - middle) <= z * _error(middle, mean, mean, pairs=marked * clean):
                inside = middle
            else:
                outside = middle
        return inside

    return bound(0.0), bound(1.0)
