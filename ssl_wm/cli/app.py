"""The command line: parse, call, render. ``ssl-wm --help`` shows the commands.

Exit codes: 0 done (``verify``: detected), 1 not detected, 2 inconclusive or an error,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

import ssl_wm
from ssl_wm.cli import options as o
from ssl_wm.cli.bench import bench, stories
from ssl_wm.cli.claims import claims
from ssl_wm.cli.detect import detecting
from ssl_wm.cli.serve import serving
from ssl_wm.cli.terminal import NAME, run_app, show
from ssl_wm.cli.thief import thief
from ssl_wm.processes import running_command

app = typer.Typer(
    name=NAME, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


app.add_typer(stories)
app.add_typer(bench, name="bench")
app.add_typer(thief)
app.add_typer(claims)
app.add_typer(detecting)
app.add_typer(serving)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, show_version: o.Version = False) -> None:
    """Watermark self-supervised image encoders, simulate their theft, and prove it.

    Pretrain an encoder, make a secret key, watermark the encoder with it,
    steal a copy by queries, verify whether the copy carries the mark.
    All of that at once, in minutes: ssl-wm demo --out demo
    """
    if show_version:
        print(f"{NAME} {ssl_wm.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(
    epilog="Example: ssl-wm pretrain --images digits --arch convnet-xs --epochs 5 --out clean"
)
def pretrain(
    out: o.Out,
    images: o.ImagesSpec = None,
    arch: o.Arch = None,
    objective: o.Objective = None,
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
    """Train an encoder on images alone: self-supervised, the labels are not used."""
    flags = {
        "pretrain.arch": arch, "pretrain.objective": objective, "pretrain.seed": seed,
        "pretrain.fit.epochs": epochs,
    } | o.image_flags(images, size, limit, download)  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        return commands.pretrain(o.read_settings(config, flags), out=place)

    show("pretrain", run, as_json=as_json)


@app.command(
    epilog="Example: ssl-wm keygen --images digits --encoder clean --clusters 12 --out owner.key"
)
def keygen(
    out: o.OutFile,
    images: o.ImagesSpec = None,
    encoder: o.CleanSpec = None,
    labels: o.Labels = None,
    clusters: o.Clusters = None,
    sub_keys: o.SubKeys = None,
    spare: o.Spare = None,
    carriers: o.Carriers = None,
    carriers_in: o.CarriersIn = None,
    count: o.KeyCount = None,
    given: o.GivenKey = None,
    beacon: o.Beacon = None,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Make a secret key for your images, and a commitment that you can publish.

    Keep FILE secret: whoever has it can find, prove and remove the mark.
    FILE.commitment.json may be published: it shows later that the key
    existed, and reveals nothing of it. Once it is published, mix in a public
    value that nobody could know before (--from FILE --beacon VALUE): then
    nobody can say that you tried many keys and kept the best.
    """
    groups = None if labels is None else ("labels" if labels else "clusters")
    flags = {
        "key.groups": groups, "key.clusters": clusters, "key.sub_keys": sub_keys,
        "key.spare": spare, "key.carriers": carriers,
        "key.carriers_in": carriers_in,
    } | o.image_flags(images, size, limit, download)  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        if given is not None or beacon is not None:
            return commands.add_beacon(
                o.read_settings(config, flags), given=given, beacon=beacon, encoder=encoder,
                out=out, overwrite=overwrite,
            )  # fmt: skip
        return commands.keygen(
            o.read_settings(config, flags), encoder=encoder, out=out, overwrite=overwrite,
            count=count,
        )  # fmt: skip

    show("keygen", run, as_json=as_json)


@app.command(
    epilog="Example: ssl-wm watermark --encoder clean --key owner.key --images digits --out marked"
)
def watermark(
    encoder: o.EncoderSpec,
    key: o.KeyFile,
    out: o.Out,
    images: o.ImagesSpec = None,
    method: o.Method = None,
    epochs: o.Epochs = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Embed the key's watermark into a copy of an encoder; the encoder itself stays as it is."""
    flags = {
        "watermark.method": method, "watermark.fit.epochs": epochs,
    } | o.image_flags(images, size, limit, download)  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        return commands.watermark(
            o.read_settings(config, flags), encoder=encoder, key=key, out=place
        )

    show("watermark", run, as_json=as_json)


@app.command(epilog="Example: ssl-wm probe --encoder clean --images digits")
def probe(
    encoder: o.EncoderSpec,
    images: o.ImagesSpec = None,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Measure an encoder's utility: test accuracy of a linear probe and of 20 neighbours."""
    flags = o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        return commands.probe(o.read_settings(config, flags), encoder=encoder)

    show("probe", run, as_json=as_json)


@app.command(epilog="Example: ssl-wm version --json")
def version(as_json: o.Json = False) -> None:
    """Print the versions of ssl-wm and of what results depend on, and the device."""

    def run() -> dict[str, Any]:
        from ssl_wm.commands import stages as commands

        return commands.versions()

    show("version", run, as_json=as_json)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in ``argv`` (default: the process's) and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with running_command(arguments):
        sys.exit(run_app(app, arguments))
