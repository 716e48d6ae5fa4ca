"""The options of ``ssl-wm bench speed``: what is measured, how often, on which device."""

from __future__ import annotations

from typing import Annotated

import typer

from ssl_wm.cli.options_extraction import LISTED

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="NAMES", show_default=False,
        help="training, augmentation, embedding, knn, probe, memory; the default is all. "
        f"{LISTED}",
    ),
]  # fmt: skip
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", metavar=" ",
        help="Small sizes, to see that everything runs; the ratios are no results.",
    ),
]  # fmt: skip
Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats", metavar="N", show_default=False,
        help="Measured runs of each side; the default is 5.",
    ),
]  # fmt: skip
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", show_default=False,
        help="Of networks: auto (the default), cpu or cuda.",
    ),
]  # fmt: skip
