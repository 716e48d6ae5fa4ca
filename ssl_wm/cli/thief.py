"""The thief's commands: steal and remove."""

from __future__ import annotations

from typing import Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli import options_thief as t
from ssl_wm.cli.terminal import show

thief = typer.Typer()


@thief.command(epilog="Example: ssl-wm steal --victim marked --images digits --out stolen")
def steal(
    victim: t.Victim,
    out: o.Out,
    images: o.ImagesSpec = None,
    attack: t.Attack = None,
    budget: t.Budget = None,
    selection: t.Selection = None,
    arch: t.Arch = None,
    start: t.Start = None,
    repeats: t.Repeats = None,
    denoise: t.Denoise = None,
    epochs: o.Epochs = None,
    keep: t.Keep = None,
    seed: o.Seed = None,
    price: t.Price = None,
    rate: t.Rate = None,
    dry_run: t.DryRun = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Play the thief: query an encoder with images and train a copy on its answers.

    With --price or --rate, what it costs is told before anything is sent;
    with --dry-run nothing else happens.
    """
    flags = {
        "steal.attack": attack, "steal.budget": budget, "steal.arch": arch,
        "steal.fit.epochs": epochs, "steal.seed": seed, "steal.selection": selection,
        "steal.start": start, "steal.repeats": repeats, "steal.denoise": denoise,
        "steal.keep": keep,
    } | o.image_flags(images, size, limit, download)  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        settings = o.read_settings(config, flags)
        if dry_run:
            return commands.quote(settings, price=price, rate=rate)
        place = commands.Out(out, resume=resume, overwrite=overwrite)
        return commands.steal(settings, victim=victim, out=place, price=price, rate=rate)

    show("steal", run, as_json=as_json)


@thief.command(
    epilog="Example: ssl-wm remove --encoder stolen --attempt prune+ftal --strength 0.5 "
    "--strength 1e-3 --images digits --out washed"
)
def remove(
    encoder: o.EncoderSpec,
    attempt: t.Attempt,
    strength: t.Strengths,
    out: o.Out,
    images: o.ImagesSpec = None,
    epochs: o.Epochs = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Play the thief: try to wash a watermark off an encoder that you hold.

    What is left of it, verify tells; what it cost, probe. All attempts at
    several strengths in one table: ssl-wm bench robustness
    """
    flags = {"removal.fit.epochs": epochs} | o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import remove as commands

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        return commands.remove(
            o.read_settings(config, flags), encoder=encoder, attempt=attempt, strength=strength,
            out=place, seed=seed or 0,
        )  # fmt: skip

    show("remove", run, as_json=as_json)
