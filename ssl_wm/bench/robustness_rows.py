"""From cells to a result: rows with losses, the frontier and the control's false detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_wm.bench.frontier import Point, false_rate, frontier, paired_loss, winners
from ssl_wm.bench.robustness_plan import CONTROL, UNTOUCHED, Cell, RobustnessConfig
from ssl_wm.verification.settings import ReadConfig

READERS = ("linear", "knn")
Facts = dict[str, Any]


def summary(done: Mapping[Cell, Facts], *, config: RobustnessConfig) -> Facts:
    """Return the tables of a result from the facts of its cells so far.

    Returns:
        ``untouched`` (by encoder), ``rows`` (in the cells' order), ``frontier`` (those that beat
        the bar first), ``winners`` (their names), ``control``, ``again`` (what was read twice) and
        ``failed``.
    """
    before = {cell.encoder: facts for cell, facts in done.items() if cell.attempt == UNTOUCHED}
    rows = [
        make_row(facts, before[cell.encoder])
        for cell, facts in done.items()
        if cell.attempt != UNTOUCHED and "error" not in facts
    ]
    alpha = next(iter(before.values()))["verdict"]["alpha"]
    detected = {name: facts["verdict"]["p_value"] <= alpha for name, facts in before.items()}
    fronts = frontier(
        [point_of(row, config.judged_by) for row in rows if row["encoder"] != CONTROL],
        detected=detected, alpha=alpha, bar=config.bar,
    )  # fmt: skip
    return {
        "alpha": alpha, "bar": config.bar, "judged_by": config.judged_by,
        "untouched": {
            name: {**facts["utility"], **facts["verdict"]} for name, facts in before.items()
        },
        "winners": winners(fronts), "frontier": [asdict(front) for front in fronts],
        "control": control(done, alpha=alpha), "again": again(rows, config, alpha=alpha),
        "rows": rows,
        "failed": [
            {**facts["cell"], "error": facts["error"]}
            for facts in done.values()
            if "error" in facts
        ],
    }  # fmt: skip


def make_row(facts: Facts, before: Facts) -> Facts:
    """Return one row: the cell, its readings, and its losses against the untouched encoder.

    Losses are in points of accuracy, with a paired 95 % interval.
    """
    row = {**facts["cell"], **facts["verdict"], **facts["utility"]}
    for name in READERS:
        loss, interval = paired_loss(_hits(before, name), _hits(facts, name))
        row |= {f"{name}_loss": loss, f"{name}_loss_interval": list(interval)}
    return {**row, "seconds": facts["seconds"]}


def point_of(row: Facts, reader: str) -> Point:
    """Return a row as a point of the frontier, its loss that of ``reader``."""
    low, high = row[f"{reader}_loss_interval"]
    return Point(
        row["encoder"], row["attempt"], tuple(row["strengths"]), row[f"{reader}_loss"],
        row["p_value"], (low, high),
    )  # fmt: skip


def again(rows: Sequence[Facts], config: RobustnessConfig, *, alpha: float) -> Facts | None:
    """Return how many results were read twice, the control's left out; None where none may be."""
    if config.confirm is None:
        return None
    marked = [row for row in rows if row["encoder"] != CONTROL]
    twice = [row for row in marked if row["readings"] > 1]
    return {
        "by": [reading_words(config.verify.read), reading_words(config.confirm)],
        "results": len(twice), "of": len(marked),
        "detected": sum(row["p_value"] <= alpha for row in twice),
    }  # fmt: skip


def reading_words(read: ReadConfig) -> str:
    """Return what a reading rests on.

    >>> reading_words(ReadConfig(per_pair=8)), reading_words(ReadConfig(natural_only=True))
    ('8 composites a pair', 'natural images alone')
    """
    return "natural images alone" if read.natural_only else f"{read.per_pair} composites a pair"


def control(done: Mapping[Cell, Facts], *, alpha: float) -> Facts:
    """Return how often the control was detected: with the owner's key, and with fresh ones."""
    told = [facts for cell, facts in done.items() if cell.encoder == CONTROL]
    read = [facts for facts in told if "error" not in facts]
    found = [facts["cell"] for facts in read if facts["verdict"]["p_value"] <= alpha]
    own = asdict(false_rate(len(found), len(read), alpha=alpha)) if read else None
    result: Facts = {"own": own, "detected": found, "fresh": None}
    fresh = [facts["fresh"] for facts in read if "fresh" in facts]
    if fresh:
        count, total = (sum(each[name] for each in fresh) for name in ("detected", "keys"))
        result["fresh"] = asdict(false_rate(count, total, alpha=alpha))
    return result


def _hits(facts: Facts, reader: str) -> Sequence[bool]:
    """Return which test images ``reader`` gets right; trailing places are padding, never hit."""
    raw = np.frombuffer(bytes.fromhex(facts["hits"][reader]), dtype=np.uint8)
    hits: list[bool] = np.unpackbits(raw).astype(bool).tolist()
    return hits[: facts["tested"]]
