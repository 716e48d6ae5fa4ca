"""The options of ``ssl-wm bench robustness``: which encoders, which attempts, how strong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_wm.cli.options_extraction import LISTED

Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", metavar="NAME=SPEC", show_default=False,
        help="An encoder that carries the mark, e.g. victim=marked or copy=stolen. May be given "
        "again.",
    ),
]  # fmt: skip
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", show_default=False, help="The owner's key."),
]
Nulls = Annotated[
    list[str] | None,
    typer.Option(
        "--null", metavar="SPEC", show_default=False,
        help="An encoder known to be unmarked, or a folder of several. The first is also the "
        "control: it goes through every attempt. May be given again.",
    ),
]  # fmt: skip
Attempts = Annotated[
    list[str] | None,
    typer.Option(
        "--attempts", metavar="NAMES", show_default=False,
        help=f"Attempts, stacks joined by +, or all (the default). {LISTED}",
    ),
]  # fmt: skip
Strengths = Annotated[
    list[str] | None,
    typer.Option(
        "--strengths", metavar="NAME=S,S", show_default=False,
        help="In place of an attempt's own sweep; of a stack A+B=S:S,S:S. May be given again.",
    ),
]  # fmt: skip
Transfer = Annotated[
    str | None,
    typer.Option(
        "--transfer-images", metavar="SPEC", show_default=False,
        help="Labelled images of another task, as for --images; without them transfer is left out.",
    ),
]  # fmt: skip
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", show_default=False,
        help="Repetitions of every attempt that draws something; the default is 1.",
    ),
]  # fmt: skip
