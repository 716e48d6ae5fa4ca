"""Two keys claim one encoder: look for both in the owner's own encoder too.

    python scripts/ambiguity.py --owner-model marked --disputed stolen --owner-key owner.key
        --rival-key rival.key --owner-null clean --rival-null clean --images digits

With --embed N the thief first marks the disputed encoder, N epochs (docs/disputes.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli.terminal import run_app, show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text)


Spec = Annotated[str, _option("--owner-model", "SPEC", "The owner's own marked encoder.")]
Disputed = Annotated[str, _option("--disputed", "SPEC", "The encoder that both claim.")]
OwnerKey = Annotated[Path, _option("--owner-key", "FILE", "The owner's key.")]
RivalKey = Annotated[Path, _option("--rival-key", "FILE", "The rival's key.")]
OwnerNulls = Annotated[list[str], _option("--owner-null", "SPEC", "Unmarked; the clean one first.")]
RivalNulls = Annotated[list[str], _option("--rival-null", "SPEC", "The same of the rival.")]
OwnerDate = Annotated[str | None, _option("--owner-date", "ISO", "When the owner committed.")]
RivalDate = Annotated[str | None, _option("--rival-date", "ISO", "When the rival committed.")]
Embed = Annotated[int | None, _option("--embed", "N", "First embed the rival's mark, N epochs.")]
ResultFile = Annotated[Path | None, _option("--out", "FILE", "Write result.json.")]


@app.command()
def main(
    owner_model: Spec, disputed: Disputed, owner_key: OwnerKey, rival_key: RivalKey,
    owner_null: OwnerNulls, rival_null: RivalNulls, images: o.ImagesSpec = None,
    owner_date: OwnerDate = None, rival_date: RivalDate = None, embed: Embed = None,
    alpha: o.Alpha = None, out: ResultFile = None, overwrite: o.Overwrite = False,
    config: o.ConfigFile = None, size: o.Size = None, limit: o.Limit = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Tell which of two keys was in the encoder first."""
    flags = {"verify.alpha": alpha, "watermark.fit.epochs": embed}

    def run() -> dict[str, Any]:
        from ssl_wm.config import load_settings
        from ssl_wm.data.sources import open_images
        from ssl_wm.disputes.ambiguity import ambiguity_matrix
        from ssl_wm.encoders.load import load_encoder
        from ssl_wm.files import claim_file, write_json
        from ssl_wm.watermark.embed import watermark
        from ssl_wm.watermark.keyfile import load_key

        place = claim_file(out, overwrite=overwrite) if out else None
        settings, copy = load_settings(config, flags), load_encoder(disputed)
        opened = open_images(images or "digits", size=size, limit=limit)
        keys = [load_key(path) for path in (owner_key, rival_key)]
        if embed:
            copy, _ = watermark(copy, key=keys[1], images=opened, config=settings.watermark)
        result = ambiguity_matrix(
            owner_model=load_encoder(owner_model), disputed=copy, owner_key=keys[0],
            rival_key=keys[1], images=opened, config=settings.verify, owner_date=owner_date,
            rival_date=rival_date, owner_nulls=[load_encoder(spec) for spec in owner_null],
            rival_nulls=[load_encoder(spec) for spec in rival_null],
        ).to_dict()  # fmt: skip
        if place:
            write_json(place, result)
        return result

    show("ambiguity", run, as_json=as_json)


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
