"""The options of ``ssl-wm bench extraction``: what is stolen in which ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ssl_wm.cli.options import ENCODER_HELP
from ssl_wm.errors import ConfigError

LISTED = "Several with commas between them, or the option again."

Victim = Annotated[
    str, typer.Option("--victim", metavar="SPEC", help=f"The encoder to copy: {ENCODER_HELP}.")
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", show_default=False,
        help="The owner's key; without one WSR and p-values are left out.",
    ),
]  # fmt: skip
Nulls = Annotated[
    list[str] | None,
    typer.Option(
        "--null", metavar="SPEC", show_default=False,
        help="With --key: an encoder known to be unmarked, the clean one first, or a folder of "
        "several. May be given again.",
    ),
]  # fmt: skip
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attacks", metavar="NAMES", show_default=False,
        help=f"As for steal --attack, or all. {LISTED}",
    ),
]  # fmt: skip
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budgets", metavar="N,N", show_default=False, help=f"Images to query. {LISTED}"),
]
Archs = Annotated[
    list[str] | None,
    typer.Option(
        "--archs", metavar="SPECS", show_default=False,
        help=f"Architectures of the copies, each with its width. {LISTED}",
    ),
]  # fmt: skip
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pools", metavar="SPECS", show_default=False,
        help=f"Images to query with: specs as for --images, or same (the victim's). {LISTED}",
    ),
]  # fmt: skip
Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seeds", metavar="S,S", show_default=False,
        help=f"Each theft is run with each; the default is 0. {LISTED}",
    ),
]  # fmt: skip
Design = Annotated[
    str | None,
    typer.Option(
        "--design", metavar="NAME", show_default=False,
        help="star (the default: one setting varied at a time) or matrix (all combinations).",
    ),
]  # fmt: skip
Price = Annotated[
    float | None,
    typer.Option("--price", metavar="P", show_default=False, help="Price of 1,000 images."),
]


def split(given: Sequence[str] | None) -> list[str] | None:
    """Return the parts between commas of an option's values.

    >>> split(["a,b", " c"]), split(None)
    (['a', 'b', 'c'], None)
    """
    if given is None:
        return None
    return [part.strip() for text in given for part in text.split(",") if part.strip()] or None


def numbers(given: Sequence[str] | None, flag: str) -> list[int] | None:
    """Return the whole numbers between commas.

    Raises:
        ConfigError: a part is none.

    >>> numbers(["100,200"], "--budgets")
    [100, 200]
    """
    parts = split(given)
    for part in parts or []:
        if not part.removeprefix("-").isdecimal():
            raise ConfigError(f"{flag} takes whole numbers with commas between; got '{part}'")
    return None if parts is None else [int(part) for part in parts]
