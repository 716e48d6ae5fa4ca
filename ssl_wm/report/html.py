"""The self-contained HTML report: what it shows (``ReportData``), and the page as a string."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch

from ssl_wm.errors import DataError
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
    from torch import Tensor

KINDS = ("source A", "source B", "target", "composite", "other")


@dataclass(frozen=True)
class Gallery:
    """A few composites next to their sources.

    Attributes:
        sources_a: uint8 ``(n, 3, H, W)``, images of group A.
        sources_b: uint8 ``(n, 3, H, W)``, images of group B.
        composites: uint8 ``(n, 3, H, W)``, made of both by the key's mixer.
        others: name of another mixer -> its composites of the same pairs, uint8 ``(n, 3, H, W)``.
        mixer: the key's mixer in words.
        group_a: name of group A.
        group_b: name of group B.
        target: name of the target group.

    Raises:
        DataError: a tensor has another type or shape than ``composites``, or there is no image.
    """

    sources_a: Tensor
    sources_b: Tensor
    composites: Tensor
    others: dict[str, Tensor]
    mixer: str
    group_a: str
    group_b: str
    target: str

    def __post_init__(self) -> None:
        shape = tuple(self.composites.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise DataError(
                f"gallery composites: expected (n, 3, H, W) with n, H, W >= 1, got {shape}; "
                "pass some RGB images or no gallery"
            )
        named = {"sources_a": self.sources_a, "sources_b": self.sources_b} | self.others
        for name, images in {"composites": self.composites, **named}.items():
            if tuple(images.shape) != shape or images.dtype != torch.uint8:
                raise DataError(
                    f"gallery {printable(name)}: expected uint8 {shape} like the composites, got "
                    f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}; convert it"
                )


@dataclass(frozen=True)
class FeatureMap:
    """One encoder's feature space in two dimensions.

    Attributes:
        points: float ``(N, 2)``.
        kind: for each point "source A", "source B", "target", "composite" or "other".

    Raises:
        DataError: the shapes disagree or a kind is unknown.
    """

    points: Tensor
    kind: tuple[str, ...]

    def __post_init__(self) -> None:
        if tuple(self.points.shape) != (len(self.kind), 2):
            raise DataError(
                f"feature map: expected points ({len(self.kind)}, 2), one for each kind, got "
                f"{tuple(self.points.shape)}; project the features to two dimensions"
            )
        unknown = sorted(set(self.kind) - set(KINDS))
        if unknown:
            raise DataError(f"feature map: unknown kind {unknown[0]!r}; known: {', '.join(KINDS)}")


@dataclass(frozen=True)
class NullPlot:
    """The permutation null of one encoder with the key's place in it.

    Attributes:
        null: float ``(n,)``, the statistic of each decoy key.
        statistic: the statistic of the owner's key.
        p_value: its p-value, 0 to 1.
    """

    null: Tensor
    statistic: float
    p_value: float


@dataclass(frozen=True)
class ReportData:
    """All that one report shows.

    Attributes:
        title: the page's heading.
        result: ``{"utility": {NAME: {"linear": x, "knn": x}}, "verdicts": {NAME: verdict}}``,
            accuracies and rates as fractions 0 to 1; either part and any value may be missing.
        gallery: composites next to their sources, or None.
        maps: NAME -> feature map; empty for none.
        nulls: NAME -> permutation null; empty for none.
        settings: settings and versions, nested as they like.
    """

    title: str
    result: dict[str, Any]
    gallery: Gallery | None
    maps: dict[str, FeatureMap]
    nulls: dict[str, NullPlot]
    settings: dict[str, Any]


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
    from ssl_wm.report import plots

    found: dict[str, str] = {}
    if data.result.get("utility") or data.result.get("verdicts"):
        found["bars"] = _inline(plots.bars_figure(data.result))
    if data.gallery is not None:
        found["gallery"] = _inline(plots.gallery_figure(data.gallery))
    if data.maps:
        found["maps"] = _inline(plots.maps_figure(data.maps))
    if data.nulls:
        found["nulls"] = _inline(plots.null_figure(data.nulls))
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
        text += " Training brings such composites and the target together."
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
