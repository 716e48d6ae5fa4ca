"""A survival benchmark as one table, as sentences and as files; winners and losers together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.bench.survival_plan import CLEAN, UNMARKED
from ssl_wm.files import write_bytes, write_text
from ssl_wm.report.survival_plot import survival_png
from ssl_wm.report.survival_thefts import theft_of, thefts_png
from ssl_wm.report.words import DASH, count, decimal, finite, listing, p_text, percent, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = Mapping[str, Any]
HEADS = {
    "embedder": "embedder", "what": "encoder", "runs": "runs", "linear": "linear %",
    "linear_loss": "linear loss", "knn": "kNN %", "knn_loss": "kNN loss", "p_value": "p",
    "detected": "detected", "contrasts": "contrast of sub-keys", "ranks": "their ranks",
    "wsr": "WSR %", "wfpr": "WFPR %", "compatibility_all": "cos to clean",
    "compatibility_outside": "outside targets", "fidelity": "fidelity",
    "agreement": "kNN agree %", "seconds": "made in s",
}  # fmt: skip
WORDS = ("embedder", "what")
BRIEF = (
    "embedder", "what", "linear", "linear_loss", "knn_loss", "p_value", "detected", "wsr", "wfpr",
)  # fmt: skip
OUTCOMES = {True: "holds", False: "FAILS", None: "open"}


def points(value: object) -> str:
    """Return points of accuracy with two decimals and a true minus sign.

    >>> points(-0.004), points(1.25)
    ('0.00', '1.25')
    """
    number = finite(value)
    return DASH if number is None else f"{round(number, 2) + 0.0:.2f}".replace("-", "\u2212")


def fine_percent(value: object) -> str:
    """Return a share in per cent with two decimals.

    >>> fine_percent(0.66284)
    '66.28'
    """
    number = finite(value)
    return DASH if number is None else f"{100 * number:.2f}"


SHOWN: dict[str, Callable[[object], str]] = {
    "linear": fine_percent, "linear_loss": points, "knn": fine_percent, "knn_loss": points,
    "p_value": p_text, "wsr": percent, "wfpr": percent, "compatibility_all": decimal,
    "compatibility_outside": decimal, "fidelity": decimal, "agreement": percent,
    "seconds": count,
}  # fmt: skip


def row_words(row: Result, *, spread: bool = True) -> dict[str, str]:
    """Return one row of the result as text, by the names in ``HEADS``.

    Of several runs a value is the mean (of p the median) with the least and the largest behind
    it; ``spread`` leaves these away.
    """
    told = {
        "embedder": "(control)" if row["embedder"] == CLEAN else printable(row["embedder"]),
        "what": what_of(row),
        "runs": f"{row['measured']} of {row['planned']}",
        "detected": "{} of {}".format(*row["detected"]) if row.get("detected") else DASH,
        "contrasts": _of_sub_keys(row["contrasts"], decimal, spread=spread),
        "ranks": _of_sub_keys(row["ranks"], count, spread=spread),
    }
    for name, show in SHOWN.items():
        told[name] = _spread(row[name], show, spread=spread)
    if row["equally_long"] is False:
        told["linear_loss"] += "*" if row["linear_loss"] else ""
        told["knn_loss"] += "*" if row["knn_loss"] else ""
    if not row["measured"] and row["errors"]:
        told["linear"] = "failed"
    return told


def what_of(row: Result) -> str:
    """Return which encoder of its embedder a row is about, in words."""
    if row["attack"] is None:
        if row["kind"] == "clean":
            return "clean"
        return "fine-tuned, unmarked" if row["method"] == UNMARKED else "marked"
    return f"stolen: {theft_of(row)}"


def _spread(found: Result | None, show: Callable[[object], str], *, spread: bool) -> str:
    if not found:
        return DASH
    text = show(found["value"])
    if len(found["runs"]) < 2 or not spread:
        return text
    return f"{text} [{show(found['low'])}, {show(found['high'])}]"


def _of_sub_keys(
    by_run: Mapping[Any, Sequence[float]], show: Callable[[object], str], *, spread: bool
) -> str:
    """Return each sub-key's value; of several runs the mean with the extremes of all."""
    values = [value for each in by_run.values() for value in each]
    if not values:
        return DASH
    if len(by_run) == 1:
        return ", ".join(show(value) for value in values)
    text = show(sum(values) / len(values))
    return f"{text} [{show(min(values))}, {show(max(values))}]" if spread else text


