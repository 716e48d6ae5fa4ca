"""A calibration as a figure and as files: are the p-values what they promise to be?"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_wm.files import write_bytes, write_json, write_text
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
    svg_bytes,
)
from ssl_wm.report.words import count, p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ssl_wm.calibration.outcome import Calibration

HEIGHT = 4.4
_BAND, _POINTS = "#cfe3f1", 400


def calibration_figure(calibration: Calibration) -> Figure:
    """Return three panels: the p-values' distribution, its lower end, and false accusations.

    Left and middle: the empirical distribution P(p <= x) against the diagonal that a uniform
    p-value follows, with the band that holds it at each x with the calibration's confidence
    (binomial quantiles); in the middle both axes are logarithmic. Right: the rate of false
    accusations of the rule and of the naive ones, with exact intervals, and alpha.
    """
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.05])
        _distribution(left, calibration, logarithmic=False)
        _distribution(middle, calibration, logarithmic=True)
        _rates(right, calibration)
        figure.subplots_adjust(left=0.055, right=0.985, top=0.9, bottom=0.125, wspace=0.3)
    return figure


def svg(calibration: Calibration) -> bytes:
    """Return the figure as SVG; the same calibration gives the same bytes."""
    return svg_bytes(calibration_figure(calibration))


def png(calibration: Calibration) -> bytes:
    """Return the figure as PNG; the same calibration gives the same bytes."""
    return png_bytes(calibration_figure(calibration))


def decisions_csv(calibration: Calibration) -> str:
    """Return every decision as CSV: encoder, recipe, p-value, and 0 or 1 of each naive rule.

    A name that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rules = list(calibration.naive)
    writer.writerow(["encoder", "recipe", "p_value", *rules])
    names = [f"'{name}" if name[:1] in "=+-@\t\r" else name for name in calibration.names]
    columns = [calibration.naive[rule].astype(int).tolist() for rule in rules]
    for place, p_value in enumerate(calibration.p_values.tolist()):
        encoder = names[int(calibration.encoders[place])]
        said = [column[place] for column in columns]
        writer.writerow([encoder, int(calibration.recipes[place]), repr(p_value), *said])
    return buffer.getvalue()


def write_calibration(calibration: Calibration, out: Path) -> list[Path]:
    """Write result.json, decisions.csv, calibration.svg and calibration.png; return the paths.

    Raises:
        OutputError: the folder cannot be written to.
    """
    paths = [out / f"calibration.{kind}" for kind in ("svg", "png")]
    write_bytes(paths[0], svg(calibration))
    write_bytes(paths[1], png(calibration))
    write_text(out / "decisions.csv", decisions_csv(calibration))
    write_json(out / "result.json", calibration.to_dict())
    return [out / "result.json", out / "decisions.csv", *paths]


def band(x: np.ndarray, *, total: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where the share of ``total`` uniform p-values up to each x lies, (n,) and (n,).

    At each single x: the quantiles of a binomial with rate x, over ``total``.
    """
    from scipy.stats import binom

    tail = (1 - confidence) / 2
    low, high = binom.ppf(tail, total, x), binom.ppf(1 - tail, total, x)
    return np.maximum(low, 0) / total, np.maximum(high, 0) / total


def _distribution(axes: Axes, calibration: Calibration, *, logarithmic: bool) -> None:
    p_values, total = np.sort(calibration.p_values), len(calibration.p_values)
    low = max(float(p_values[0]) / 2, 0.5 / total) if logarithmic else 0.0
    low = min(low, calibration.alpha / 2)
    grid = np.geomspace(low, 1, _POINTS) if logarithmic else np.linspace(0, 1, _POINTS)
    under, over = band(grid, total=total, confidence=calibration.confidence)
    level = f"{100 * calibration.confidence:g} % band"
    floor = 0.5 / total if logarithmic else 0.0
    axes.fill_between(grid, np.maximum(under, floor), np.maximum(over, floor), color=_BAND,
                      linewidth=0, label=level)  # fmt: skip
    axes.plot(grid, grid, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label="uniform")
    shown = np.searchsorted(p_values, grid, side="right") / total
    axes.step(grid, np.maximum(shown, floor), where="post", color="#0072b2", linewidth=1.6,
              label="p-values")  # fmt: skip
    axes.axvline(calibration.alpha, color=ACCENT, linewidth=1.0)
    if logarithmic:
        axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(floor, 1))
        axes.set_title("the small ones", weight="bold", size=10.5, loc="left")
        axes.annotate(f"alpha = {p_text(calibration.alpha)}", (calibration.alpha, 1), (4, -4),
                      textcoords="offset points", va="top", color=ACCENT, size=9)  # fmt: skip
    else:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"{count(total)} p-values", weight="bold", size=10.5, loc="left")
        axes.set_ylabel("share of decisions with p at most x")
        axes.legend(loc="upper left", fontsize=9)
    axes.set_xlabel("x")
    axes.grid(color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)


def _rates(axes: Axes, calibration: Calibration) -> None:
    """Draw the false-accusation rates as dots with whiskers, on an axis that is linear near 0."""
    rules = {"this rule": calibration.rule, **calibration.naive_rules}
    for place, (name, rate) in enumerate(rules.items()):
        colour = "#0072b2" if place == 0 else INK
        axes.plot(rate.interval, [place, place], color=colour, linewidth=2.0)
        axes.plot(rate.rate, place, "o", color=colour, markersize=5)
        text = f"{label(name)}: {_per_cent(rate.rate)}"
        axes.text(0.0, place - 0.22, text, size=9.5, color=colour, va="bottom", zorder=4,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip
    axes.axvline(calibration.alpha, color=ACCENT, linewidth=1.0)
    axes.set_xscale("symlog", linthresh=calibration.alpha, linscale=0.8)
    ticks = [0.0, calibration.alpha, *(x for x in (0.01, 0.1, 1.0) if x > 2 * calibration.alpha)]
    axes.set_xticks(ticks, [_per_cent(x) for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlim=(0, 1.15), ylim=(len(rules) - 0.4, -0.75), yticks=[])
    axes.set_title("false accusations", weight="bold", size=10.5, loc="left")
    axes.set_xlabel(f"share of {count(len(calibration.p_values))} decisions on innocent encoders")
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _per_cent(share: float) -> str:
    """Return a share in per cent with three significant digits.

    >>> _per_cent(0.0104), _per_cent(0.5), _per_cent(1.0), _per_cent(0.0)
    ('1.04 %', '50 %', '100 %', '0 %')
    """
    return f"{100 * share:.3g} %"
