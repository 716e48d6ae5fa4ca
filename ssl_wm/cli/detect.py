"""The command of who looks for a mark: detect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli.terminal import show

detecting = typer.Typer()

DetectorName = Annotated[
    str,
    typer.Option(
        "--detector", metavar="NAME",
        help="neural-cleanse, abs, decree, ssl-cleanse, prms, lof, seam, or all.",
    ),
]  # fmt: skip
Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries", metavar="FOLDER", show_default=False,
        help="Images that a service was sent, for lof and seam; without it composites are made.",
    ),
]  # fmt: skip
ImageClusters = Annotated[
    int | None,
    typer.Option(
        "--clusters", metavar="N", show_default=False,
        help="Groups from N clusters of the first --null, which is then not compared with; the "
        "default is the class labels.",
    ),
]  # fmt: skip
ResultFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE.json", show_default=False, help="Also write the result here."
    ),
]  # fmt: skip


@detecting.command(
    epilog="Example: ssl-wm detect --suspect found --detector decree --images digits --null clean"
)
def detect(
    suspect: o.SuspectSpec,
    detector: DetectorName,
    null: o.NullSpecs,
    images: o.ImagesSpec = None,
    queries: Queries = None,
    clusters: ImageClusters = None,
    seed: o.Seed = None,
    out: ResultFile = None,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Look for a mark without its key, as a thief would, and compare with clean encoders.

    A score says nothing by itself: p is its rank among those of the --null
    encoders, and the usual fixed threshold is only shown beside it. Exit
    code 0, whatever is found. 2: an error.
    """
    flags = o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import detect as commands

        return commands.detect(
            o.read_settings(config, flags), suspect=suspect, detector=detector, nulls=null,
            queries=queries, clusters=clusters, seed=seed or 0, out=out, overwrite=overwrite,
        )  # fmt: skip

    show("detect", run, as_json=as_json)
