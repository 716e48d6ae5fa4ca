"""The figure of a robustness benchmark: detection against the loss of utility."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ssl_wm.bench.robustness_plan import CONTROL
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.report.drawing import ACCENT, INK, MUTED, WIDTH, label, new_figure, png_bytes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
KINDS = {
    "weights": "#0072b2", "training": "#009e73", "inputs": "#cc79a7", "outputs": "#e69f00",
    "stacks": "#5a6572",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
TICKS = (-2, 0, 2, 5, 10, 20, 50)


def kind_of(attempt: str) -> str:
    """Return what an attempt changes, or "stacks".

    >>> kind_of("jpeg"), kind_of("prune+ftal")
    ('inputs', 'stacks')
    """
    return "stacks" if "+" in attempt else REMOVALS[attempt].kind


def styles_of(attempts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and dashes of each attempt; within a kind no two are alike."""
    styles: dict[str, dict[str, Any]] = {}
    seen = dict.fromkeys(KINDS, 0)
    for attempt in attempts:
        kind = kind_of(attempt)
        place, seen[kind] = seen[kind], seen[kind] + 1
        styles[attempt] = {
            "color": KINDS[kind], "marker": MARKERS[place % len(MARKERS)],
            "linestyle": DASHES[place // len(MARKERS) % len(DASHES)],
        }  # fmt: skip
    return styles


def frontier_figure(result: Result) -> Figure:
    """Return a panel for each encoder: -log10 p against the loss of utility.

    One line for each attempt, from the untouched encoder to the strongest; several repetitions
    are drawn at their medians. The shaded corner is where a mark is lost for less than the bar.
    """
    rows, names = result["rows"], list(result["untouched"])
    attempts = list(dict.fromkeys(row["attempt"] for row in rows))
    styles = styles_of(attempts)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    most = max((sum(kind_of(a) == kind for a in attempts) for kind in KINDS), default=0)
    below, panel = 0.62 + 0.17 * most, 3.5  # inches
    height = lines * panel + below
    with styled():
        figure = new_figure(WIDTH, height)
        grid = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid, names, strict=False):
            _panel(axes, name, result, styles)
        for axes in grid[::columns]:
            axes.set_ylabel("\u2212log10 p")
        figure.subplots_adjust(
            left=0.055, right=0.99, top=1 - 0.32 / height, bottom=(below + 0.42) / height,
            wspace=0.08, hspace=0.32,
        )  # fmt: skip
        _legends(figure, attempts, styles, result["winners"], top=below / height)
    return figure


def _panel(axes: Axes, name: str, result: Result, styles: Mapping[str, Any]) -> None:
    before, reader = result["untouched"][name], result["judged_by"]
    limit = -math.log10(result["alpha"])
    rows = [row for row in result["rows"] if row["encoder"] == name]
    axes.set_xscale("symlog", linthresh=5, linscale=1.2)
    if name != CONTROL:
        axes.fill_between([-100, result["bar"]], [limit, limit], -1, color="#fbe3d3", zorder=0)
    axes.axhline(limit, color=ACCENT, linewidth=1.2, zorder=1)
    axes.axvline(result["bar"], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    axes.text(0.99, limit, f"alpha = {result['alpha']:g} ", color=ACCENT, size=8, ha="right",
              va="bottom", transform=axes.get_yaxis_transform())  # fmt: skip
    axes.text(result["bar"], 0.99, f" {result['bar']:g} points", color=INK, size=8, va="top",
              transform=axes.get_xaxis_transform())  # fmt: skip
    start = (0.0, _height(before["p_value"]))
    for attempt, style in styles.items():
        points = _line(rows, attempt, reader)
        if points:
            x, y = zip(start, *points, strict=True)
            axes.plot(x, y, linewidth=1.0, markersize=4, alpha=0.9, markeredgecolor="white",
                      markeredgewidth=0.3, zorder=3, **style)  # fmt: skip
    axes.plot(*start, "o", color=INK, markersize=6, zorder=5)
    losses = [row[f"{reader}_loss"] for row in result["rows"]] or [0.0]
    heights = [_height(row["p_value"]) for row in result["rows"]]
    heights += [_height(read["p_value"]) for read in result["untouched"].values()]
    axes.set_xlim(min(-1.0, 1.15 * min(losses)), max(10.0, 1.3 * max(losses)))
    axes.set_ylim(-0.15, 1.06 * max(*heights, limit) + 0.1)
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [str(tick).replace("-", "\u2212") for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(label(name), weight="bold", size=10.5, loc="left")
    word = {"linear": "linear probe", "knn": "kNN"}[reader]
    axes.set_xlabel(f"loss of utility, points ({word})")
    axes.tick_params(labelbottom=True)


def _height(p_value: float) -> float:
    return -math.log10(max(p_value, 1e-300))


def _line(rows: Sequence[Result], attempt: str, reader: str) -> list[tuple[float, float]]:
    """Return (loss, -log10 p) at each strength in its order, medians over repetitions."""
    groups: dict[tuple[float, ...], list[Result]] = {}
    for row in rows:
        if row["attempt"] == attempt:
            groups.setdefault(tuple(row["strengths"]), []).append(row)
    return [
        (
            median(row[f"{reader}_loss"] for row in group),
            median(_height(row["p_value"]) for row in group),
        )
        for group in groups.values()
    ]


def _legends(
    figure: Figure, attempts: Sequence[str], styles: Mapping[str, Any], beaten: Sequence[str], *,
    top: float,
) -> None:  # fmt: skip
    """Draw one legend for each kind of attempt side by side; the winners' names are bold."""
    from matplotlib.lines import Line2D

    shown = [kind for kind in KINDS if any(kind_of(each) == kind for each in attempts)]
    for place, kind in enumerate(shown):
        names = [each for each in attempts if kind_of(each) == kind]
        handles = [
            Line2D([], [], linewidth=1.0, markersize=5, label=label(each), **styles[each])
            for each in names
        ]
        legend = figure.legend(
            handles=handles, title=kind, loc="upper left", fontsize=8.5, title_fontsize=9,
            bbox_to_anchor=(0.045 + 0.95 * place / len(shown), top), alignment="left",
            labelspacing=0.25, borderaxespad=0.0, handlelength=2.2,
        )  # fmt: skip
        legend.get_title().set(weight="bold", color=MUTED)
        for text, each in zip(legend.get_texts(), names, strict=True):
            text.set(weight="bold" if each in beaten else "normal",
                     color=ACCENT if each in beaten else INK)  # fmt: skip


def frontier_png(result: Result) -> bytes:
    """Return the figure as PNG; the same result gives the same bytes."""
    return png_bytes(frontier_figure(result))
