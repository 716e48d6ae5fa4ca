"""Messages and progress for people: standard error only, standard output stays for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_wm.processes import first_process

Advance = Callable[[int], None]


def error_console() -> Console:
    """Return the console on standard error; nothing printed there is read as markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(description: str, *, total: int) -> Iterator[Advance]:
    """Show a progress bar while the block runs; it yields ``advance(steps)``.

    On a terminal the bar redraws in place; elsewhere one line is printed once the block has
    ended well. Of several processes only the first one shows it.
    """
    if not first_process():
        yield lambda steps: None
        return
    console = error_console()
    if not console.is_terminal:
        began, done = time.perf_counter(), 0

        def count(steps: int) -> None:
            nonlocal done
            done += steps

        yield count
        say(f"{description}: {done} of {total} in {time.perf_counter() - began:.1f} s")
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda steps: bars.advance(task, steps)


def say(message: str) -> None:
    """Print one line for the reader on standard error."""
    error_console().print(message, soft_wrap=True)
