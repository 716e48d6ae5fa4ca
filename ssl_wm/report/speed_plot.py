"""The figure of a speed benchmark: ratios against what is asked for, and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_wm.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    label,
    new_figure,
    png_bytes,
    styled,
)
from ssl_wm.report.words import count, decimal, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cases = Mapping[str, Mapping[str, Any]]
MET, UNMET, PLAIN = "#009e73", ACCENT, "#0072b2"
ROW, ABOVE, BELOW = 0.42, 0.42, 0.5  # inches: a row, and what is above and below a panel's rows
LEFT, RIGHT = 2.75, 0.35  # inches beside the panels
TICKS = (1.0, 2.0, 5.0)


def amount(value: object) -> str:
    """Return a rate or a ratio with three significant digits, thousands apart.

    >>> amount(12345.6), amount(0.12345), amount(3.14159)
    ('12,346', '0.123', '3.14')
    """
    number = finite(value)
    return count(number) if number is not None and number >= 1000 else decimal(number)


def speed_figure(cases: Cases, stages: Cases) -> Figure:
    """Return a panel of ratios and one of memory, each where there is anything to show.

    Args:
        cases: measurements of two sides.
        stages: memory of each stage.
    """
    panels = [(draw, each) for draw, each in ((_ratios, cases), (_memory, stages)) if each]
    height = sum(ABOVE + ROW * (len(each) + 0.4) + BELOW for _, each in panels) or 1.0
    with styled():
        figure = new_figure(WIDTH, height)
        top = height
        for draw, each in panels:
            inside = ROW * (len(each) + 0.4)
            top -= ABOVE + inside
            box = (LEFT / WIDTH, top / height, 1 - (LEFT + RIGHT) / WIDTH, inside / height)
            draw(figure.add_axes(box), each)
            top -= BELOW
    return figure


def _ratios(axes: Axes, cases: Cases) -> None:
    values = [1.0]
    for place, case in enumerate(cases.values()):
        of, bar = case["ratio"], case["bar"]
        values += [of["low"], of["high"], bar]
        colour = MET if case["met"] else UNMET
        axes.plot([of["low"], of["high"]], [place, place], color=colour, linewidth=3, alpha=0.45,
                  solid_capstyle="butt", zorder=2)  # fmt: skip
        axes.plot(of["median"], place, "o", color=colour, markersize=7, zorder=4)
        _flag(axes, bar, place, upwards=case["compared"] == "rate")
        axes.annotate(amount(of["median"]), (of["median"], place), (0, 6.5), size=8, ha="center",
                      textcoords="offset points", color=colour)  # fmt: skip
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    names = [f"{label(name)}: {label(_sides(case), limit=34)}" for name, case in cases.items()]
    axes.set_title("Ratio: median and range of the repeats; black: what is asked for",
                   weight="bold", size=10.5, loc="left")  # fmt: skip
    _finish(axes, names, low=min(values) / 1.4, high=max(values) * 1.4)


def _sides(case: Mapping[str, Any]) -> str:
    return " / ".join(case["sides"])


def _memory(axes: Axes, stages: Cases) -> None:
    values = []
    for place, told in enumerate(stages.values()):
        inputs, added, whole = (
            told[name] / 1e9 for name in ("input_bytes", "above_baseline_bytes", "peak_bytes")
        )
        values += [each for each in (inputs, added, whole) if each > 0]
        colour = {True: MET, False: UNMET, None: PLAIN}[told.get("met")]
        if added > 0:
            axes.plot([inputs, added], [place, place], color=colour, linewidth=3, alpha=0.45,
                      solid_capstyle="butt", zorder=2)  # fmt: skip
            axes.plot(added, place, "o", color=colour, markersize=7, zorder=4)
            axes.annotate(f"{amount(told['ratio'])} x", (added, place), (0, 6.5), color=colour,
                          size=8, ha="center", textcoords="offset points")  # fmt: skip
        axes.plot(inputs, place, "s", color=INK, markersize=5, zorder=3)
        axes.plot(whole, place, "o", color=colour, markersize=7, fillstyle="none", zorder=4)
        if told.get("limit_bytes"):
            values.append(told["limit_bytes"] / 1e9)
            _flag(axes, told["limit_bytes"] / 1e9, place, upwards=False)
    axes.set_title("Memory, GB: inputs (square), peak above the bare process (dot), whole (ring)",
        weight="bold", size=10.5, loc="left")  # fmt: skip
    _finish(axes, [label(name) for name in stages], low=min(values) / 1.6, high=max(values) * 1.6)


def _flag(axes: Axes, at: float, place: int, *, upwards: bool) -> None:
    """Draw a limit; its foot points to the side that meets it."""
    axes.plot([at, at], [place - 0.12, place + 0.34], color=INK, linewidth=1.6, zorder=3)
    axes.plot(at, place + 0.34, ">" if upwards else "<", color=INK, markersize=4.5, zorder=3)


def _finish(axes: Axes, names: list[str], *, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.set_yticks(range(len(names)), names, color=INK)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = TICKS if len(decades) < 5 else TICKS[:1]
    ticks = [step * 10.0**power for power in decades for step in steps]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:.6g}" for tick in shown])
    axes.minorticks_off()
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def speed_png(cases: Cases, stages: Cases) -> bytes:
    """Return the figure as PNG; the same result gives the same bytes."""
    return png_bytes(speed_figure(cases, stages))
