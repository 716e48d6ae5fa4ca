"""The options of the commands behind a claim: verify, trace, nulls, calibrate and evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Innocents = Annotated[
    list[str] | None,
    typer.Option(
        "--innocent", metavar="SPEC", show_default=False,
        help="An encoder without a mark that plays the suspect, or a folder of several. May be "
        "given again.",
    ),
]  # fmt: skip
KeyFolder = Annotated[
    Path, typer.Option("--keys", metavar="DIR", help="A folder of key files, one per licensee.")
]
Look = Annotated[
    int | None,
    typer.Option(
        "--look", metavar="N", show_default=False,
        help="This is the N-th time this key judges a suspect; the limit shrinks so that all "
        "looks together keep --alpha.",
    ),
]  # fmt: skip
Access = Annotated[
    str | None,
    typer.Option(
        "--access", metavar="NAME", show_default=False,
        help="embeddings (the default), or labels: only the largest output of a classifier "
        "is used.",
    ),
]  # fmt: skip
NaturalOnly = Annotated[
    bool,
    typer.Option(
        "--natural-only",
        help="Ask natural images alone, no composite: the questions show nothing of the mark. No "
        "WSR is told.",
    ),
]  # fmt: skip
SpaceName = Annotated[
    str | None,
    typer.Option(
        "--space", metavar="NAME", show_default=False,
        help="evened (the default): distances are taken where no direction of the suspect's space "
        "outweighs the others; or plain.",
    ),
]  # fmt: skip
CentringName = Annotated[
    str | None,
    typer.Option(
        "--centring", metavar="NAME", show_default=False,
        help="How what null encoders show too is taken off: their mean (the default), or fitted: "
        "as much of each as explains the suspect best; unexplained: that, all keys in one unit.",
    ),
]  # fmt: skip
MaxQueries = Annotated[
    int | None,
    typer.Option(
        "--max-queries", metavar="N", show_default=False,
        help="Send the suspect at most N images; less is read then.",
    ),
]  # fmt: skip
EvidenceFolder = Annotated[
    Path | None,
    typer.Option(
        "--evidence", metavar="DIR", show_default=False,
        help="Seal all that a third party needs to recompute the verdict into this folder.",
    ),
]  # fmt: skip
SubKeyChoice = Annotated[
    list[int] | None,
    typer.Option(
        "--sub-key", metavar="I", show_default=False,
        help="Use and reveal only sub-key I (0 is the first). May be given again.",
    ),
]  # fmt: skip
SuspectAgain = Annotated[
    str | None,
    typer.Option(
        "--suspect", metavar="SPEC", show_default=False,
        help="The suspect, to be asked again and compared with the sealed answers.",
    ),
]  # fmt: skip
Bundle = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --evidence filled.")]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE.html", show_default=False,
        help="The page to write; the default is evidence.html beside the bundle.",
    ),
]  # fmt: skip
NullCount = Annotated[
    int | None,
    typer.Option("--count", metavar="N", show_default=False, help="How many null encoders."),
]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool", metavar="SPEC", show_default=False,
        help="Other images that a thief might query with, a spec as for --images. May be given "
        "again.",
    ),
]  # fmt: skip
KeyTrials = Annotated[
    int | None,
    typer.Option(
        "--keys", metavar="N", show_default=False, help="Random keys tried on each encoder."
    ),
]  # fmt: skip
