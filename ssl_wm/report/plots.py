"""The figures of the report, drawn with matplotlib's objects; the same data gives the same bytes.

Every function returns a ``Figure`` that belongs to no window and no global state;
``ssl_wm.report.drawing`` turns it into SVG. The colours are those of Okabe and Ito
(Color Universal Design, 2008), which colour-blind readers can tell apart; markers differ too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_wm.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    columns_for,
    label,
    need,
    new_figure,
    panels_of,
    styled,
)
from ssl_wm.report.words import DASH, count, finite, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from ssl_wm.report.shown import FeatureMap, Gallery

GAP = 2  # pixels of the images between two tiles of the gallery
HEAD = 0.34  # inches for the gallery's headings
KINDS: dict[str, tuple[str, str, float]] = {  # kind: colour, marker, area in points squared
    "other": ("#cfd5dc", "o", 5.0),
    "source A": ("#0072b2", "o", 16.0),
    "source B": ("#009e73", "s", 13.0),
    "target": ("#e69f00", "^", 17.0),
    "composite": ("#8c2d8c", "D", 11.0),
}


def gallery_figure(gallery: Gallery) -> Figure:
    """Return the composites under their sources and, at the right, other mixers' composites.

    At most eight examples are drawn (six where there are other mixers).
    """
    from matplotlib.patches import Rectangle

    rows = {
        f"A: {gallery.group_a}": gallery.sources_a,
        f"B: {gallery.group_b}": gallery.sources_b,
        "composite": gallery.composites,
    }
    others = len(gallery.others)
    shown = min(len(gallery.composites), 6 if others else 8)
    ratio = min(3 / others, 1.0) if others else 0.0  # size of a tile at the right, to one at left
    left, right = 1.05, 1.65 if others else 0.0  # inches before the tiles
    tile = min((WIDTH - left - right - 0.05) / (shown * (1 + ratio)), 1.25)
    height = 3 * tile + HEAD + 0.05
    with styled():
        figure = new_figure(WIDTH, height)
        axes = _block(figure, rows, (0.0, left), tile, shown)
        axes.texts[-1].set(color=ACCENT, weight="bold")
        high, wide = axes.get_ylim()[0], axes.get_xlim()[1]
        step = (high + GAP + 0.5) / 3
        axes.add_patch(
            Rectangle(
                (-GAP / 2 - 0.5, 2 * step - GAP / 2 - 0.5), wide + GAP + 0.5, step, clip_on=False,
                fill=False, edgecolor=ACCENT, linewidth=2.2,
            )
        )  # fmt: skip
        _heading(figure, 0.0, f"The key's recipe: {label(gallery.mixer, limit=40)}")
        if others:
            start = left + shown * tile + 0.35
            _block(figure, gallery.others, (start, right - 0.35), tile * ratio, shown)
            _heading(figure, start, "The same pairs, other recipes")
    return figure


def _heading(figure: Figure, x: float, text: str) -> None:
    figure.text(
        x / WIDTH, 1 - 0.12 / figure.get_figheight(), text, weight="bold", size=10, va="center"
    )


def _block(
    figure: Figure, rows: Mapping[str, Tensor], place: tuple[float, float], tile: float, shown: int
) -> Axes:
    """Draw one mosaic below the heading, a row for each entry.

    ``place`` is (left end, width of the names), both in inches.
    """
    width, height = figure.get_size_inches()
    (start, before), tall = place, len(rows) * tile
    bottom = 1 - (HEAD + tall) / height
    box = ((start + before) / width, bottom, shown * tile / width, tall / height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    mosaic = np.concatenate([_strip(images[:shown]) for images in rows.values()], axis=0)[:-GAP]
    axes.imshow(mosaic, aspect="auto")
    for number, name in enumerate(rows):
        axes.text(
            -before / (shown * tile), 1 - (number + 0.5) / len(rows), label(name, limit=16),
            transform=axes.transAxes, va="center", size=9, color=MUTED,
        )  # fmt: skip
    return axes


def _strip(images: Tensor) -> NDArray[np.uint8]:
    """Return ``(n, 3, H, W)`` as one row ``(H + GAP, n·(W + GAP) - GAP, 3)`` on white."""
    array = images.cpu().numpy().transpose(0, 2, 3, 1)
    n, high, wide, _ = array.shape
    row = np.full((n, high + GAP, wide + GAP, 3), 255, dtype=np.uint8)
    row[:, :high, :wide] = array
    joined = row.transpose(1, 0, 2, 3).reshape(high + GAP, n * (wide + GAP), 3)
    return joined[:, :-GAP]


def maps_figure(maps: Mapping[str, FeatureMap]) -> Figure:
    """Return one panel for each encoder's feature space ``(N, 2)``, with a shared legend.

    Raises:
        VerificationError: there is no map.
    """
    from matplotlib.lines import Line2D

    need(maps, "a feature map")
    columns = columns_for(len(maps))
    lines = math.ceil(len(maps) / columns)
    size = min(WIDTH / columns, 3.6)
    height = lines * size + 0.45
    with styled():
        figure = new_figure(WIDTH, height)
        panels = panels_of(figure, lines, columns, used=len(maps))
        for axes, (name, item) in zip(panels, maps.items(), strict=True):
            _scatter(axes, name, item)
        order = [*list(KINDS)[1:], "other"]
        present = [kind for kind in order if any(kind in item.kind for item in maps.values())]
        handles = [
            Line2D([], [], linestyle="", marker=KINDS[kind][1], color=KINDS[kind][0], label=kind)
            for kind in present
        ]
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=9.5,
                      handletextpad=0.2, columnspacing=1.8)  # fmt: skip
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.32 / height, bottom=0.5 / height,
                               wspace=0.06, hspace=0.2)  # fmt: skip
    return figure


def _scatter(axes: Axes, name: str, item: FeatureMap) -> None:
    points = item.points.detach().cpu().double().numpy()
    kinds = np.array(item.kind, dtype=object)
    seen = np.isfinite(points).all(axis=1)
    for order, (kind, (colour, marker, area)) in enumerate(KINDS.items()):
        chosen = points[seen & (kinds == kind)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=area, c=colour, marker=marker, zorder=2 + order,
                     linewidths=0.35, edgecolors="white", rasterized=True)  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.margins(0.06)
    axes.spines[:].set(visible=True, color=LINE)
    axes.set_title(label(name), weight="bold", size=10.5, loc="left")
    if not seen.all():
        axes.text(0.02, 0.02, f"{count((~seen).sum())} points have no finite place",
                  transform=axes.transAxes, size=8, color=MUTED)  # fmt: skip


def bars_figure(result: Mapping[str, Any]) -> Figure:
    """Return bars for each encoder: utility (linear, kNN) at the left, WSR and WFPR at the right.

    Each sub-key is a dot with its Clopper-Pearson interval, by the verdict's ``reader`` as the bar
    is (its first one, where the verdict names none). All values are fractions 0 to 1.

    Raises:
        VerificationError: there is no encoder.
    """
    utility, verdicts = result.get("utility") or {}, result.get("verdicts") or {}
    names = list(dict.fromkeys([*utility, *verdicts]))
    need(dict.fromkeys(names), "utility or a verdict")
    shown = [label(name, limit=30) for name in names]
    left = 0.2 + 0.085 * max(9, *map(len, shown))  # inches for the names
    height = 0.58 * len(names) + 0.72
    with styled():
        figure = new_figure(WIDTH, height)
        panels = panels_of(figure, 1, 2, used=2, sharey=True)
        _bars(panels[0], [utility.get(name) or {} for name in names],
              {"linear": ("linear probe", "#0072b2"), "knn": ("kNN", "#7cc4ea")})  # fmt: skip
        marks = [verdicts.get(name) or {} for name in names]
        _bars(panels[1], marks, {"wsr": ("WSR", ACCENT), "wfpr": ("WFPR", "#f0b27a")})
        panels[0].set_yticks(range(len(names)), shown, size=10,
                             color=INK)  # fmt: skip
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        for axes, title in zip(panels, ("Utility", "Mark"), strict=True):
            axes.set_title(title, weight="bold", size=10.5, loc="left", pad=8)
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=9,
                        handlelength=0.9, handleheight=0.9, borderaxespad=0.3)  # fmt: skip
        figure.subplots_adjust(left=left / WIDTH, right=0.995, top=1 - 0.4 / height,
                               bottom=0.3 / height, wspace=0.05)  # fmt: skip
    return figure


def _bars(axes: Axes, rows: list[Any], series: Mapping[str, tuple[str, str]]) -> None:
    """Draw horizontal bars, one group for each row and one colour for each series."""
    thick = 0.34
    for order, (key, (word, colour)) in enumerate(series.items()):
        for place, row in enumerate(rows):
            value, y = finite(row.get(key)), place + (order - 0.5) * (thick + 0.03)
            end = value or 0.0
            axes.barh(y, 100 * end, thick, color=colour, label=word if place == 0 else None)
            intervals = _intervals(row, key)
            for spot, (low, middle, high) in enumerate(intervals):
                at = y + (spot - (len(intervals) - 1) / 2) * thick / (len(intervals) + 1)
                axes.plot([100 * low, 100 * high], [at, at], color=INK, linewidth=1.1)
                axes.plot(100 * middle, at, "o", color=INK, markersize=2.6)
                end = max(end, high)
            axes.text(100 * end + 1.2, y, DASH if value is None else percent(value, sign=" %"),
                      va="center", size=8.5, color=MUTED if value is None else INK)  # fmt: skip
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20))
    axes.xaxis.set_major_formatter("{x:.0f} %")
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="x", color="#eef1f4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_visible(False)


def _intervals(verdict: Mapping[str, Any], key: str) -> list[tuple[float, float, float]]:
    """Return (low, value, high) of ``key`` for each sub-key that gives all three."""
    found = []
    for part in verdict.get("sub_keys") or []:
        readers = part.get("readers") or {}
        reader = readers.get(verdict.get("reader")) or next(iter(readers.values()), None) or {}
        bounds = reader.get(f"{key}_interval") or (None, None)
        low, middle, high = finite(bounds[0]), finite(reader.get(key)), finite(bounds[1])
        if low is not None and middle is not None and high is not None:
            found.append((low, middle, high))
    return found
