"""Play a dishonest accuser against an innocent encoder: crafted triggers and ground keys.

    python scripts/false_claim.py --suspect innocent --null clean --images digits --out result.json

A naive verifier accuses; the protocol (commitment, then beacon) holds. docs/disputes.md explains.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli.terminal import run_app, show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ResultFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write result.json.")
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="SPEC", help="Craft images on this encoder instead."),
]
Keys = Annotated[int | None, typer.Option("--keys", metavar="N", help="Keys that are ground.")]
Beacons = Annotated[int | None, typer.Option("--beacons", metavar="N", help="Beacons drawn.")]


@app.command()
def main(
    suspect: o.SuspectSpec, null: o.NullSpecs, images: o.ImagesSpec = None, source: Source = None,
    clusters: o.Clusters = None, sub_keys: o.SubKeys = None, keys: Keys = None,
    beacons: Beacons = None, alpha: o.Alpha = None, seed: o.Seed = None,
    out: ResultFile = None, overwrite: o.Overwrite = False, config: o.ConfigFile = None,
    size: o.Size = None, limit: o.Limit = None, as_json: o.Json = False,
) -> None:  # fmt: skip
    """Play a dishonest accuser against an innocent encoder.

    Groups are the class labels, or with --clusters those of the first null encoder. --config
    sets what the flags do not (FalseClaimConfig).
    """
    flags = {"keys": keys, "beacons": beacons, "alpha": alpha, "seed": seed}

    def run() -> dict[str, Any]:
        from ssl_wm.config import merge, parse, read_yaml
        from ssl_wm.data.sources import open_images
        from ssl_wm.disputes.false_claim import FalseClaimConfig, false_claim_experiment
        from ssl_wm.encoders.load import load_encoder
        from ssl_wm.files import claim_file, write_json
        from ssl_wm.watermark.keygen import keygen

        place = claim_file(out, overwrite=overwrite) if out else None
        data = merge(read_yaml(config) if config else {}, flags)
        settings = parse(FalseClaimConfig, data, source=str(config or "flags"))
        opened = open_images(images or "digits", size=size, limit=limit)
        nulls = [load_encoder(spec) for spec in null]
        terms = keygen(
            opened, encoder=nulls[0] if clusters else None, clusters=clusters or 20,
            sub_keys=sub_keys, autoencoder_steps=0,
        ).terms  # fmt: skip
        result = false_claim_experiment(
            load_encoder(suspect), terms=terms, images=opened, nulls=nulls, config=settings,
            source=load_encoder(source) if source else None,
        )  # fmt: skip
        if place:
            write_json(place, result)
        return result

    show("false_claim", run, as_json=as_json)


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
