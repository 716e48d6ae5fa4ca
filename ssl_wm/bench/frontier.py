"""The frontier: what it costs a thief, in utility, until a mark is no longer detected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ssl_wm.verification.statistics import clopper_pearson

BEATS, HOLDS, KEPT, UNMARKED = "beats", "holds", "kept", "unmarked"
OUTCOMES = {
    BEATS: "lost below the bar",
    HOLDS: "lasts to the bar",
    KEPT: "never lost, the bar never reached",
    UNMARKED: "not detected before the attempt",
}


@dataclass(frozen=True)
class Point:
    """One measured result of an attempt.

    Attributes:
        encoder: name.
        attempt: name or stack.
        strengths: one for each part.
        loss: of utility, in points of accuracy; negative where the attempt raised it.
        p_value: of the owner's key.
        interval: 95 % interval of the loss, where it is known.
    """

    encoder: str
    attempt: str
    strengths: tuple[float, ...]
    loss: float
    p_value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Front:
    """What one attempt achieves on one encoder.

    Attributes:
        encoder: name.
        attempt: name or stack.
        outcome: "beats": detection is lost for less than the bar; "holds": for the bar or
            more, or never although utility fell by as much; "kept": never, and no strength cost
            as much as the bar; "unmarked": the encoder was not detected before either.
        survives: whether the mark is detected until the bar's loss; None where unmarked.
        close: whether it survives, but the interval of the cheapest loss begins below the bar.
        cheapest: the result that loses detection at the least loss; None where none does.
        largest_loss: of all results.
        lost: results that are not detected.
        results: number of results.
    """

    encoder: str
    attempt: str
    outcome: str
    survives: bool | None
    close: bool
    cheapest: Point | None
    largest_loss: float
    lost: int
    results: int


def frontier(
    points: Iterable[Point], *, detected: Mapping[str, bool], alpha: float, bar: float
) -> list[Front]:
    """Return one entry for each encoder and attempt, those that beat the bar first.

    Every result counts by itself, in whatever order losses and p-values come: a thief may stop
    at any strength and with any seed.

    Args:
        points: all results.
        detected: whether each encoder was detected before any attempt.
        alpha: a mark is detected at ``p_value <= alpha``.
        bar: loss in points that must be paid.
    """
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.encoder, point.attempt), []).append(point)
    fronts = [
        _front(group, marked=detected[encoder], alpha=alpha, bar=bar)
        for (encoder, _), group in groups.items()
    ]
    order = list(OUTCOMES)
    return sorted(fronts, key=lambda front: (order.index(front.outcome), _cost(front)))


def _front(points: Sequence[Point], *, marked: bool, alpha: float, bar: float) -> Front:
    lost = [point for point in points if point.p_value > alpha]
    cheapest = min(lost, key=lambda point: point.loss, default=None)
    largest = max(point.loss for point in points)
    if not marked:
        outcome = UNMARKED
    elif cheapest is not None and cheapest.loss < bar:
        outcome = BEATS
    else:
        outcome = HOLDS if largest >= bar else KEPT
    near = [point.interval[0] < bar for point in lost if point.interval is not None]
    return Front(
        encoder=points[0].encoder,
        attempt=points[0].attempt,
        outcome=outcome,
        survives=None if outcome == UNMARKED else outcome != BEATS,
        close=outcome == HOLDS and any(near),
        cheapest=cheapest,
        largest_loss=largest,
        lost=len(lost),
        results=len(points),
    )


def _cost(front: Front) -> float:
    return math.inf if front.cheapest is None else front.cheapest.loss


def winners(fronts: Iterable[Front]) -> list[str]:
    """Return the attempts that beat the bar on any encoder, the cheapest first."""
    return list(dict.fromkeys(front.attempt for front in fronts if front.outcome == BEATS))


@dataclass(frozen=True)
class FalseRate:
    """How often unmarked encoders were detected.

    Attributes:
        count: false detections.
        total: decisions.
        interval: exact interval of the rate (Clopper and Pearson, 1934).
        alpha_is: where alpha lies: "inside" the interval, "above" it (the rule is stricter than
            it promises) or "below" it (it breaks its promise).
    """

    count: int
    total: int
    interval: tuple[float, float]
    alpha_is: str


def false_rate(count: int, total: int, *, alpha: float, confidence: float = 0.99) -> FalseRate:
    """Return the rate of ``count`` false detections among ``total`` decisions.

    >>> false_rate(2, 150, alpha=0.01).alpha_is, false_rate(20, 150, alpha=0.01).alpha_is
    ('inside', 'below')
    """
    low, high = clopper_pearson(count, total, confidence=confidence)
    place = "below" if alpha < low else "above" if alpha > high else "inside"
    return FalseRate(count, total, (low, high), place)


def paired_loss(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, tuple[float, float]]:
    """Return the loss of accuracy in points and its 95 % interval, on the same test images.

    The interval is normal: mean +- 1.96 s / sqrt(n) of the differences, each -1, 0 or 1.

    >>> paired_loss([True, True, True, False], [True, False, False, False])[0]
    50.0
    """
    differences = [int(a) - int(b) for a, b in zip(before, after, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / max(1, count - 1)
    half = 1.96 * math.sqrt(variance / count)
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))
