"""The figure of all thefts of a survival benchmark: a line for each, a dot for each copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_wm.report.drawing import ACCENT, INK, WIDTH, label, new_figure, png_bytes, styled
from ssl_wm.report.survival_plot import legend, styles_of
from ssl_wm.report.words import count, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
LINE_HEIGHT = 0.27  # inches


def theft_of(row: Result) -> str:
    """Return which theft a row's copy was made by, in words."""
    start = "from " if row["warm"] else ""
    parts = (row["attack"], count(row["budget"]), f"{start}{row['shape']}", row["pool"])
    return printable(", ".join(parts))


def thefts_of(result: Result) -> dict[str, list[tuple[str, float, float]]]:
    """Return (embedder, WSR in per cent, -log10 p) of each copy that was measured, by theft.

    Thefts come in the table's order; each has a dot for each run, those without a control too.
    """
    found: dict[str, list[tuple[str, float, float]]] = {}
    for row in result["rows"]:
        if row["kind"] != "copy" or not row["measured"]:
            continue
        dots = found.setdefault(theft_of(row), [])
        for run, rate in row["wsr"]["runs"].items():
            p_value = max(row["p_value"]["runs"][run], 1e-300)
            dots.append((row["embedder"], 100 * rate, -math.log10(p_value)))
    return found


def thefts_figure(result: Result) -> Figure:
    """Return two panels, WSR and -log10 p of every copy, with a line for each theft.

    Dashed lines are the bars and alpha.
    """
    thefts, styles = thefts_of(result), styles_of(result)
    columns = 5
    below = 0.55 + 0.2 * math.ceil(len(styles) / columns)  # inches
    height = 0.5 + LINE_HEIGHT * len(thefts) + below
    with styled():
        figure = new_figure(WIDTH, height)
        left, right = figure.subplots(1, 2, sharey=True)
        for place, dots in enumerate(thefts.values()):
            for name, rate, log_p in dots:
                style = dict(styles[name], linestyle="none", markersize=5.5, alpha=0.85)
                style |= {"markeredgecolor": "white", "markeredgewidth": 0.4}
                left.plot(rate, place, zorder=3, **style)
                right.plot(log_p, place, zorder=3, **style)
        _finish(left, list(thefts), "WSR by its best reader, %")
        _finish(right, list(thefts), "\u2212log10 p (further right: surer)")
        _bars(left, right, result)
        figure.subplots_adjust(
            left=0.27, right=0.985, top=1 - 0.25 / height, bottom=below / height, wspace=0.05
        )
        legend(figure, styles, columns=columns)
    return figure


def _finish(axes: Axes, names: list[str], x: str) -> None:
    axes.set_xlabel(x)
    axes.set_yticks(range(len(names)), [label(name, limit=42) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(0, None)


def _bars(left: Axes, right: Axes, result: Result) -> None:
    bars = result["settings"]["bars"]
    limits = {each["p"] for each in bars["copies"]} | {result["alpha"]}
    left.set_xlim(-1, max(left.get_xlim()[1], 115 * bars["wsr"]))
    right.set_xlim(-0.15, max(right.get_xlim()[1], -math.log10(min(limits)) + 0.5))
    lines = [(left, 100 * bars["wsr"], f"{100 * bars['wsr']:g} %")]
    lines += [(right, -math.log10(p), f"p {p:g}") for p in sorted(limits)]
    for axes, at, text in lines:
        axes.axvline(at, color=ACCENT, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
        axes.text(at, 1.0, text, color=ACCENT, size=8, ha="center", va="bottom",
                  transform=axes.get_xaxis_transform())  # fmt: skip


def thefts_png(result: Result) -> bytes:
    """Return the figure as PNG; the same result gives the same bytes."""
    return png_bytes(thefts_figure(result))
