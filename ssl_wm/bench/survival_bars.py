"""Which bars hold, and the cells that fail them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_wm.bench.survival_plan import CLEAN, UNMARKED, CopyBar, SurvivalCell, SurvivalConfig
from ssl_wm.bench.survival_thieves import IN_TASK, Thief

Facts = dict[str, Any]
Done = Mapping[SurvivalCell, Facts]
Losses = Mapping[SurvivalCell, Mapping[str, float]]


@dataclass(frozen=True)
class Bar:
    """What must hold for some cells of one embedder.

    Attributes:
        name: of what is limited.
        limit: of the value.
        unit: of value and limit: "points", "share", "p" or "count".
        cells: those that it is about, done or not.
        value: what is limited of a measured cell; None where it is not known.
        least: whether ``limit`` is the least that will do, not the most.
        share: of the cells that must be within the limit.
    """

    name: str
    limit: float
    unit: str
    cells: Sequence[SurvivalCell]
    value: Callable[[SurvivalCell], float | None]
    least: bool = False
    share: float = 1.0

    def holds(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return value >= self.limit if self.least else value <= self.limit


def judge_bars(
    plan: Sequence[SurvivalCell], done: Done, *, losses: Losses, config: SurvivalConfig
) -> list[Facts]:
    """Return every bar of every embedder with the cells that fail it.

    A bar holds where as many cells as it asks for are within the limit; ``holds`` is None while
    cells that are not measured yet, or have nothing to be compared with, could decide it either
    way. A cell that failed counts as one that is not within the limit.
    """
    told = []
    for name in (CLEAN, *config.embedders):
        cells = [cell for cell in plan if cell.embedder == name]
        bars = _bars(name, cells, done, losses, config=config)
        told += [{"embedder": name, **_judge(bar, done)} for bar in bars if bar.cells]
    return told


def winners_of(bars: Sequence[Facts]) -> list[str]:
    """Return the marked embedders that have a bar on p and of which all bars hold."""
    by_name: dict[str, list[Facts]] = {}
    for bar in bars:
        by_name.setdefault(bar["embedder"], []).append(bar)
    return [
        name
        for name, each in by_name.items()
        if all(bar["holds"] for bar in each) and any(bar["bar"].startswith("p, ") for bar in each)
    ]


def bar_of(thief: Thief, bars: Sequence[CopyBar]) -> CopyBar | None:
    """Return the first bar on p that is about this thief's copies, or None.

    A thief whose budget is not known yet (the whole pool) is held to none.
    """
    budget = thief.budget or 0
    return next((bar for bar in bars if bar.pool == thief.kind and bar.least <= budget), None)


def _bars(
    name: str, cells: Sequence[SurvivalCell], done: Done, losses: Losses, *, config: SurvivalConfig
) -> Iterator[Bar]:
    def verdict(what: str) -> Callable[[SurvivalCell], float | None]:
        return lambda cell: (done[cell].get("verdict") or {}).get(what)

    def loss(reader: str) -> Callable[[SurvivalCell], float | None]:
        return lambda cell: (losses.get(cell) or {}).get(reader)

    bars = config.bars
    if name == CLEAN or config.embedders[name].watermark.method == UNMARKED:
        judged = [cell for cell in cells if cell.kind != "clean"]
        yield Bar("not detected", 0, "count", judged, lambda cell: _found(done[cell]))
        return
    victims = [cell for cell in cells if cell.thief is None]
    for reader, word in (("linear", "linear probe"), ("knn", "kNN")):
        yield Bar(f"loss of utility, {word}", bars.utility_points, "points", victims, loss(reader))
    kinds = {cell: bar_of(cell.thief, bars.copies) for cell in cells if cell.thief is not None}
    for each in bars.copies:
        own = [cell for cell, kind in kinds.items() if kind == each]
        yield Bar(f"p, {each.name}", each.p, "p", own, verdict("p_value"), share=each.share)
    copies = [cell for cell in cells if cell.thief is not None and cell.thief.kind == IN_TASK]
    yield Bar("WSR of in-task copies", bars.wsr, "share", copies, verdict("wsr"), least=True)
    yield Bar("WFPR", bars.wfpr, "share", [*victims, *copies], verdict("wfpr"))


def _found(facts: Facts) -> float | None:
    verdict = facts.get("verdict")
    return None if verdict is None else float(verdict["decision"] == "detected")


def _judge(bar: Bar, done: Done) -> Facts:
    held, fails, waiting = 0, [], []
    for cell in bar.cells:
        if cell not in done:
            waiting.append(cell.name)
        elif "error" in done[cell]:
            fails.append({"cell": cell.name, "value": None, "error": done[cell]["error"]})
        elif (value := bar.value(cell)) is None:
            waiting.append(cell.name)
        elif bar.holds(value):
            held += 1
        else:
            fails.append({"cell": cell.name, "value": value})
    needed = math.ceil(bar.share * len(bar.cells) - 1e-9)
    holds = True if held >= needed else None if held + len(waiting) >= needed else False
    return {
        "bar": bar.name, "limit": bar.limit, "unit": bar.unit, "least": bar.least,
        "share": bar.share, "held": held, "of": len(bar.cells), "holds": holds, "fails": fails,
        "waiting": waiting,
    }  # fmt: skip