def bar_line(bar: Result) -> str:
    """Return one bar in words, with every cell that fails it by name and value."""
    show = {"p": p_text, "share": percent, "points": points, "count": count}[bar["unit"]]
    unit = {"share": " %", "points": " points"}.get(bar["unit"], "")
    sign = "at least" if bar["least"] else "at most"
    share = "" if bar["share"] == 1 else f" in {percent(bar['share'])} % of cells"
    limit = "" if bar["unit"] == "count" else f" {sign} {show(bar['limit'])}{unit}{share}"
    outcome = f"{OUTCOMES[bar['holds']]}, {bar['held']} of {bar['of']}"
    line = f"{bar['embedder']}: {bar['bar']}{limit}: {outcome}"
    if bar["waiting"]:
        line += f", {len(bar['waiting'])} not known"
    fails = [
        f"{each['cell']} ({'failed' if each['value'] is None else show(each['value'])})"
        for each in bar["fails"]
    ]
    if bar["unit"] == "count":
        fails = [each["cell"] for each in bar["fails"]]
    return printable(f"{line}. Not within it: {'; '.join(fails)}" if fails else line)


def notes(result: Result) -> list[str]:
    """Return what the reader of the table has to know, and which cells failed."""
    runs = result["runs"]
    shared = result["shared_clean"]
    lines = [
        f"all runs share the clean encoder {shared}: the spread is that of keys, marking and "
        "thefts, not of pretraining"
        if shared
        else "every run has a clean encoder, a key and seeds of its own"
    ]
    if runs > 1:
        lines.append("[least, largest] over runs; the value is the mean, of p the median")
    else:
        lines.append("one run: nothing is known of the spread")
    lines.append(
        "loss, in points: of a marked encoder against the unmarked fine-tuning, of a copy against "
        "what the same thief stole from the clean encoder (the control)"
    )
    if any(row["equally_long"] is False for row in result["rows"]):
        lines.append("* the unmarked fine-tuning it is compared with was trained in another way")
    if result["pending"]:
        lines.append(f"{result['pending']} of {result['cells']} cells are not done yet")
    lines += [f"{each['cell']} failed: {each['error']}" for each in result["failed"]]
    return [printable(line) for line in lines]


def winner_line(result: Result) -> str:
    """Return which embedders meet all bars, and on how much that rests."""
    told = []
    for name in result["winners"]:
        own = [row for row in result["rows"] if row["embedder"] == name]
        copies = sum(row["measured"] for row in own if row["kind"] == "copy")
        runs = sum(row["measured"] for row in own if row["kind"] == "victim")
        told.append(f"{name} (runs: {runs}, copies: {copies})")
    if told:
        return printable(f"all bars hold for {listing(told)}")
    return "no embedder is known to meet all bars"


def survival_markdown(result: Result) -> str:
    """Return the table with notes and bars as Markdown."""
    heads = list(HEADS)
    lines = [f"# {_cell(result['title'])}", "", f"{winner_line(result)}.", ""]
    lines.append("| " + " | ".join(HEADS[name] for name in heads) + " |")
    lines.append("|" + "|".join("---" if name in WORDS else "---:" for name in heads) + "|")
    for row in result["rows"]:
        told = row_words(row)
        lines.append("| " + " | ".join(_cell(told[name]) for name in heads) + " |")
    lines += ["", *(f"- {_cell(note)}" for note in notes(result))]
    lines += ["", "## Bars", "", *(f"- {_cell(bar_line(bar))}" for bar in result["bars"])]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    for special in ("\\", "|", "*", "<", "`", "_"):
        text = text.replace(special, f"\\{special}")
    return printable(text)


def survival_lines(result: Result) -> Iterator[RenderableType]:
    """Yield what the terminal shows: the table in brief, the bars and the notes."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in BRIEF:
        words = name in WORDS
        table.add_column(HEADS[name], justify="left" if words else "right", no_wrap=not words)
    for row in result["rows"]:
        told = row_words(row, spread=False)
        table.add_row(*(Text(told[name]) for name in BRIEF))
    yield table
    yield from (bar_line(bar) for bar in result["bars"])
    yield winner_line(result)
    yield from notes(result)
    yield f"files: {', '.join(result['files'])}"


def write_table(result: Result, folder: Path) -> Path:
    """Write ``table.md`` into ``folder`` and return its path.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = folder / "table.md"
    write_text(path, survival_markdown(result))
    return path


def write_survival(result: Result, folder: Path) -> list[str]:
    """Write ``table.md`` and, where a copy was measured, two figures; return the paths.

    Raises:
        OutputError: the folder cannot be written to.
    """
    paths = [write_table(result, folder)]
    if any(row["kind"] == "copy" and row["measured"] for row in result["rows"]):
        for name, drawn in (("survival.png", survival_png), ("thefts.png", thefts_png)):
            paths.append(folder / name)
            write_bytes(paths[-1], drawn(result))
    return [str(path) for path in paths]
