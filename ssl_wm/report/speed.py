"""A speed benchmark as a table, sentences and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.files import write_bytes, write_text
from ssl_wm.report.speed_plot import amount, speed_png
from ssl_wm.report.words import DASH, count, decimal, finite, percent, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = Mapping[str, Any]
HEADS = ("measurement", "ours", "beside", "ratio", "range", "asked for", "met", "same result")
MEMORY_HEADS = (
    "stage", "inputs, MB", "baseline, MB", "peak, MB", "above baseline, MB", "to inputs", "limit",
)  # fmt: skip


def ratio_cases(result: Result) -> dict[str, Result]:
    """Return the measurements of two sides that were made, by name."""
    return {name: case for name, case in result["cases"].items() if "ratio" in case}


def memory_stages(result: Result) -> dict[str, Result]:
    """Return the stages whose memory was measured, by name."""
    stages = result["cases"].get("memory", {}).get("stages", {})
    return {name: told for name, told in stages.items() if "error" not in told}


def asked_for(case: Result) -> str:
    """Return the bar in words.

    >>> asked_for({"compared": "time", "bar": 0.15}), asked_for({"compared": "rate", "bar": 3.0})
    ('at most 0.15', 'at least 3')
    """
    return f"{'at most' if case['compared'] == 'time' else 'at least'} {case['bar']:g}"


def speed_rows(result: Result) -> list[list[str]]:
    """Return one row of text for each measurement of two sides, by ``HEADS``."""
    rows = []
    for name, case in ratio_cases(result).items():
        of, same = case["ratio"], case["checks"].get("same")
        sides = [
            f"{printable(side)}: {amount(told['rate']['median'])} {case['unit']}/s"
            for side, told in case["sides"].items()
        ]
        rows.append([
            printable(name), *sides, amount(of["median"]),
            f"{amount(of['low'])} to {amount(of['high'])}", asked_for(case),
            "yes" if case["met"] else "no", DASH if same is None else "yes" if same else "no",
        ])  # fmt: skip
    return rows


def memory_rows(result: Result) -> list[list[str]]:
    """Return one row of text for each stage, by ``MEMORY_HEADS``."""

    def megabytes(value: object) -> str:
        number = finite(value)
        return DASH if number is None else f"{number / 1e6:,.{0 if number >= 1e7 else 2}f}"

    rows = []
    for name, told in memory_stages(result).items():
        limit = told.get("limit_bytes")
        judged = "met" if told.get("met") else "not met"
        rows.append([
            printable(name), megabytes(told["input_bytes"]), megabytes(told["baseline_bytes"]),
            megabytes(told["peak_bytes"]), megabytes(told["above_baseline_bytes"]),
            amount(told["ratio"]), DASH if limit is None else f"{megabytes(limit)}, {judged}",
        ])  # fmt: skip
    return rows


def speed_lines(result: Result) -> list[str]:
    """Return what a reader must know besides the tables: where, how often, what failed."""
    at, device = result["machine"], result["settings"]["device"]
    on = at["cpu"] if device == "cpu" else result["versions"]["device"]
    lines = [
        f"{on}: {at['cores']} cores, PyTorch with {at['torch_threads']} threads, "
        f"{result['versions']['torch']}, lightly {result['versions']['lightly']}; networks on "
        f"{device}; before the run, {_loads(result)} processes wanted a core",
        f"ratio: the median of {result['repeats']} repeats, in each of which both sides were "
        "measured one after the other; range: the lowest and the highest",
    ]
    if result["quick"]:
        lines.append("quick sizes: they show that everything runs, the ratios are no results")
    lines += [*_training_lines(result), *_neighbour_lines(result), *_probe_lines(result)]
    stages = result["cases"].get("memory", {}).get("stages", {})
    lines += [f"{name} failed: {result['cases'][name]['error']}" for name in result["failed"]]
    lines += [
        f"memory of {name} was not measured: {told['error']}"
        for name, told in stages.items()
        if "error" in told
    ]
    return [printable(line) for line in lines]


def _loads(result: Result) -> str:
    found = [finite(case.get("load_before_run")) for case in result["cases"].values()]
    known = sorted({load for load in found if load is not None})
    return " and ".join(map(decimal, known)) or DASH


def _training_lines(result: Result) -> list[str]:
    case = ratio_cases(result).get("training")
    if case is None or "gflop_per_image" not in case["checks"]:
        return []
    checks = case["checks"]
    reached = case["sides"]["ours"]["rate"]["median"] * checks["gflop_per_image"] / 1e3
    line = (
        f"training: {decimal(checks['gflop_per_image'])} GFLOP per image pair and step, "
        f"{decimal(reached)} TFLOP/s reached"
    )
    most = checks.get("matmul_tflops")
    if most:
        line += f", {percent(reached / most)} % of bfloat16 matrix products ({decimal(most)})"
    return [line]


def _neighbour_lines(result: Result) -> list[str]:
    case = ratio_cases(result).get("knn")
    if case is None:
        return []
    told, of = case["checks"], case["settings"]["queries"]
    return [
        f"knn: {count(told['identical_neighbours'])} of {count(of)} queries have identical "
        f"neighbours, {count(told['tied_neighbours'])} differ in ties of float32, "
        f"{count(told['other_neighbours'])} otherwise; {count(told['identical_classes'])} are "
        f"given the same class, {count(told['tied_classes'])} are tied votes, "
        f"{count(told['other_classes'])} differ"
    ]


def _probe_lines(result: Result) -> list[str]:
    case = ratio_cases(result).get("probe")
    if case is None:
        return []
    told = case["checks"]
    return [
        f"probe: accuracy {percent(told['accuracy_ours'])} %, scikit-learn's "
        f"{percent(told['accuracy_scikit_learn'])} %"
    ]


def terminal_lines(result: Result) -> list[RenderableType]:
    """Return what the terminal shows: a table of ratios, one of memory, then the notes."""
    shown: list[RenderableType] = []
    for heads, rows in ((HEADS, speed_rows(result)), (MEMORY_HEADS, memory_rows(result))):
        if rows:
            shown.append(_table(heads, rows))
    return [*shown, *speed_lines(result), f"files: {', '.join(result['files'])}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, head in enumerate(heads):
        words = place == 0 or head in ("ours", "beside", "asked for", "limit")
        table.add_column(head, justify="left" if words else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def speed_markdown(result: Result) -> str:
    """Return tables, notes and what each side was set to as Markdown."""
    settings = [
        f"- {name}: " + printable(_told(case["settings"]))
        for name, case in ratio_cases(result).items()
    ]
    memory = memory_rows(result)
    parts = ["# Speed, side by side", "\n".join(f"- {line}" for line in speed_lines(result))]
    if settings:
        parts += [_markdown(HEADS, speed_rows(result))]
    if memory:
        parts += ["## Memory", _markdown(MEMORY_HEADS, memory)]
    if settings:
        parts += ["## Settings", "\n".join(settings)]
    versions = [f"{name} {version}" for name, version in result["versions"].items()]
    parts += ["## Versions", ", ".join(map(printable, versions))]
    return "\n\n".join(parts) + "\n"


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} ({_told(each)})" if isinstance(each, Mapping) else f"{name} {_told(each)}"
            for name, each in value.items()
        )
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def write_speed(result: Result, folder: Path) -> list[str]:
    """Write ``speed.md`` and ``speed.png`` into ``folder`` and return the paths.

    Raises:
        OutputError: the folder cannot be written to.
    """
    table, figure = folder / "speed.md", folder / "speed.png"
    write_text(table, speed_markdown(result))
    write_bytes(figure, speed_png(ratio_cases(result), memory_stages(result)))
    return [str(table), str(figure)]
