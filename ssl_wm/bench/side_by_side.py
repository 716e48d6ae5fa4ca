"""Measure two ways to do the same work, in turns, and say how they compare.

Both sides run once unmeasured, then ``repeats`` times each. The side that begins changes from one
repeat to the next, so that a machine that slows down slowly favours neither. The ratio is taken
within each repeat; what is reported is its median and its range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from ssl_wm.errors import ConfigError

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """What one run of a side took.

    Attributes:
        seconds: measured time.
        items: units of work in it (images, queries, fits).
    """

    seconds: float
    items: float

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds


@dataclass(frozen=True)
class Side:
    """One way to do the work: ``run(clock)`` does it once and says what it took."""

    name: str
    run: Callable[[Clock], Timing]


@dataclass(frozen=True)
class Case:
    """Two sides of one question.

    Attributes:
        name: what is measured.
        unit: what the items are, in the plural.
        ours: the first side; the ratio is ours to theirs.
        theirs: the second side.
        of: "rate" compares items per second, "time" compares seconds per item.
        bar: the ratio that is asked for; at least it for rates, at most it for times.
        settings: what the sides were run with.
        checks: called once after the measurements. Where it returns ``same``, that says whether
            both sides came to the same result; without it the bar is not met.
    """

    name: str
    unit: str
    ours: Side
    theirs: Side
    bar: float
    of: Literal["rate", "time"] = "rate"
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: Callable[[], Mapping[str, Any]] = dict


def timed(work: Callable[[], object], *, items: float, wait: Callable[[], None]) -> Side:
    """Return an unnamed side that runs ``work`` between two looks at the clock.

    Args:
        work: done whole in each run.
        items: units of work in it.
        wait: returns when the device has finished.
    """

    def run(clock: Clock) -> Timing:
        wait()
        began = clock()
        work()
        wait()
        return Timing(clock() - began, items)

    return Side("", run)


def measure(case: Case, *, repeats: int, clock: Clock, warm: bool = True) -> dict[str, Any]:
    """Return all timings of a case and the spread of its ratio.

    Args:
        case: what is measured.
        repeats: measured runs of each side.
        clock: seconds, from any origin.
        warm: run each side once before, unmeasured.

    Raises:
        ConfigError: fewer than one repeat.
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1; got {repeats}")
    sides = (case.ours, case.theirs)
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    if warm:
        for side in sides:
            side.run(clock)
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            timings[index].append(sides[index].run(clock))
    ratios = [ratio(a, b, of=case.of) for a, b in zip(*timings, strict=True)]
    middle = median(ratios)
    reached = middle >= case.bar if case.of == "rate" else middle <= case.bar
    checks = dict(case.checks())
    told = {
        side.name: {
            "seconds": [timing.seconds for timing in each],
            "items": [timing.items for timing in each],
            "rate": spread([timing.rate for timing in each]),
        }
        for side, each in zip(sides, timings, strict=True)
    }
    return {
        "unit": case.unit,
        "compared": case.of,
        "sides": told,
        "ratio": {**spread(ratios), "each": ratios},
        "bar": case.bar,
        "met": reached and bool(checks.get("same", True)),
        "settings": dict(case.settings),
        "checks": checks,
    }


def ratio(ours: Timing, theirs: Timing, *, of: Literal["rate", "time"]) -> float:
    """Return ours to theirs, as rates or as seconds per item.

    >>> ratio(Timing(2.0, 100), Timing(4.0, 50), of="rate")
    4.0
    >>> ratio(Timing(2.0, 100), Timing(4.0, 50), of="time")
    0.25
    """
    return ours.rate / theirs.rate if of == "rate" else theirs.rate / ours.rate


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range of ``values``.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.0, 'high': 3.0}
    """
    return {"median": median(values), "low": min(values), "high": max(values)}
