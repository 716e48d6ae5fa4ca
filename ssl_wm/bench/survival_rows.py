"""From measured cells to a result: rows with their spread over runs, losses, and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ssl_wm.bench.survival_bars import judge_bars, winners_of
from ssl_wm.bench.survival_plan import CLEAN, SurvivalCell, SurvivalConfig
from ssl_wm.bench.survival_thieves import Thief

READERS = ("linear", "knn")
Facts = dict[str, Any]
Done = Mapping[SurvivalCell, Facts]


def summary(plan: Sequence[SurvivalCell], done: Done, *, config: SurvivalConfig) -> Facts:
    """Return the tables of a result from the facts of the cells that are done.

    Args:
        plan: all cells, done or not.
        done: what ``cell.json`` says of each that is; ``error`` where it failed.
        config: the benchmark.
    """
    bars = judge_bars(plan, done, losses=losses_of(done, config=config), config=config)
    return {
        "runs": config.runs, "alpha": config.verify.alpha,
        "shared_clean": config.clean.encoder,
        "cells": len(plan), "pending": sum(cell not in done for cell in plan),
        "winners": winners_of(bars), "bars": bars,
        "rows": make_rows(plan, done, config=config),
        "failed": [
            {"cell": cell.name, "error": done[cell]["error"]}
            for cell in plan
            if cell in done and "error" in done[cell]
        ],
    }  # fmt: skip


def compared_with(cell: SurvivalCell, *, config: SurvivalConfig) -> SurvivalCell | None:
    """Return the encoder of the same run whose utility a cell's is compared with.

    A victim is compared with the unmarked fine-tuning, a copy with what the same thief stole
    from the clean encoder; the clean encoder, the control's copies and the unmarked
    fine-tuning with nothing.
    """
    if cell.embedder == CLEAN:
        return None
    if cell.thief is not None:
        return SurvivalCell(cell.run, CLEAN, cell.thief)
    name = config.reference(cell.embedder)
    return None if name is None else SurvivalCell(cell.run, name)


def losses_of(done: Done, *, config: SurvivalConfig) -> dict[SurvivalCell, dict[str, float]]:
    """Return each cell's loss of utility in points of accuracy, by reader.

    Cells that have nothing to be compared with, or not yet, are left out.
    """
    found = {}
    for cell, facts in done.items():
        other = compared_with(cell, config=config)
        before = done.get(other) if other is not None else None
        if before is not None and "error" not in facts and "error" not in before:
            found[cell] = {
                name: round(100 * (before["utility"][name] - facts["utility"][name]), 6)
                for name in READERS
            }
    return found


def spread(values: Mapping[int, float | None], *, middle: str = "mean") -> Facts | None:
    """Return mean (or median), least and largest of a value over runs; None without any.

    Args:
        values: by run; None where a run has none.
        middle: "mean" or "median".

    >>> spread({0: 1.0, 1: 4.0})
    {'value': 2.5, 'low': 1.0, 'high': 4.0, 'runs': {0: 1.0, 1: 4.0}}
    """
    known = {run: value for run, value in values.items() if value is not None}
    if not known:
        return None
    whole = list(known.values())
    value = median(whole) if middle == "median" else fmean(whole)
    return {"value": value, "low": min(whole), "high": max(whole), "runs": known}


def make_rows(
    plan: Sequence[SurvivalCell], done: Done, *, config: SurvivalConfig
) -> list[Facts]:  # fmt: skip
    """Return one row for each embedder and thief, all runs together, the control first."""
    groups: dict[tuple[str, Thief | None], list[SurvivalCell]] = {}
    for name in (CLEAN, *config.embedders):
        for cell in plan:
            if cell.embedder == name:
                groups.setdefault((name, cell.thief), []).append(cell)
    losses = losses_of(done, config=config)
    return [_row(cells, done, losses, config=config) for cells in groups.values()]


def _row(
    cells: Sequence[SurvivalCell], done: Done, losses: Mapping[SurvivalCell, dict[str, float]], *,
    config: SurvivalConfig,
) -> Facts:  # fmt: skip
    first = cells[0]
    facts = {cell.run: done[cell] for cell in cells if cell in done}
    good = {run: each for run, each in facts.items() if "error" not in each}
    other = compared_with(first, config=config)
    row: Facts = {
        "embedder": first.embedder, "kind": first.kind,
        "method": None if first.embedder == CLEAN else config.embedders[
            first.embedder
        ].watermark.method,
        **{name: getattr(first.thief, name, None) for name in (
            "attack", "shape", "warm", "budget", "pool"
        )},
        "planned": len(cells), "measured": len(good),
        "errors": {run: each["error"] for run, each in facts.items() if "error" in each},
        "against": None if other is None else other.embedder,
        "equally_long": _equally_long(first, other, config=config),
        "arch": next((each["arch"] for each in good.values()), None),
    }  # fmt: skip
    for name in READERS:
        row[name] = spread({run: each["utility"][name] for run, each in good.items()})
        lost = {cell.run: losses[cell][name] for cell in cells if cell in losses}
        row[f"{name}_loss"] = spread(dict(lost))
    for name in ("fidelity", "agreement"):
        row[name] = spread({run: each.get(name) for run, each in good.items()})
    near = {run: each.get("compatibility") or {} for run, each in good.items()}
    for part in ("all", "outside", "inside"):
        row[f"compatibility_{part}"] = spread({run: each.get(part) for run, each in near.items()})
    row["seconds"] = spread({run: each["seconds"]["make"] for run, each in good.items()})
    return row | _marks({run: each["verdict"] for run, each in good.items() if "verdict" in each})


def _equally_long(
    cell: SurvivalCell, other: SurvivalCell | None, *, config: SurvivalConfig
) -> bool | None:
    """Return whether a victim is compared with a fine-tuning by the same training loop."""
    if cell.thief is not None or other is None:
        return None
    mine, theirs = (config.embedders[each.embedder].watermark.fit for each in (cell, other))
    return mine == theirs


def _marks(verdicts: Mapping[int, Mapping[str, Any]]) -> Facts:
    """Return p (its median), rates, contrasts and ranks from the verdicts by run."""
    subs = {run: verdict["sub_keys"] for run, verdict in verdicts.items()}
    contrasts = {run: [sub["statistic"] for sub in each] for run, each in subs.items()}
    told: Facts = {
        "p_value": spread(
            {run: verdict["p_value"] for run, verdict in verdicts.items()}, middle="median"
        ),
        **{
            name: spread({run: verdict[name] for run, verdict in verdicts.items()})
            for name in ("wsr", "wfpr")
        },
        "contrast": spread({run: fmean(each) for run, each in contrasts.items()}),
        "contrasts": contrasts,
        "ranks": {run: [sub["rank"] for sub in each] for run, each in subs.items()},
        "sub_p_values": {run: [sub["p_value"] for sub in each] for run, each in subs.items()},
        "decoys": {run: [sub["decoys"] for sub in each] for run, each in subs.items()},
        "readers": {run: verdict["reader"] for run, verdict in verdicts.items()},
        "tests": {
            run: {test["name"]: test["p_value"] for test in verdict["tests"]}
            for run, verdict in verdicts.items()
        },
    }
    found = sum(verdict["decision"] == "detected" for verdict in verdicts.values())
    return told | {"detected": [found, len(verdicts)] if verdicts else None}
