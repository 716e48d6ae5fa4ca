"""A drawing surface for the report's figures: one style, no window, the same bytes each time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ssl_wm.errors import VerificationError
from ssl_wm.report.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT = "#1b2430", "#5a6572", "#d9dee4", "#d55e00"
WIDTH = 10.8  # inches; the page shows it about 1,080 pixels wide
_FACES = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, Arial, 'Liberation Sans', sans-serif"
)
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so text is measured alike everywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "ssl-wm",
    "svg.fonttype": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with our settings, whatever the reader's own are, and put those back after."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches that no window or pyplot owns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)
    return figure


def panels_of(
    figure: Figure, lines: int, columns: int, *, used: int, sharey: bool = False
) -> list[Axes]:
    """Return the first ``used`` panels of a grid; the others are left blank."""
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=sharey).flat)
    for axes in panels[used:]:
        axes.set_axis_off()
    return panels[:used]


def columns_for(panels: int) -> int:
    """Return in how many columns so many panels stand, so that few places stay blank.

    >>> [columns_for(panels) for panels in (1, 2, 3, 4, 5, 8)]
    [1, 2, 3, 4, 3, 4]
    """
    return min(panels, 4 if panels in (4, 7, 8) else 3)


def need(parts: Mapping[str, Any], what: str) -> None:
    """Refuse to draw nothing.

    Raises:
        VerificationError: there is no part.
    """
    if not parts:
        raise VerificationError(f"expected {what} of at least one encoder, got none: leave it out")


def svg_bytes(figure: Figure) -> bytes:
    """Return ``figure`` as SVG: no date, fixed ids, text in the reader's own sans-serif face."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with styled():
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    faced = re.sub(r"'DejaVu Sans'(, sans-serif)?(?=[;\"])", _FACES, buffer.getvalue().decode())
    return faced.encode()


def png_bytes(figure: Figure) -> bytes:
    """Return ``figure`` as PNG that does not say which version drew it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with styled():
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def label(text: object, *, limit: int = 26) -> str:
    r"""Return ``text`` as one short line without formulas; a glyph the font lacks is a box.

    >>> label("a $x$ name"), label("abcdefgh", limit=5)
    ('a \\$x\\$ name', 'abcd…')
    """
    from matplotlib import font_manager

    line = printable(text)
    if len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    face = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    seen = "".join(char if face.get_char_index(ord(char)) else "\u25a1" for char in line)
    return seen.replace("$", r"\$")
