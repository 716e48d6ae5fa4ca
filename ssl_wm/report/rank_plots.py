"""The figures of the tests: the owner's key among random keys, and its carriers among all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_wm.report.drawing import (
    ACCENT,
    WIDTH,
    columns_for,
    label,
    need,
    new_figure,
    panels_of,
    styled,
)
from ssl_wm.report.words import count, finite, p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from ssl_wm.report.shown import CarrierPlot, NullPlot

CHANCE, BEYOND = "#9fb3c4", "#f0b27a"
BINS = 60


def null_figure(nulls: Mapping[str, NullPlot]) -> Figure:
    """Return one panel for each encoder: the decoys' statistics ``(n,)`` and the key's place.

    All panels share the horizontal axis, so that the distance of the key can be compared.

    Raises:
        VerificationError: there is no null.
    """
    need(nulls, "a permutation null")
    values = [_finite_only(item.null) for item in nulls.values()]
    keys = [finite(item.statistic) for item in nulls.values()]
    places = np.array([key for key in keys if key is not None], dtype=float)
    limits = _limits([*values, places])
    peak = max(int(np.histogram(part, BINS, limits)[0].max(initial=1)) for part in values)
    with styled():
        figure, panels = _grid([(name, item.p_value) for name, item in nulls.items()], "decoy keys")
        for axes, null, key in zip(panels, values, keys, strict=True):
            _histogram(axes, null, key, limits=limits, top=1.28 * peak)
            axes.set_xlabel(f"fit of a key ({count(len(null))} decoys)")
            if key is not None:
                _line(axes, key, limits=limits)
    return figure


def carriers_figure(carriers: Mapping[str, CarrierPlot]) -> Figure:
    """Return one panel for each encoder: all carriers by how well it knows them ``(n,)``.

    The owner's ``(m,)`` are orange bars of the histogram, and each is a stroke below it. All
    panels share the horizontal axis.

    Raises:
        VerificationError: there is no carrier.
    """
    need(carriers, "carriers")
    values = [100 * _finite_only(item.values) for item in carriers.values()]
    owned = [100 * _finite_only(item.own) for item in carriers.values()]
    limits = _limits([*values, *owned])
    edges = np.linspace(*limits, BINS + 1)
    with styled():
        figure, panels = _grid([(name, item.p_value) for name, item in carriers.items()],
                               "carriers")  # fmt: skip
        for axes, everyone, own in zip(panels, values, owned, strict=True):
            many = np.histogram(everyone, edges)[0]
            _bars(axes, edges, many, CHANCE)
            _bars(axes, edges, np.minimum(np.histogram(own, edges)[0], many), BEYOND)
            room = 0.16 * many.max(initial=1)
            axes.vlines(own, -room, -0.25 * room, color=ACCENT, linewidth=1.4)
            axes.set(xlim=limits, ylim=(-1.15 * room, 1.08 * many.max(initial=1)))
            axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= many.max()])
            axes.set_xlabel("known of a carrier, points")
    return figure


def _grid(heads: Sequence[tuple[str, float]], counted: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each (name, p), what is counted at the left."""
    columns = columns_for(len(heads))
    lines = math.ceil(len(heads) / columns)
    height = 2.45 * lines + 0.05
    figure = new_figure(WIDTH, height)
    panels = panels_of(figure, lines, columns, used=len(heads), sharey=counted == "decoy keys")
    for axes, (name, p_value) in zip(panels, heads, strict=True):
        axes.set_title(label(name), weight="bold", size=10.5, loc="left", pad=8)
        axes.set_title(f"p = {p_text(p_value)}", size=10.5, loc="right", pad=8)
        axes.tick_params(axis="x", pad=5)
        axes.locator_params(axis="both", nbins=5)
        axes.grid(axis="y", color="#eef1f4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(counted)
    figure.subplots_adjust(left=0.055, right=0.995, top=1 - 0.36 / height, bottom=0.45 / height,
                           wspace=0.14, hspace=0.5)  # fmt: skip
    return figure, panels


def _finite_only(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().cpu().double().numpy().reshape(-1)
    return array[np.isfinite(array)]


def _limits(parts: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return an axis that shows all of them, and 0."""
    everything = np.concatenate([*parts, np.zeros(1)])
    low, high = float(everything.min()), float(everything.max())
    room = 0.06 * ((high - low) or 1.0)
    return low - room, high + room


def _histogram(
    axes: Axes,
    null: NDArray[np.float64],
    key: float | None,
    *,
    limits: tuple[float, float],
    top: float,
) -> None:
    everyone, edges = np.histogram(null, bins=BINS, range=limits)
    beyond, _ = np.histogram(null[null >= (math.inf if key is None else key)], edges)
    _bars(axes, edges, everyone, CHANCE)
    _bars(axes, edges, beyond, BEYOND)
    axes.set(xlim=limits, ylim=(0, top))


def _bars(axes: Axes, edges: NDArray[np.float64], heights: NDArray[np.int_], colour: str) -> None:
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=colour)


def _line(axes: Axes, key: float, *, limits: tuple[float, float]) -> None:
    """Draw the owner's key, with its name on the side that has room."""
    axes.axvline(key, color=ACCENT, linewidth=2.0)
    right = key > sum(limits) / 2
    axes.annotate("owner's key", (key, 0.985 * axes.get_ylim()[1]), (-5 if right else 5, 0),
                  va="top", textcoords="offset points", ha="right" if right else "left",
                  color=ACCENT, weight="bold", size=9)  # fmt: skip
