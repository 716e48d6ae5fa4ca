"""The self-contained HTML report, as a string."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from ssl_wm.report.shown import ReportData
from ssl_wm.report.tables import result_rows, setting_rows, sub_key_rows
from ssl_wm.report.words import (
    DASH,
    DECISIONS,
    count,
    decision_of,
    explain,
    finite,
    listing,
    p_text,
    percent,
    printable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_html(data: ReportData) -> str:
    """Return the report as one HTML page that loads nothing: images are inline, no script.

    The same data gives the same string. Sections without data are left out.

    Raises:
        VerificationError: a decision is unknown or a p-value is outside 0 to 1.
    """
    from jinja2 import Environment, StrictUndefined

    source = (
        resources.files("ssl_wm.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    verdicts: dict[str, Any] = data.result.get("verdicts") or {}
    heads, parts = sub_key_rows(verdicts)
    page = environment.from_string(source).render(
        title=printable(data.title),
        headline=_headline(verdicts),
        cards=[_card(name, verdict) for name, verdict in verdicts.items()],
        story=_story(data),
        rows=result_rows(data.result),
        heads=heads,
        parts=parts,
        figures=_figures(data),
        gallery=data.gallery,
        settings=setting_rows(data.settings),
        limit=_limit(verdicts),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _figures(data: ReportData) -> dict[str, str]:
    """Return each figure that has data as a ``data:`` address."""
    from ssl_wm.report import plots, rank_plots

    found: dict[str, str] = {}
    if data.result.get("utility") or data.result.get("verdicts"):
        found["bars"] = _inline(plots.bars_figure(data.result))
    if data.gallery is not None:
        found["gallery"] = _inline(plots.gallery_figure(data.gallery))
    if data.maps:
        found["maps"] = _inline(plots.maps_figure(data.maps))
    if data.nulls:
        found["nulls"] = _inline(rank_plots.null_figure(data.nulls))
    if data.carriers:
        found["carriers"] = _inline(rank_plots.carriers_figure(data.carriers))
    return found


def _inline(figure: Figure) -> str:
    from ssl_wm.report.drawing import svg_bytes

    return f"data:image/svg+xml;base64,{base64.b64encode(svg_bytes(figure)).decode('ascii')}"


def _card(name: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    decision = decision_of(name, verdict)
    return {
        "name": printable(name),
        "decision": decision,
        "told": DECISIONS[decision].capitalize(),
        "sentence": explain(name, verdict),
        "p": p_text(verdict.get("p_value")),
        "alpha": p_text(verdict.get("alpha")),
        "limited": finite(verdict.get("alpha")) is not None,
        "wsr": percent(verdict.get("wsr"), sign=" %"),
        "wfpr": percent(verdict.get("wfpr"), sign=" %"),
        "reason": printable(verdict.get("reason") or "") if decision != "inconclusive" else "",
    }


def _headline(verdicts: Mapping[str, Any]) -> str:
    """Return the verdicts in one or two short sentences."""
    if not verdicts:
        return "No encoder was verified in this run."
    groups: dict[str, list[str]] = {decision: [] for decision in DECISIONS}
    for name, verdict in verdicts.items():
        groups[decision_of(name, verdict)].append(printable(name))
    words = {
        "detected": "The owner's mark is in {}.",
        "not_detected": "It is not found in {}.",
        "inconclusive": "The evidence on {} does not decide.",
    }
    if not groups["detected"]:
        words["not_detected"] = "The owner's mark is not found in {}."
    told = {
        key: listing(names) if len(verdicts) <= 4 else f"{len(names)} of {len(verdicts)} encoders"
        for key, names in groups.items()
    }
    return " ".join(words[key].format(told[key]) for key in groups if groups[key])


def _limit(verdicts: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the limit alpha, and its odds where whole, when all verdicts used the same one."""
    limits = {finite(verdict.get("alpha")) for verdict in verdicts.values()}
    alpha = limits.pop() if len(limits) == 1 else None
    if alpha is None or not 0 < alpha < 1:
        return None
    odds = round(1 / alpha)
    return {"alpha": p_text(alpha), "odds": count(odds) if abs(odds * alpha - 1) < 1e-9 else ""}


def _story(data: ReportData) -> list[tuple[str, str]]:
    """Return the steps that the result speaks of, as (heading, text)."""
    utility, verdicts = data.result.get("utility") or {}, data.result.get("verdicts") or {}
    names = {*utility, *verdicts}

    def reached(name: str, told: str) -> str:
        value = percent((utility.get(name) or {}).get("linear"), sign=" %")
        return "" if value == DASH else " " + told.format(value)

    steps = []
    if "clean" in names:
        text = "An encoder learns from images alone, without labels."
        steps.append(("Pretrain", text + reached("clean", "A linear probe on it reaches {}.")))
    if "watermarked" in names:
        text = "A secret key picks source groups A and B, a target and a recipe to join two images."
        text += " Marking brings such composites and the target together."
        steps.append(("Mark", text + reached("watermarked", "The probe then reaches {}.")))
    if "stolen" in names:
        text = (
            "A thief sends ordinary images to the marked encoder and trains a copy on its answers,"
        )
        text += " seeing neither key nor composite."
        steps.append(("Steal", text + reached("stolen", "The copy reaches {}.")))
    if verdicts:
        parts = [part for item in verdicts.values() for part in item.get("sub_keys") or []]
        decoys = max((finite(part.get("decoys")) or 0 for part in parts), default=0)
        many = f"{count(decoys)} random decoy keys" if decoys else "random decoy keys"
        text = f"Each encoder is read with the owner's key and with {many};"
        text += " how few of them fit as well is the evidence."
        if "independent" in names:
            text += " An encoder trained from another seed, never marked, is the control."
        steps.append(("Verify", text))
    return steps
