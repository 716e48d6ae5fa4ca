"""Results in, a page or a table out: the self-contained HTML report and the terminal's tables.

Nothing here reads results from disk; pages are strings, and only ``write_calibration`` writes.
All names and settings are untrusted text: escaped in HTML, never read as markup in the terminal.

``words.py`` puts numbers and verdicts into words, ``tables.py`` makes rows and the terminal's
tables of them, ``drawing.py``, ``plots.py`` and ``rank_plots.py`` the figures, ``html.py`` the
page.
"""

from __future__ import annotations

from ssl_wm.report.html import render_html
from ssl_wm.report.shown import CarrierPlot, FeatureMap, Gallery, NullPlot, ReportData
from ssl_wm.report.tables import result_table, verdict_table
from ssl_wm.report.words import verdict_sentence

__all__ = [
    "CarrierPlot",
    "FeatureMap",
    "Gallery",
    "NullPlot",
    "ReportData",
    "render_html",
    "result_table",
    "verdict_sentence",
    "verdict_table",
]
