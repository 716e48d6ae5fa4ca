"""A benchmark of thefts as rows of text, as tables and as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.files import write_bytes, write_text
from ssl_wm.report.drawing import png_bytes
from ssl_wm.report.extraction_curves import extraction_figure
from ssl_wm.report.words import DASH, count, decimal, p_text, percent, printable

if TYPE_CHECKING:
    from rich.table import Table

BELOW, RELATIONS = "\u2193", "*"
Row = Mapping[str, Any]
HEADS = {
    "attack": "attack", "budget": "images", "arch": "surrogate", "pool": "pool",
    "fidelity": "fidelity", "agreement": "agree %", "linear": "linear %", "knn": "kNN %",
    "wsr": "WSR %", "wfpr": "WFPR %", "p_value": "p", "detected": "detected",
    "unique": "unique", "repeated": "repeated", "billed": "billed", "cost": "price",
}  # fmt: skip


def row_words(row: Row, *, intervals: bool) -> dict[str, str]:
    """Return one row of the result as text, by the names in ``HEADS``.

    A value below plain cosine's by more than the noise has an arrow behind it; an attack that
    does not see the victim's axes has an asterisk. What is missing is a dash.
    """
    calls = row.get("calls") or {}
    star = RELATIONS if row.get("relational") else ""
    told = {
        "attack": printable(row["attack"]) + star, "budget": count(row["budget"]),
        "arch": printable(row["arch"]), "pool": printable(row["pool"]),
        **{name: count(calls.get(name)) for name in ("unique", "repeated", "billed")},
        "cost": DASH if row.get("cost") is None else f"{row['cost']:,.2f}",
        "detected": "{} of {}".format(*row["detected"]) if row.get("detected") else DASH,
    }  # fmt: skip
    for name in ("fidelity", "agreement", "linear", "knn", "wsr", "wfpr", "p_value"):
        show = {"fidelity": decimal, "p_value": p_text}.get(name, percent)
        told[name] = _with_interval(row.get(name), show, intervals=intervals)
        told[name] += BELOW if name in (row.get("below") or []) else ""
    if row.get("status") == "failed":
        told["fidelity"] = "failed"
    return told


def _with_interval(
    estimate: Row | None, show: Callable[[object], str], *, intervals: bool
) -> str:  # fmt: skip
    if not estimate:
        return DASH
    low, high = estimate.get("interval") or (None, None)
    text = show(estimate.get("value"))
    return f"{text} [{show(low)}, {show(high)}]" if intervals and low is not None else text


def _victim_row(result: Row) -> dict[str, Any]:
    return {"attack": "(victim)", "budget": None, "arch": DASH, "pool": DASH, **result["victim"]}


def _shown(result: Row) -> list[str]:
    """Return the columns that have something to say."""
    rows = result["rows"]
    varied = {name: len({row[name] for row in rows}) > 1 for name in ("arch", "pool")}
    marked = any(row.get("wsr") for row in [*rows, result["victim"]])
    priced = any(row.get("cost") is not None for row in rows)
    again = any((row.get("calls") or {}).get("repeated") for row in rows)
    missing = {
        *(name for name, more in varied.items() if not more),
        *(() if marked else ("wsr", "wfpr", "p_value", "detected")),
        *(() if priced else ("cost",)),
        *(() if again else ("repeated", "unique")),
    }
    return [name for name in HEADS if name not in missing]


def extraction_notes(result: Row) -> list[str]:
    """Return what the marks in the table mean, and why cells failed."""
    rows = result["rows"]
    notes = []
    if any(row["below"] for row in rows):
        notes.append(f"{BELOW} {result['rule']}; not corrected for the number of comparisons")
    if any(row["relational"] for row in rows):
        notes.append(f"{RELATIONS} does not see the victim's axes, so its cosine means little")
    failed = [(cell, why) for row in rows for cell, why in _errors(row)]
    return [*notes, *(f"{cell} failed: {why}" for cell, why in failed)]


def _errors(row: Row) -> list[tuple[str, str]]:
    where = f"{row['attack']}, {count(row['budget'])} images, {row['arch']}, {row['pool']}"
    return [(printable(f"{where}, seed {s}"), printable(e)) for s, e in row["errors"].items()]


def extraction_table(result: Row) -> Table:
    """Return the terminal's table: a row for each attack, budget, surrogate and pool."""
    from rich.table import Table
    from rich.text import Text

    names = [name for name in _shown(result) if name not in ("detected", "unique", "repeated")]
    table = Table()
    for name in names:
        words = name in ("attack", "arch", "pool")
        table.add_column(HEADS[name], justify="left" if words else "right", no_wrap=not words)
    for row in [_victim_row(result), *result["rows"]]:
        told = row_words(row, intervals=False)
        table.add_row(*(Text(told[name]) for name in names))
    return table


def extraction_markdown(result: Row) -> str:
    """Return the table with all intervals and its notes as Markdown."""
    names = _shown(result)
    lines = [f"# {_cell(result['title'])}", ""]
    lines.append("| " + " | ".join(HEADS[name] for name in names) + " |")
    texts = ("attack", "arch", "pool")
    lines.append("|" + "|".join("---" if name in texts else "---:" for name in names) + "|")
    for row in [_victim_row(result), *result["rows"]]:
        told = row_words(row, intervals=True)
        lines.append("| " + " | ".join(_cell(told[name]) for name in names) + " |")
    how = dict.fromkeys(
        f"{HEADS[name]}: {row[name]['how']}"
        for row in result["rows"]
        for name in ("fidelity", "agreement", "linear", "knn", "wsr", "wfpr", "p_value")
        if row.get(name)
    )
    if how:
        lines += ["", f"95 % intervals. {'; '.join(how)}."]
    for note in extraction_notes(result):
        lines += ["", _cell(note)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    for special in ("\\", "|", "*", "<", "`"):
        text = text.replace(special, f"\\{special}")
    return printable(text)


def write_extraction(result: Row, out: Path) -> list[Path]:
    """Write table.md and, where anything was measured, curves.png to ``out``; return the paths.

    Raises:
        OutputError: the folder cannot be written to.
    """
    paths = [out / "table.md"]
    write_text(paths[0], extraction_markdown(result))
    if any(row["status"] != "failed" for row in result["rows"]):
        paths.append(out / "curves.png")
        write_bytes(paths[1], png_bytes(extraction_figure(result)))
    return paths
