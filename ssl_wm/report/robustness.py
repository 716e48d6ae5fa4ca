"""A robustness benchmark as tables and sentences, the attempts that win first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.bench.frontier import BEATS, OUTCOMES
from ssl_wm.bench.robustness_plan import CONTROL, strength_text
from ssl_wm.files import write_bytes, write_text
from ssl_wm.report.robustness_plot import frontier_png
from ssl_wm.report.words import DASH, count, decimal, finite, listing, p_text, percent, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = Mapping[str, Any]
HEADS = (
    "encoder", "attempt", "outcome", "lost at", "loss, points", "p", "not detected", "largest loss",
)  # fmt: skip
ROW_HEADS = (
    "encoder", "attempt", "strength", "p", "statistic", "WSR %", "WFPR %", "linear %", "loss",
    "kNN %", "kNN loss", "readings", "s",
)  # fmt: skip


def frontier_rows(result: Result) -> list[list[str]]:
    """Return one row of text for each attempt and encoder, by ``HEADS``; the winners first."""
    rows = []
    for front in result["frontier"]:
        least = front["cheapest"]
        outcome = OUTCOMES[front["outcome"]] + (" (close)" if front["close"] else "")
        rows.append([
            printable(front["encoder"]), printable(front["attempt"]), outcome,
            DASH if least is None else strength_text(least["strengths"]),
            DASH if least is None else _loss(least["loss"], least["interval"]),
            DASH if least is None else p_text(least["p_value"]),
            f"{front['lost']} of {front['results']}", _points(front["largest_loss"]),
        ])  # fmt: skip
    return rows


def _points(value: object) -> str:
    """Return points of accuracy with one decimal and a true minus sign.

    >>> _points(-0.04), _points(12.34)
    ('0.0', '12.3')
    """
    number = finite(value)
    return DASH if number is None else f"{round(number, 1) + 0.0:.1f}".replace("-", "\u2212")


def _loss(value: object, interval: Sequence[float] | None) -> str:
    low, high = interval or (None, None)
    if finite(low) is None or finite(high) is None:
        return _points(value)
    return f"{_points(value)} [{_points(low)}, {_points(high)}]"


def summary_lines(result: Result) -> list[str]:
    """Return the findings in sentences: who wins against the mark, and what the control says."""
    names = sorted({front["attempt"] for front in result["frontier"]})
    bar, reader = f"{result['bar']:g}", {"linear": "linear probe", "knn": "kNN"}
    cost = f"{bar} points of utility ({reader[result['judged_by']]})"
    beaten = list(result["winners"])
    lines = [
        f"{len(beaten)} of {len(names)} attempts lose the mark for less than {cost}: "
        f"{listing(beaten)}"
        if beaten
        else f"none of {len(names)} attempts loses the mark for less than {cost}"
    ]
    unmarked = [
        name for name, read in result["untouched"].items()
        if name != CONTROL and read["p_value"] > result["alpha"]
    ]  # fmt: skip
    if unmarked:
        lines.append(f"not detected before any attempt: {listing(unmarked)}")
    if result["again"] is not None:
        lines.append(_again_line(result["again"]))
    for what, told in (("the owner's key", "own"), ("fresh random keys", "fresh")):
        rate = result["control"][told]
        if rate is not None:
            lines.append(_rate_line(rate, what, alpha=result["alpha"]))
    if result["left"]:
        lines.append(f"{result['left']} cells are not run yet, so no outcome is final")
    if result["failed"]:
        lines.append(f"{len(result['failed'])} cells failed; result.json says why")
    lines += [f"{name} was left out: it {why}" for name, why in result["skipped"].items()]
    return [printable(line) for line in lines]


def _again_line(again: Result) -> str:
    first, second = again["by"]
    return (
        f"{again['results']} of {again['of']} results were read again, by {second} in place of "
        f"{first}, as the first reading missed the mark: {again['detected']} of them are detected "
        "(the two readings share alpha, and p is divided by its share)"
    )


def _rate_line(rate: Result, what: str, *, alpha: float) -> str:
    low, high = rate["interval"]
    return (
        f"false detections on the clean encoder by {what}: {count(rate['count'])} of "
        f"{count(rate['total'])} decisions, exact 99 % interval {percent(low)} to "
        f"{percent(high)} %; alpha = {alpha:g} lies {rate['alpha_is']} it"
    )


def robustness_lines(result: Result) -> list[RenderableType]:
    """Return what the terminal shows: the frontier as a table, then the findings."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for head in HEADS:
        words = head in ("encoder", "attempt", "outcome")
        table.add_column(head, justify="left" if words else "right", no_wrap=not words)
    for row, front in zip(frontier_rows(result), result["frontier"], strict=True):
        style = "bold red" if front["outcome"] == BEATS else ""
        table.add_row(*(Text(text, style=style) for text in row))
    files = f"files: {', '.join(result['files'])}"
    return [table, *summary_lines(result), files]


def robustness_markdown(result: Result) -> str:
    """Return findings, frontier, untouched encoders and all rows as Markdown."""
    rows = [
        [
            printable(row["encoder"]), printable(row["attempt"]),
            strength_text(row["strengths"]), p_text(row["p_value"]), decimal(row["statistic"]),
            percent(row["wsr"]), percent(row["wfpr"]), percent(row["linear"]),
            _loss(row["linear_loss"], row["linear_loss_interval"]), percent(row["knn"]),
            _loss(row["knn_loss"], row["knn_loss_interval"]), str(row["readings"]),
            f"{row['seconds']['all']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    before = [
        [
            printable(name), p_text(read["p_value"]), decimal(read["statistic"]),
            percent(read["wsr"]), percent(read["wfpr"]), percent(read["linear"]),
            percent(read["knn"]),
        ]
        for name, read in result["untouched"].items()
    ]  # fmt: skip
    failed = [
        f"- {printable(each['encoder'])}, {printable(each['attempt'])} "
        f"{strength_text(each['strengths'])}: {printable(each['error'])}"
        for each in result["failed"]
    ]
    parts = [
        f"# {printable(result['title'])}", "\n".join(f"- {line}" for line in summary_lines(result)),
        "## Frontier", _markdown(HEADS, frontier_rows(result)),
        "## Before any attempt",
        _markdown(("encoder", "p", "statistic", "WSR %", "WFPR %", "linear %", "kNN %"), before),
        "## All results", _markdown(ROW_HEADS, rows),
        *(["## Failed", "\n".join(failed)] if failed else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def write_robustness(result: Result, folder: Path) -> list[str]:
    """Write ``table.md`` and ``frontier.png`` into ``folder`` and return the paths.

    Raises:
        OutputError: the folder cannot be written to.
    """
    table, figure = write_table(result, folder), folder / "frontier.png"
    write_bytes(figure, frontier_png(result))
    return [str(table), str(figure)]


def write_table(result: Result, folder: Path) -> Path:
    """Write ``table.md`` into ``folder`` and return its path.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = folder / "table.md"
    write_text(path, robustness_markdown(result))
    return path
