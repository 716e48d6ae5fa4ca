"""What the cells of the detection benchmark say together: marked encoders against clean ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ssl_wm.detection.detect import DETECTORS, judge, roc
from ssl_wm.detection.given import Detection
from ssl_wm.verification.statistics import clopper_pearson

Row = dict[str, Any]


def compare(
    detector: str, *, queries_of: str = "", marked: Mapping[str, Detection],
    clean: Mapping[str, Detection],
) -> Row:  # fmt: skip
    """Return how one detector tells marked encoders from clean ones.

    Args:
        detector: a name in ``DETECTORS``.
        queries_of: whose composites were the queries, if queries are what is judged.
        marked: detections by encoder.
        clean: detections by encoder; none for a detector that asks no encoder.

    Returns:
        ``marked`` and ``clean``: the scores behind ``roc`` (area, exact interval of Newcombe's
        kind); ``judged``: for each marked encoder its score, conformal p among the clean ones
        and the least p; ``false_alarms`` of the fixed threshold on clean encoders with an exact
        95 % interval. What cannot be told is None.
    """
    entry = DETECTORS[detector]
    of_marked, of_clean = comparable(detector, marked, clean)
    row: Row = {
        "detector": detector, "of": entry.of, "access": entry.access, "queries_of": queries_of,
        "threshold": entry.threshold, "marked": of_marked, "clean": of_clean,
        "roc": None, "judged": {}, "false_alarms": None,
    }  # fmt: skip
    if not of_clean:
        return row
    if of_marked:
        row["roc"] = asdict(roc(list(of_marked.values()), list(of_clean.values())))
    for name, detection in marked.items():
        told = judge(detection, list(clean.values()), detector=detector)
        row["judged"][name] = {
            "score": told.detection.score, "p_value": told.p_value, "least_p": told.least_p,
            "beyond": told.beyond,
        }  # fmt: skip
    if entry.threshold is not None:
        beyond = sum(score > entry.threshold for score in of_clean.values())
        row["false_alarms"] = {
            "count": beyond, "clean": len(of_clean), "share": beyond / len(of_clean),
            "interval": clopper_pearson(beyond, len(of_clean)),
        }  # fmt: skip
    return row


def comparable(
    detector: str, marked: Mapping[str, Detection], clean: Mapping[str, Detection]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return scores of marked and of clean encoders that can be ranked together.

    Where a score compares an encoder with the others (``prms``), a clean one is compared with the
    n - 1 other clean ones. A marked one is too, leaving out each clean one in turn, and the
    mean of these n scores counts: so neither kind has more encoders behind its reference.
    """
    rescore = DETECTORS[detector].rescore
    if rescore is None:
        return (
            {name: each.score for name, each in marked.items()},
            {name: each.score for name, each in clean.items()},
        )
    without = {name: [clean[other] for other in clean if other != name] for name in clean}
    scores = {name: rescore(clean[name], others).score for name, others in without.items()}
    means = {}
    for name, each in marked.items():
        found = [rescore(each, others).score for others in without.values()]
        means[name] = sum(found) / len(found) if found else each.score
    return means, scores


def queries_told(detections: Mapping[str, Detection]) -> Row:
    """Return, for each encoder, how well the owner's queries are told from natural images."""
    names = ("refused_queries", "refused_natural", "false_alarms", "p_queries_are_natural",
             "queries", "areas")  # fmt: skip
    return {
        encoder: {
            "area": each.score,
            **{name: each.details[name] for name in names if name in each.details},
        }
        for encoder, each in detections.items()
    }


def missing(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for every comparison whose numbers allow no strong statement."""
    told = []
    for row in rows:
        clean = len(row["clean"])
        if row["access"] != "pixels" and 0 < clean < 19:
            told.append(
                f"{row['detector']}: {clean} clean encoders allow no p below {1 / (1 + clean):.2g}"
            )
        elif not clean and row["access"] != "pixels":
            told.append(f"{row['detector']}: no clean encoder, so nothing is compared")
    return told
