"""The commands behind a claim: verify, nulls, calibrate, trace, evidence."""

from __future__ import annotations

from typing import Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli import options_claims as claim
from ssl_wm.cli.terminal import show

claims = typer.Typer()
evidence = typer.Typer(
    name="evidence", no_args_is_help=True,
    help="Check or show a bundle that verify --evidence sealed.",
)  # fmt: skip


@claims.command(
    epilog="Example: ssl-wm verify --key owner.key --suspect stolen --images digits --null clean"
)
def verify(
    key: o.KeyFile,
    suspect: o.SuspectSpec,
    null: o.NullSpecs,
    images: o.ImagesSpec = None,
    alpha: o.Alpha = None,
    look: claim.Look = None,
    access: claim.Access = None,
    natural_only: claim.NaturalOnly = False,
    space: claim.SpaceName = None,
    centring: claim.CentringName = None,
    max_queries: claim.MaxQueries = None,
    sub_key: claim.SubKeyChoice = None,
    evidence: claim.EvidenceFolder = None,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Judge whether a suspect encoder carries the key's watermark.

    Exit code 0: detected. 1: not detected. 2: inconclusive, or an error
    (then there is a message on standard error and no result).
    """
    flags = _judging(alpha, look, access, natural_only, space, centring, max_queries)
    flags |= o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        return commands.verify(
            o.read_settings(config, flags), key=key, suspect=suspect, nulls=null,
            sub_keys=sub_key, evidence=evidence, overwrite=overwrite,
        )  # fmt: skip

    result = show("verify", run, as_json=as_json)
    from ssl_wm.verification.verdict import EXIT_CODES

    raise typer.Exit(EXIT_CODES[result["decision"]])


@claims.command(
    epilog="Example: ssl-wm nulls --encoder clean --images digits --count 8 --out nulls"
)
def nulls(
    encoder: o.EncoderSpec,
    out: o.Out,
    images: o.ImagesSpec = None,
    count: claim.NullCount = None,
    pool: claim.Pools = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Make null encoders from your clean one: retrained ones, stolen copies, washed ones.

    Theft alone moves a margin, and so does washing (nulls: {washed: 0.6} in
    the config); the more of these verify is given, with --centring fitted
    above all, the better it tells what only your mark can have done.
    """
    flags = {"nulls.count": count, "nulls.seed": seed}
    flags |= o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        return commands.nulls(
            o.read_settings(config, flags), encoder=encoder, pools=pool or [], out=place
        )

    show("nulls", run, as_json=as_json)


@claims.command(
    epilog="Example: ssl-wm trace --keys licensees --suspect found --images digits --null clean"
)
def trace(
    keys: claim.KeyFolder,
    suspect: o.SuspectSpec,
    null: o.NullSpecs,
    images: o.ImagesSpec = None,
    alpha: o.Alpha = None,
    access: claim.Access = None,
    natural_only: claim.NaturalOnly = False,
    space: claim.SpaceName = None,
    centring: claim.CentringName = None,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Say whose copy leaked, when each licensee's encoder carries a key of its own.

    The chance of naming any innocent licensee is at most --alpha. Exit code
    0: traced. 1: none of them. 2: inconclusive, or an error.
    """
    flags = _judging(alpha, None, access, natural_only, space, centring, None) | o.image_flags(
        images, size, limit, download
    )

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        return commands.trace(
            o.read_settings(config, flags), keys=keys, suspect=suspect, nulls=null
        )

    result = show("trace", run, as_json=as_json)
    from ssl_wm.verification.attribution import EXIT_CODES

    raise typer.Exit(EXIT_CODES[result["decision"]])


@claims.command(
    epilog="Example: ssl-wm calibrate --images digits --key owner.key --null clean --null nulls "
    "--out calibration"
)
def calibrate(
    key: o.KeyFile,
    null: o.NullSpecs,
    out: o.Out,
    images: o.ImagesSpec = None,
    innocent: claim.Innocents = None,
    keys: claim.KeyTrials = None,
    alpha: o.Alpha = None,
    natural_only: claim.NaturalOnly = False,
    space: claim.SpaceName = None,
    centring: claim.CentringName = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Measure the rate of false accusations: random keys on encoders that carry no mark.

    Every --null is a reference, as in verify, and every --innocent a suspect.
    Without --innocent the first --null is the only reference and all others
    play the suspects. Only the public terms of --key are used.
    """
    flags = {
        "calibrate.keys": keys, "calibrate.alpha": alpha, "calibrate.seed": seed,
        **_reading("calibrate.read", natural_only, space, centring),
        **o.image_flags(images, size, limit, download),
    }  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        place = commands.Out(out, overwrite=overwrite)
        return commands.calibrate(
            o.read_settings(config, flags), key=key, nulls=null, innocent=innocent or (), out=place
        )

    show("calibrate", run, as_json=as_json)


@evidence.command("check", epilog="Example: ssl-wm evidence check bundle")
def check_evidence(
    bundle: claim.Bundle,
    suspect: claim.SuspectAgain = None,
    images: o.ImagesSpec = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Recompute a sealed verdict and name every byte that changed.

    With --images the composites are rendered again from the revealed
    sub-keys, with --suspect its answers are asked for again. Exit code 0:
    whole, and the verdict follows. 2: anything else.
    """

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        flags = o.image_flags(images, size, limit, download)
        return commands.check_evidence(
            bundle, suspect=suspect, settings=o.read_settings(None, flags) if images else None
        )

    result = show("evidence check", run, as_json=as_json)
    raise typer.Exit(0 if result["ok"] else 2)


@evidence.command("report", epilog="Example: ssl-wm evidence report bundle --out claim.html")
def report_evidence(
    bundle: claim.Bundle,
    out: claim.ReportFile = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Write a sealed verdict as one HTML page for a lawyer to read and an expert to check."""

    def run() -> dict[str, Any]:
        from ssl_wm.commands import claims as commands

        page = out or bundle.with_name(f"{bundle.resolve().name}.html")
        return commands.report_evidence(bundle, out=page, overwrite=overwrite)

    show("evidence report", run, as_json=as_json)


claims.add_typer(evidence)


def _judging(
    alpha: float | None, look: int | None, access: str | None, natural_only: bool,
    space: str | None, centring: str | None, max_queries: int | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "verify.alpha": alpha,
        "verify.look": look,
        "verify.access": access,
        **_reading("verify.read", natural_only, space, centring),
        "verify.max_queries": max_queries,
    }


def _reading(
    where: str, natural_only: bool, space: str | None, centring: str | None
) -> dict[str, Any]:
    return {
        f"{where}.natural_only": natural_only or None, f"{where}.space": space,
        f"{where}.centring": centring,
    }  # fmt: skip
