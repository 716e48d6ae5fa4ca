"""The figure of a benchmark of thefts: fidelity, utility and mark against the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssl_wm.report.drawing import ACCENT, INK, LINE, MUTED, WIDTH, label, new_figure, styled
from ssl_wm.report.words import count, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a6572")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))


def _log_p(value: float) -> float:
    return -math.log10(max(value, 1e-300))


def _as_percent(value: float) -> float:
    return 100 * value


SHORT = {
    "fidelity": "Fidelity",
    "agreement": "agreement, %",
    "linear": "linear, %",
    "knn": "kNN, %",
}
PANELS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    ("fidelity", "Fidelity: mean cosine", float),
    ("agreement", "kNN agreement, %", _as_percent),
    ("linear", "Utility: linear probe, %", _as_percent),
    ("knn", "Utility: kNN, %", _as_percent),
    ("wsr", "WSR, %", _as_percent),
    ("p_value", "\u2212log10 p", _log_p),
)


def extraction_figure(result: Row) -> Figure:
    """Return the figure: curves against the budget, and dots where there is one budget alone.

    Above, one line for each attack (with surrogate and pool where they differ) that was run
    with two budgets or more. Below, one line of dots for each attack, surrogate and pool that
    was run with one, with plain cosine of the same budget as a thin vertical line. Whiskers
    are the 95 % intervals; for p the range over seeds.
    """
    series = _series(result)
    curves = {name: rows for name, rows in series.items() if len(rows) > 1}
    dots = {name: rows[0] for name, rows in series.items() if len(rows) == 1}
    panels = [each for each in PANELS if any(row.get(each[0]) for row in result["rows"])]
    panels = panels or list(PANELS[:4])
    tall = _curves_height(curves) if curves else 0.0
    low = (0.95 + 0.22 * len(dots)) if dots else 0.0
    with styled():
        figure = new_figure(WIDTH, max(tall + low, 1.0))
        height = figure.get_figheight()
        if curves:
            _draw_curves(figure, curves, panels, result, top=1.0, share=tall / height)
        if dots:
            _draw_dots(figure, dots, panels, result, share=low / height)
    return figure


def _series(result: Row) -> dict[str, list[Row]]:
    """Return the measured rows by what stays when the budget varies, smallest budget first."""
    rows = result["rows"]
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "failed":
            continue
        parts = [row["attack"]]
        parts += [row[name] for name in ("arch", "pool") if row[name] != rows[0][name]]
        found.setdefault(", ".join(parts), []).append(row)
    return {name: sorted(some, key=lambda row: int(row["budget"])) for name, some in found.items()}


def _curves_height(curves: Mapping[str, Any]) -> float:
    return 4.9 + 0.2 * -(-len(curves) // 5)


def _draw_curves(
    figure: Figure, curves: Mapping[str, list[Row]], panels: Sequence[Any], result: Row,
    *, top: float, share: float,
) -> None:  # fmt: skip
    across = -(-len(panels) // 2)
    height = figure.get_figheight()
    legend = 0.2 * -(-len(curves) // 5) + 0.35
    grid = figure.add_gridspec(
        2, across, left=0.055, right=0.99, top=top - 0.3 / height,
        bottom=top - share + (legend + 0.5) / height, hspace=0.5, wspace=0.24,
    )  # fmt: skip
    budgets = sorted({row["budget"] for rows in curves.values() for row in rows})
    for place, (name, title, scale) in enumerate(panels):
        axes = figure.add_subplot(grid[place // across, place % across])
        for number, (what, rows) in enumerate(curves.items()):
            _curve(axes, rows, name, scale, number=number, said=label(what, limit=44))
        _reference(axes, name, scale, result, vertical=False)
        axes.set(xscale="log")
        axes.set_xticks(budgets, [count(each) for each in budgets], size=8)
        axes.set_xticks([], minor=True)
        _finish(axes, title, grid="y")
        if place // across == 1 or place + across >= len(panels):
            axes.set_xlabel("images in the transfer set", size=8.5)
    handles, names = figure.axes[-1].get_legend_handles_labels()
    own = [i for i, name in enumerate(names) if not name.startswith("_")]
    figure.legend(
        [handles[i] for i in own], [names[i] for i in own], loc="lower center", fontsize=8.5,
        ncols=min(5, max(1, len(own))), bbox_to_anchor=(0.5, top - share + 0.02 / height),
    )  # fmt: skip


def _curve(
    axes: Axes, rows: Sequence[Row], name: str, scale: Callable[[float], float], *,
    number: int, said: str,
) -> None:  # fmt: skip
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    line = LINES[number // len(COLOURS) % len(LINES)]
    known = [row for row in rows if row.get(name)]
    x, y = [row["budget"] for row in known], [scale(row[name]["value"]) for row in known]
    axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4.2, linewidth=1.5,
              label=said)  # fmt: skip
    for row in known:
        bounds = _bounds(row[name], scale)
        if bounds:
            axes.plot([row["budget"]] * 2, bounds, color=colour, linewidth=1.0)


def _bounds(estimate: Row, scale: Callable[[float], float]) -> list[float]:
    ends = [finite(end) for end in estimate.get("interval") or ()]
    return [scale(end) for end in ends if end is not None]


def _draw_dots(
    figure: Figure, dots: Mapping[str, Row], panels: Sequence[Any], result: Row, *, share: float
) -> None:
    height = figure.get_figheight()
    budgets = [row["budget"] for row in dots.values()]
    usual = max(set(budgets), key=budgets.count)
    names = [
        label(name if row["budget"] == usual else f"{name}, {count(row['budget'])}", limit=40)
        for name, row in dots.items()
    ]
    left = (0.2 + 0.068 * max(map(len, names))) / WIDTH
    grid = figure.add_gridspec(1, len(panels), left=left, right=0.99, top=share - 0.42 / height,
                               bottom=0.35 / height, wspace=0.12)  # fmt: skip
    for place, (name, title, scale) in enumerate(panels):
        axes = figure.add_subplot(grid[0, place])
        for spot, row in enumerate(dots.values()):
            if not row.get(name):
                continue
            colour = ACCENT if name in row["below"] else "#0072b2"
            axes.plot(_bounds(row[name], scale), [spot] * len(_bounds(row[name], scale)),
                      color=colour, linewidth=1.6)  # fmt: skip
            axes.plot(scale(row[name]["value"]), spot, "o", color=colour, markersize=4.2)
        _plain(axes, name, scale, result, budget=usual)
        _reference(axes, name, scale, result, vertical=True)
        axes.set(ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names), size=8.5,
                        color=INK)  # fmt: skip
        axes.locator_params(axis="x", nbins=4)
        _finish(axes, SHORT.get(name, title), grid="both")
    text = f"with {count(usual)} images"
    figure.text(0.006, share - 0.2 / height, text, weight="bold", size=10, va="center")


def _plain(
    axes: Axes, name: str, scale: Callable[[float], float], result: Row, *, budget: int
) -> None:
    first = result["rows"][0]
    for row in result["rows"]:
        same = all(row[each] == first[each] for each in ("arch", "pool"))
        if row["attack"] == "cosine" and row["budget"] == budget and same and row.get(name):
            axes.axvline(scale(row[name]["value"]), color=MUTED, linewidth=0.9)


def _reference(
    axes: Axes, name: str, scale: Callable[[float], float], result: Row, *, vertical: bool
) -> None:
    """Draw the victim's own utility, or alpha in the panel of p, as a dashed line."""
    value, words = None, "victim"
    if name in ("linear", "knn", "wsr") and result["victim"].get(name):
        value = finite(result["victim"][name]["value"])
    if name == "p_value":
        value, words = finite(result["settings"]["verify"]["alpha"]), "alpha"
    if value is None:
        return
    draw = axes.axvline if vertical else axes.axhline
    draw(scale(value), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    if not vertical:
        axes.annotate(words, (0.01, scale(value)), (0, 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=MUTED, size=8)  # fmt: skip


def _finish(axes: Axes, title: str, *, grid: Any) -> None:
    axes.set_title(title, weight="bold", size=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(axis=grid, color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
