"""Detectors as tables and as a figure: marked encoders against clean ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssl_wm.report.drawing import ACCENT, LINE, MUTED, WIDTH, label, new_figure, png_bytes, styled
from ssl_wm.report.words import DASH, decimal, finite, p_text, percent, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.table import Table

HEIGHT = 4.6
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b2430")
Rows = tuple[list[str], list[list[str]]]


def comparison_rows(result: Mapping[str, Any]) -> Rows:
    """Return heads and rows of text, one row for each detector (and owner of queries)."""
    heads = ["detector", "marked", "clean", "ROC area", "95 %", "least p", "fixed threshold",
             "false alarms on clean"]  # fmt: skip
    rows = []
    for row in result["comparisons"]:
        area, alarms = row["roc"] or {}, row["false_alarms"]
        least = [told["least_p"] for told in row["judged"].values()]
        rows.append([
            _detector(row), str(len(row["marked"])), str(len(row["clean"])),
            decimal(area.get("area")), _interval(area.get("interval")),
            p_text(least[0] if least else None), decimal(row["threshold"]),
            DASH if alarms is None else
            f"{alarms['count']} of {alarms['clean']} ({_interval(alarms['interval'])})",
        ])  # fmt: skip
    return heads, rows


def judged_rows(result: Mapping[str, Any]) -> Rows:
    """Return heads and rows of text, one row for each marked encoder and detector."""
    heads = ["encoder", "detector", "score", "p", "group", "target of the key", "trigger works %",
             "without it %", "composites in group %", "WSR %"]  # fmt: skip
    rows = []
    for row in result["comparisons"]:
        for encoder, told in row["judged"].items():
            found = (result["found"].get(encoder) or {}).get(row["detector"]) or {}
            success, key = found.get("success") or {}, found.get("key") or {}
            wsr = [each["wsr"] for each in (result["rates"].get(encoder) or {}).values()]
            rows.append([
                printable(encoder), _detector(row), decimal(told["score"]), p_text(told["p_value"]),
                printable(found.get("name", DASH)), _yes(key.get("is_target")),
                percent(success.get("share")), percent(success.get("natural")),
                percent((found.get("composites") or {}).get("share")),
                percent(max(wsr) if wsr else None),
            ])  # fmt: skip
    return heads, rows


def query_rows(result: Mapping[str, Any]) -> Rows:
    """Return heads and rows of text: how well the owner's queries are told from natural images."""
    heads = ["detector", "queries of", "encoder", "ROC area", "refused queries %",
             "refused natural %"]  # fmt: skip
    rows = []
    for name, encoders in result["queries"].items():
        detector, _, whose = name.partition("/")
        for encoder, told in encoders.items():
            rows.append([
                detector, printable(whose), printable(encoder), decimal(told["area"]),
                percent(told.get("refused_queries")), percent(told.get("refused_natural")),
            ])  # fmt: skip
    return heads, rows


def tables_markdown(result: Mapping[str, Any]) -> str:
    """Return the three tables, what failed and what the numbers do not allow, as Markdown."""
    parts = [f"# {printable(result['title'])}", "## Marked against clean encoders"]
    parts += [_markdown(comparison_rows(result)), "## Marked encoders"]
    parts += [_markdown(judged_rows(result))]
    if result["queries"]:
        parts += ["## The owner's queries among natural images", _markdown(query_rows(result))]
    if result["failed"]:
        parts += ["## Failed"]
        parts += ["\n".join(
            f"- {printable(each['encoder'])}, {each['detector']}: {printable(each['error'])}"
            for each in result["failed"]
        )]  # fmt: skip
    if result["notes"]:
        parts += ["## Notes", "\n".join(f"- {printable(note)}" for note in result["notes"])]
    return "\n\n".join(parts) + "\n"


