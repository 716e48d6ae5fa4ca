"""The commands that measure: demo, bench and what is below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ssl_wm import options as o
from ssl_wm.errors import ConfigError
from ssl_wm.terminal import show

stories = typer.Typer()
bench = typer.Typer()


@stories.command(epilog="Example: ssl-wm demo --out demo")
def demo(
    out: o.Out,
    seed: o.Seed = None,
    images: o.ImagesSpec = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Run the whole story on small embedded images, minutes on two CPU cores.

    Pretrains, marks and steals an encoder, trains an independent one, judges
    them all, and writes result.json and report.html. The encoders and
    owner.key stay in the folder, so that every command can be tried on them.
    """
    flags = {"seed": seed} | o.image_flags(images, size, limit, download)
    _story("demo", config, flags, out, resume=resume, overwrite=overwrite, as_json=as_json)


@bench.callback(
    invoke_without_command=True,
    epilog="Example: ssl-wm bench --config configs/demo.yaml --out runs/demo",
)
def told(
    context: typer.Context,
    config: o.BenchFile = None,
    out: o.StoryOut = None,
    seed: o.Seed = None,
    images: o.ImagesSpec = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Run the story that a config tells: which encoders are made, robbed and judged.

    Or, by name, one of the measurements below on encoders that you have.
    """
    if context.invoked_subcommand is not None:
        return
    if config is None or out is None:
        raise ConfigError(
            "a story needs --config FILE.yaml and --out DIR; ssl-wm bench --help names the rest"
        )
    flags = {"seed": seed} | o.image_flags(images, size, limit, download)
    _story("bench", config, flags, out, resume=resume, overwrite=overwrite, as_json=as_json)


def _story(
    command: str, config: Path | None, flags: Mapping[str, Any], out: Path, *,
    resume: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    def run() -> dict[str, Any]:
        from ssl_wm import commands
        from ssl_wm.bench.story import load_bench_config

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        inputs = [config] if config else []
        return commands.bench(load_bench_config(config, flags), out=place, inputs=inputs)

    show(command, run, as_json=as_json)
