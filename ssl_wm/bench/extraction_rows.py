"""From measured cells to the rows of the table: seeds together, each attack beside cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ssl_wm.bench.agreement import MEASURES, SEEDS, compare, estimate, stacked, t_interval
from ssl_wm.bench.extraction_plan import ExtractionCell, Point
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.verification.statistics import clopper_pearson

PLAIN = "cosine"
POOLED = "exact over composites, sub-keys pooled"


@dataclass(frozen=True)
class Measured:
    """A cell with what was measured.

    Attributes:
        cell: which theft.
        facts: what its ``cell.json`` says.
        images: (M,) of each measure; None where the cell failed.
    """

    cell: ExtractionCell
    facts: Mapping[str, Any]
    images: dict[str, Tensor] | None


def make_rows(measured: Sequence[Measured], *, price: float | None) -> list[dict[str, Any]]:
    """Return one JSON-ready row for each attack, budget, surrogate and pool.

    Args:
        measured: the cells, in the order of the table.
        price: of 1,000 images.
    """
    points: dict[Point, list[Measured]] = {}
    for each in measured:
        points.setdefault(each.cell.point, []).append(each)
    return [_row(point, found, points, price=price) for point, found in points.items()]


def _row(
    point: Point,
    found: Sequence[Measured],
    points: Mapping[Point, Sequence[Measured]],
    *,
    price: float | None,
) -> dict[str, Any]:
    attack, budget, arch, pool = point
    good = [each for each in found if each.images is not None]
    status = "failed" if not good else "measured" if len(good) == len(found) else "partly"
    row: dict[str, Any] = {
        "attack": attack, "budget": budget, "arch": arch, "pool": pool, "status": status,
        "seeds": [each.cell.seed for each in good],
        "errors": {each.cell.seed: each.facts["error"] for each in found if each.images is None},
        "cells": [each.cell.name for each in found], "relational": ATTACKS[attack].relational,
        **dict.fromkeys((*MEASURES, "wsr", "wfpr", "p_value", "detected", "calls", "cost")),
        "against_cosine": None, "below": [],
    }  # fmt: skip
    if not good:
        return row
    per_seed = [each.images for each in good if each.images is not None]
    row.update({name: estimate(name, stacked(per_seed, name)) for name in MEASURES})
    verdicts = [each.facts["verdict"] for each in good if each.facts.get("verdict")]
    if verdicts:
        row.update(marks(verdicts))
    calls = [each.facts["calls"] for each in good]
    row["calls"] = {
        name: float(np.mean([call[name] for call in calls]))
        for name in ("unique", "repeated", "billed")
    }
    row["cost"] = None if price is None else round(row["calls"]["billed"] * price / 1000, 6)
    others = points.get((PLAIN, budget, arch, pool), [])
    row["against_cosine"] = _against(good, others) if attack != PLAIN else None
    row["below"] = [
        name for name, told in (row["against_cosine"] or {}).items() if told["below"]
    ]  # fmt: skip
    return row


def _against(good: Sequence[Measured], others: Sequence[Measured]) -> dict[str, Any] | None:
    """Return the comparison with plain cosine on the seeds that both have; None without any."""
    known = {each.cell.seed: each.images for each in others}
    pairs = [
        (each.images, plain)
        for each in good
        if each.images is not None and (plain := known.get(each.cell.seed)) is not None
    ]
    if not pairs:
        return None
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {name: compare(stacked(mine, name), stacked(theirs, name)) for name in MEASURES}


def marks(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return WSR, WFPR, p-value and the number of detections of one cell's verdicts, by seed.

    The interval of a rate is Student's t over seeds; of one seed it is exact (Clopper and
    Pearson) over composites with the sub-keys pooled, which is too wide rather than too narrow
    where their rates differ. The p-value is the median; its interval is the seeds' range.
    """
    told: dict[str, Any] = {}
    for name in ("wsr", "wfpr"):
        values = [float(verdict[name]) for verdict in verdicts]
        if len(values) > 1:
            interval, how = t_interval(values), SEEDS
        else:
            interval, how = clopper_pearson(*verdicts[0][f"{name}_hits"]), POOLED
        told[name] = {
            "value": float(np.mean(values)), "interval": list(interval), "how": how,
            "seeds": values,
        }  # fmt: skip
    p_values = [float(verdict["p_value"]) for verdict in verdicts]
    several = len(p_values) > 1
    told["p_value"] = {
        "value": float(np.median(p_values)),
        "interval": [min(p_values), max(p_values)] if several else None,
        "how": "median and range over seeds" if several else "one seed",
        "seeds": p_values,
    }
    detected = sum(verdict["decision"] == "detected" for verdict in verdicts)
    told["detected"] = [detected, len(verdicts)]
    return told