def terminal_lines(result: Mapping[str, Any]) -> list[RenderableType]:
    """Return what a reader is told of a benchmark, or of one suspect."""
    if "comparisons" in result:
        failed = [
            f"failed: {e['encoder']}, {e['detector']}: {e['error']}" for e in result["failed"]
        ]
        tables = [_table(comparison_rows(result)), _table(judged_rows(result))]
        return [*tables, *failed, *result["notes"], f"table: {result['out']}/table.md"]
    lines: list[RenderableType] = [detect_table(result)]
    lines += [f"not run: {name}: {why}" for name, why in result["failed"].items()]
    lines += [f"result: {result['out']}"] if "out" in result else []
    adjusted = p_text(result["adjusted_p_value"])
    return [*lines, f"smallest p times the number of detectors that ask the encoder: {adjusted}"]


def detect_table(result: Mapping[str, Any]) -> Table:
    """Return the terminal's table of one suspect: one row for each detector."""
    heads = ["detector", "score", "p", "least p", "fixed threshold", "beyond", "nulls beyond",
             "group", "trigger works %", "without it %"]  # fmt: skip
    rows = []
    for name, told in result["detectors"].items():
        success = told["success"] or {}
        beyond = DASH if told["nulls_beyond"] is None else (
            f"{told['nulls_beyond']} of {len(told['null_scores'])}"
        )  # fmt: skip
        rows.append([
            name, decimal(told["score"]), p_text(told["p_value"]), p_text(told["least_p"]),
            decimal(told["threshold"]), _yes(told["beyond"]), beyond,
            printable(told["group_name"] or DASH), percent(success.get("share")),
            percent(success.get("natural")),
        ])  # fmt: skip
    return _table((heads, rows))


def roc_figure(result: Mapping[str, Any]) -> Figure:
    """Return the ROC curves of all comparisons, and beside them their areas with intervals."""
    rows = [row for row in result["comparisons"] if row["roc"]]
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
        left.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        for place, row in enumerate(rows):
            colour = _COLOURS[place % len(_COLOURS)]
            x, y = curve(list(row["marked"].values()), list(row["clean"].values()))
            left.plot(x, y, color=colour, linewidth=1.8)
            low, high = row["roc"]["interval"]
            right.plot([low, high], [place, place], color=colour, linewidth=2.0)
            right.plot(row["roc"]["area"], place, "o", color=colour, markersize=5)
            right.text(0.0, place - 0.18, label(_detector(row), limit=40), color=colour, size=9.5,
                       va="bottom")  # fmt: skip
        left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="share of clean encoders",
                 ylabel="share of marked encoders")  # fmt: skip
        left.set_title("beyond a threshold", weight="bold", size=10.5, loc="left")
        right.axvline(0.5, color=ACCENT, linewidth=1.0)
        right.set(xlim=(0, 1.02), ylim=(max(len(rows), 1) - 0.4, -0.75), yticks=[])
        right.set_title("ROC area, 95 % interval", weight="bold", size=10.5, loc="left")
        right.grid(axis="x", color=LINE, linewidth=0.6)
        right.set_axisbelow(True)
        right.spines["left"].set_visible(False)
        figure.subplots_adjust(left=0.06, right=0.985, top=0.92, bottom=0.12, wspace=0.12)
    return figure


def roc_png(result: Mapping[str, Any]) -> bytes:
    """Return the figure as PNG; the same result gives the same bytes."""
    return png_bytes(roc_figure(result))


def curve(marked: Sequence[float], clean: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the ROC curve: shares of clean and of marked scores at or above each threshold.

    >>> curve([3.0, 1.0], [2.0, 0.0])
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    thresholds = sorted({*marked, *clean}, reverse=True)
    shares = [
        [0.0, *(sum(score >= limit for score in side) / len(side) for limit in thresholds)]
        for side in (clean, marked)
    ]
    return shares[0], shares[1]


def _detector(row: Mapping[str, Any]) -> str:
    whose = f" (queries of {printable(row['queries_of'])})" if row["queries_of"] else ""
    return f"{row['detector']}{whose}"


def _interval(bounds: Sequence[float] | None) -> str:
    low, high = bounds or (None, None)
    return DASH if finite(low) is None else f"{decimal(low)} to {decimal(high)}"


def _yes(value: bool | None) -> str:
    return DASH if value is None else "yes" if value else "no"


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1]]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _table(rows: Rows) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for head in rows[0]:
        table.add_column(head)
    for row in rows[1]:
        table.add_row(*(Text(cell) for cell in row))
    return table
