"""What a person or a program gets to see of a command: results, warnings, errors, exit codes."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import typer

from ssl_wm.errors import SslWmError

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "ssl-wm"
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def tell(kind: str, message: object) -> None:
    """Print ``ssl-wm: KIND: MESSAGE`` as one line on standard error."""
    line = " ".join(str(message).split())
    print(f"{NAME}: {kind}: {line}" if kind else f"{NAME}: {line}", file=sys.stderr)


class _OneLine(logging.Handler):
    """Log records as ``ssl-wm: warning: MESSAGE`` on whatever standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record's message."""
        tell(record.levelname.lower(), record.getMessage())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show this package's warnings in one line each, and no Python warnings of libraries.

    Python warnings come back with ``python -W default`` or ``PYTHONWARNINGS``.
    """
    logger, handler = logging.getLogger("ssl_wm"), _OneLine(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = lambda *args, **kwargs: None
            yield
    finally:
        logger.removeHandler(handler)


def run_app(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command in ``arguments`` and return the exit code (``guarded``)."""
    code = guarded(lambda: app(arguments, prog_name=NAME, standalone_mode=False))
    if code == 130:
        tell("", interrupted(arguments))
    return code


def guarded(run: Callable[[], object]) -> int:
    """Call ``run`` and return the exit code: the number that it returned, if it did, or 0.

    Bad input and a full disk give one line on standard error and 2, an interruption 130;
    any other exception is a mistake in the program and passes through.
    """
    try:
        with quiet_libraries():
            code = run()
    except SslWmError as error:
        tell("error", error)
        return 2
    except UsageError as error:
        asked = cast("typer.BadParameter", error)
        where = asked.ctx.command_path if asked.ctx else NAME
        tell("error", f"{asked.format_message().rstrip('.')} (see {where} --help)")
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        tell("error", f"{error.strerror or error}{where}")
        return 2
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


def interrupted(arguments: Sequence[str]) -> str:
    """Return what to do after an interruption of the command in ``arguments``.

    >>> interrupted(["steal", "--victim", "marked", "--out", "stolen"])
    'interrupted; run the same command with --resume to go on'
    """
    if {"keygen", "detect"} & set(arguments) or not any(
        word.startswith("--out") for word in arguments
    ):
        return "interrupted; nothing was written"
    if "--overwrite" in arguments:
        return "interrupted; run the same command with --resume instead of --overwrite to go on"
    return "interrupted; run the same command with --resume to go on"


def show(command: str, run: Callable[[], dict[str, Any]], *, as_json: bool) -> dict[str, Any]:
    """Run a command, print its result and return it.

    Whatever is printed on standard output meanwhile goes to standard error.
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        result = run()
    if "out" in result:
        result["seconds"] = round(time.perf_counter() - began, 1)
    if as_json:
        print_json(result)
    else:
        print_lines(result_lines(command, result))
    return result


def print_json(value: Mapping[str, Any]) -> None:
    """Print ``value`` as one JSON object on one line; a number that is not finite is null."""
    from ssl_wm.files import plain

    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), flush=True)


def print_lines(lines: Iterable[RenderableType]) -> None:
    """Print lines and tables for a reader on standard output; nothing in them is markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120  # tables in a file are not squeezed
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)
    for line in lines:
        console.print(line)


def result_lines(command: str, result: Mapping[str, Any]) -> list[RenderableType]:
    """Return what a reader is told of a command's result."""
    from ssl_wm.report import result_table, verdict_sentence, verdict_table
    from ssl_wm.report.words import DECISIONS, p_text, percent

    if command == "verify":
        word = DECISIONS[result["decision"]]
        p, alpha = p_text(result["p_value"]), p_text(result["alpha"])
        tests = [f"{t['name']}: p = {p_text(t['p_value'])}, {t['says']}" for t in result["tests"]]
        return [verdict_table(result), *tests, f"{word} p = {p} alpha = {alpha}"]
    if command == "trace":
        return trace_lines(result)
    if command in ("detect", "bench detection"):
        from ssl_wm.report.detection import terminal_lines

        return terminal_lines(result)
    if command == "evidence check":
        whole = "whole: the verdict follows from the bundle"
        return [*result["problems"], whole if result["ok"] else "NOT whole: do not rely on it"]
    if command == "probe":
        return [f"{name}: {percent(result[name])} %" for name in ("linear", "knn")]
    if command == "bench extraction":
        from ssl_wm.report.extraction import extraction_notes, extraction_table

        files = ", ".join(result["files"])
        return [extraction_table(result), *extraction_notes(result), f"files: {files}"]
    if command == "bench robustness":
        from ssl_wm.report.robustness import robustness_lines

        return robustness_lines(result)
    if command == "bench survival":
        from ssl_wm.report.survival import survival_lines

        return list(survival_lines(result))
    if command == "bench speed":
        from ssl_wm.report import speed

        return speed.terminal_lines(result)
    if command in ("demo", "bench"):
        told = [verdict_sentence(name, verdict) for name, verdict in result["verdicts"].items()]
        return [result_table(result), *told, f"report: {result['report']}"]
    pairs = [(name, value) for name, value in result.items() if not isinstance(value, Mapping)]
    nested = [
        (name, ", ".join(f"{key} {_short(item)}" for key, item in value.items()))
        for name, value in result.items()
        if isinstance(value, Mapping) and value
    ]
    return [f"{name}: {value}" for name, value in [*pairs, *nested]]


def trace_lines(result: Mapping[str, Any]) -> list[RenderableType]:
    """Return whose copy leaked, one line per licensee, then the decision."""
    from ssl_wm.report.words import listing, p_text

    lines: list[RenderableType] = [
        f"{name}: p = {p_text(told['p_value'])}, adjusted {p_text(told['adjusted_p_value'])}"
        for name, told in result["licensees"].items()
    ]
    leaked = listing(list(result["leaked"]))
    end = {"traced": f"leaked by {leaked}", "not_traced": "none of them leaked it"}
    return [*lines, result["reason"], end.get(result["decision"], "these keys cannot decide it")]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
