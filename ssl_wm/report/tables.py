"""Results as rows of text: tables for the terminal, and the same rows for the HTML report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ssl_wm.report.words import (
    DASH,
    DECISIONS,
    count,
    decimal,
    decision_of,
    finite,
    p_text,
    percent,
    printable,
)

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"detected": "bold red", "not_detected": "bold cyan", "inconclusive": "bold yellow"}
_MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("margin", "margin", decimal),
    ("null_margin", "null margin", decimal),
    ("statistic", "statistic", decimal),
    ("p_value", "p", p_text),
    ("rank", "rank", count),
    ("decoys", "decoys", count),
)


def result_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row of text for each encoder, in the order of ``result``.

    Raises:
        VerificationError: a decision is unknown.
    """
    utility, verdicts = result.get("utility") or {}, result.get("verdicts") or {}
    rows = []
    for name in dict.fromkeys([*utility, *verdicts]):
        use, verdict = utility.get(name) or {}, verdicts.get(name) or {}
        decision = decision_of(name, verdict) if verdict else ""
        rows.append(
            {
                "name": printable(name),
                "linear": percent(use.get("linear")),
                "knn": percent(use.get("knn")),
                "decision": decision,
                "told": DECISIONS[decision].lower() if verdict else DASH,
                "p": p_text(verdict.get("p_value")),
                "wsr": percent(verdict.get("wsr")),
                "wfpr": percent(verdict.get("wfpr")),
            }
        )
    return rows


def result_table(result: Mapping[str, Any]) -> Table:
    """Return the terminal's table of a result: one row for each encoder.

    Columns: encoder, linear probe and kNN accuracy (per cent), decision, p-value, WSR and WFPR
    (per cent). What is missing is a dash.

    Raises:
        VerificationError: a decision is unknown.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("encoder")
    for head in ("linear %", "kNN %"):
        table.add_column(head, justify="right")
    table.add_column("decision")
    for head in ("p", "WSR %", "WFPR %"):
        table.add_column(head, justify="right")
    for row in result_rows(result):
        told = Text(row["told"], style=_STYLES.get(row["decision"], ""))
        table.add_row(Text(row["name"]), row["linear"], row["knn"], told, row["p"], row["wsr"],
                      row["wfpr"])  # fmt: skip
    return table


def sub_key_rows(verdicts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of text, one row for each encoder's sub-key (encoder and number first).

    Every reader that any sub-key has gives two columns, WSR and WFPR with their intervals.
    """
    parts = [
        (name, number, part)
        for name, verdict in verdicts.items()
        for number, part in enumerate(verdict.get("sub_keys") or [], start=1)
    ]
    readers = list(dict.fromkeys(key for *_, part in parts for key in part.get("readers") or {}))
    heads = ["encoder", "sub-key", *(word for _, word, _ in _MEASURES)]
    heads += [f"{rate} %, {printable(key)}" for key in readers for rate in ("WSR", "WFPR")]
    rows = []
    for name, number, part in parts:
        row = [printable(name), str(number), *(show(part.get(key)) for key, _, show in _MEASURES)]
        for key in readers:
            reader = (part.get("readers") or {}).get(key) or {}
            row += [_with_interval(reader, rate) for rate in ("wsr", "wfpr")]
        rows.append(row)
    return heads, rows


def _with_interval(reader: Mapping[str, Any], rate: str) -> str:
    """Return "91.2 [88.0, 93.9]", or the rate alone when it has no interval."""
    low, high = reader.get(f"{rate}_interval") or (None, None)
    told = percent(reader.get(rate))
    if finite(low) is None or finite(high) is None:
        return told
    return f"{told} [{percent(low)}, {percent(high)}]"


def verdict_table(verdict: Mapping[str, Any]) -> Table:
    """Return the terminal's table of one verdict: one column for each sub-key.

    The title tells decision, p-value, limit, WSR and WFPR; the caption is the verdict's reason.

    Raises:
        VerificationError: the decision is unknown.
    """
    from rich.table import Table
    from rich.text import Text

    decision = decision_of("suspect", verdict)
    title = Text(DECISIONS[decision], style=_STYLES[decision])
    title.append(
        f"  p = {p_text(verdict.get('p_value'))} (limit {p_text(verdict.get('alpha'))})  "
        f"WSR {percent(verdict.get('wsr'), sign=' %')}  "
        f"WFPR {percent(verdict.get('wfpr'), sign=' %')}",
        style="not bold default",
    )
    reason = Text(printable(verdict["reason"])) if verdict.get("reason") else None
    table = Table(title=title, caption=reason, title_justify="left", caption_justify="left",
                  min_width=title.cell_len)  # fmt: skip
    heads, rows = sub_key_rows({"": verdict})
    table.add_column("")
    for row in rows:
        table.add_column(f"sub-key {row[1]}", justify="right")
    for place, head in enumerate(heads[2:] if rows else [], start=2):
        table.add_row(Text(head), *(Text(row[place]) for row in rows))
    return table


def setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return settings as (group, [(name, value)]), deeper levels joined by dots."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            groups.setdefault(printable(name), []).extend(_flat(value, ""))
        else:
            groups.setdefault("run", []).append((printable(name), _value(value)))
    return [(group, pairs) for group, pairs in groups.items() if pairs]


def _flat(settings: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
    pairs = []
    for name, value in settings.items():
        path = f"{before}{printable(name)}"
        pairs += _flat(value, f"{path}.") if isinstance(value, Mapping) else [(path, _value(value))]
    return pairs


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or DASH
    if isinstance(value, bool | int):
        return str(value)
    if value is None or isinstance(value, float):
        number = finite(value)
        return DASH if number is None else f"{number:.10g}"
    return printable(value) or DASH
