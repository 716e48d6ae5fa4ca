"""The figure of a survival benchmark: the mark in every copy against the copy's utility."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssl_wm.bench.extraction_plan import SAME
from ssl_wm.bench.survival_plan import CLEAN
from ssl_wm.bench.survival_thieves import HALF
from ssl_wm.report.drawing import ACCENT, INK, MUTED, WIDTH, label, new_figure, png_bytes, styled
from ssl_wm.report.extraction_curves import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
CONTROL = "control: stolen from clean"
HOLLOW = "hollow: stolen with another domain's images"
GREY = "#9aa3ad"


def styles_of(result: Result) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each embedder with a copy; no two are alike.

    The control is grey, and comes first.
    """
    rows = result["rows"]
    names = list(dict.fromkeys(row["embedder"] for row in rows if row["kind"] == "copy"))
    styles: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(name for name in names if name != CLEAN):
        again = place // len(COLOURS)
        styles[name] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[(place + again) % len(MARKERS)],
        }
    return ({CLEAN: {"color": GREY, "marker": "o"}} if CLEAN in names else {}) | styles


def copies_of(result: Result) -> Iterator[tuple[Result, float, float, float]]:
    """Yield (row, loss in points, WSR in per cent, -log10 p) of each copy that was measured.

    The loss is the linear probe's against the control by the same thief, for which it is 0.
    """
    for row in result["rows"]:
        if row["kind"] != "copy" or not row["measured"]:
            continue
        loss = (row["linear_loss"] or {}).get("runs", {})
        if row["embedder"] == CLEAN:
            loss = dict.fromkeys(row["wsr"]["runs"], 0.0)
        for run in row["wsr"]["runs"]:
            if run in loss:
                rate, p_value = (row[name]["runs"][run] for name in ("wsr", "p_value"))
                yield row, loss[run], 100 * rate, -math.log10(max(p_value, 1e-300))


def survival_figure(result: Result) -> Figure:
    """Return two panels, WSR and -log10 p against the loss of utility, a marker for each copy.

    Hollow markers are copies made with images of another domain. Lines are the bars; that of
    utility is for marked encoders, and is drawn for scale.
    """
    styles = styles_of(result)
    columns = 4
    below = 0.62 + 0.2 * math.ceil((len(styles) + 1) / columns)  # inches
    height = 4.0 + below
    with styled():
        figure = new_figure(WIDTH, height)
        left, right = figure.subplots(1, 2)
        for row, loss, rate, log_p in copies_of(result):
            style = dict(styles[row["embedder"]], linestyle="none", markersize=6, alpha=0.85)
            hollow = row["pool"] not in (SAME, HALF)
            style["markerfacecolor"] = "none" if hollow else style["color"]
            style["markeredgecolor"] = style["color"] if hollow else "white"
            style["markeredgewidth"] = 1.3 if hollow else 0.4
            order = 2 if row["embedder"] == CLEAN else 3
            left.plot(loss, rate, zorder=order, **style)
            right.plot(loss, log_p, zorder=order, **style)
        _finish(left, result, "Watermark success rate of the copies", "WSR by its best reader, %")
        _finish(right, result, "Detection of the copies", "\u2212log10 p (higher: surer)")
        _bars(left, right, result)
        figure.subplots_adjust(
            left=0.06, right=0.985, top=1 - 0.35 / height, bottom=below / height, wspace=0.17
        )
        legend(figure, styles, columns=columns, more=[HOLLOW])
    return figure


def _finish(axes: Axes, result: Result, title: str, y: str) -> None:
    axes.set_title(title, weight="bold", size=10.5, loc="left")
    axes.set_xlabel("loss of utility, points of linear-probe accuracy (against the control)")
    axes.set_ylabel(y)
    axes.grid(color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.08)


def _bars(left: Axes, right: Axes, result: Result) -> None:
    """Draw the bars of utility, WSR and p, and alpha, and make room for them."""
    bars = result["settings"]["bars"]
    limit = bars["utility_points"]
    heights = sorted({each["p"] for each in bars["copies"]} | {result["alpha"]})
    lows, highs = left.get_xlim()
    span = (min(lows, -0.4), max(highs, 1.35 * limit, 0.4))
    top = max(left.get_ylim()[1], 100 * bars["wsr"] * 1.15)
    for axes in (left, right):
        axes.set_xlim(*span)
        axes.axvline(limit, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
        word = "point" if limit == 1 else "points"
        axes.text(limit, 0.985, f" {limit:g} {word}", color=INK, size=8, va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    left.set_ylim(-0.03 * top, top)
    left.axhline(100 * bars["wsr"], color=ACCENT, linewidth=1.2, zorder=1)
    _name(left, 100 * bars["wsr"], f"bar: {100 * bars['wsr']:g} %")
    right.set_ylim(-0.15, max(right.get_ylim()[1], -math.log10(min(heights)) + 0.5))
    for height in heights:
        word = "alpha" if height == result["alpha"] else "bar"
        right.axhline(-math.log10(height), color=ACCENT, linewidth=1.0, zorder=1)
        _name(right, -math.log10(height), f"{word}: p = {height:g}")


def _name(axes: Axes, height: float, text: str) -> None:
    axes.text(0.995, height, text, color=ACCENT, size=8, ha="right", va="bottom",
              transform=axes.get_yaxis_transform())  # fmt: skip


def legend(
    figure: Figure, styles: Mapping[str, Mapping[str, Any]], *, columns: int,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Name the embedders below the panels, and hollow markers by the texts ``more``."""
    from matplotlib.lines import Line2D

    def entry(text: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", markersize=6, label=text, **style)

    handles = [
        entry(CONTROL if name == CLEAN else label(name), **style) for name, style in styles.items()
    ]
    plain = {"marker": "o", "color": MUTED, "markerfacecolor": "none"}
    handles += [entry(text, **plain) for text in more]
    figure.legend(handles=handles, loc="lower left", ncols=columns, fontsize=8.5,
                  bbox_to_anchor=(0.05, 0.01), columnspacing=1.6)  # fmt: skip


def survival_png(result: Result) -> bytes:
    """Return the figure as PNG; the same result gives the same bytes."""
    return png_bytes(survival_figure(result))
