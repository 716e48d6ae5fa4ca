"""The commands that measure: demo, bench and what is below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ssl_wm.cli import options as o
from ssl_wm.cli import options_extraction as x
from ssl_wm.cli import options_robustness as r
from ssl_wm.cli import options_speed as v
from ssl_wm.cli.terminal import show
from ssl_wm.errors import ConfigError

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


@bench.command(
    "detection",
    epilog="Example: ssl-wm bench detection --config configs/detection-cifar10-small.yaml "
    "--out runs/detection",
)
def detection(
    config: o.MeasureFile,
    out: o.Out,
    images: o.ImagesSpec = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Run all detectors on marked and on clean encoders and compare their scores.

    Writes cells/, result.json, table.md and roc.png. A cell that fails is
    recorded and the others are run.
    """
    flags = {"seed": seed} | o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.bench.detection_plan import load_detection_config
        from ssl_wm.commands import detect as commands
        from ssl_wm.commands.outputs import Out

        place = Out(out, resume=resume, overwrite=overwrite)
        told = load_detection_config(config, flags)
        return commands.bench_detection(told, out=place, inputs=[config])

    show("bench detection", run, as_json=as_json)


def _story(
    command: str, config: Path | None, flags: Mapping[str, Any], out: Path, *,
    resume: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    def run() -> dict[str, Any]:
        from ssl_wm.bench.story_plan import load_bench_config
        from ssl_wm.commands import stages as commands

        place = commands.Out(out, resume=resume, overwrite=overwrite)
        inputs = [config] if config else []
        return commands.bench(load_bench_config(config, flags), out=place, inputs=inputs)

    show(command, run, as_json=as_json)


@bench.command(
    "extraction",
    epilog="Example: ssl-wm bench extraction --victim marked --key owner.key --null clean "
    "--images digits --attacks cosine,mse --budgets 200,800 --out curves",
)
def extraction(
    victim: x.Victim,
    out: o.Out,
    config: o.ConfigFile = None,
    key: x.Key = None,
    null: x.Nulls = None,
    images: o.ImagesSpec = None,
    attacks: x.Attacks = None,
    budgets: x.Budgets = None,
    archs: x.Archs = None,
    pools: x.Pools = None,
    seeds: x.Seeds = None,
    design: x.Design = None,
    price: x.Price = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Steal a victim in many ways, and measure every copy against the budget.

    Fidelity, utility, WSR, p-value, calls and price of each attack, budget,
    surrogate and pool, with intervals. Writes result.json, table.md and
    curves.png; the copies stay in cells/.
    """
    flags = {
        "attacks": x.split(attacks), "budgets": x.numbers(budgets, "--budgets"),
        "archs": x.split(archs), "pools": x.split(pools), "seeds": x.numbers(seeds, "--seeds"),
        "design": design, "price": price,
    } | o.image_flags(images, size, limit, download)  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.bench.extraction_plan import load_extraction_config
        from ssl_wm.commands import extraction as extraction_commands

        place = extraction_commands.Out(out, resume=resume, overwrite=overwrite)
        inputs = [] if config is None else [config]
        return extraction_commands.bench_extraction(
            load_extraction_config(config, flags), victim=victim, key=key, nulls=null or [],
            out=place, inputs=inputs,
        )  # fmt: skip

    show("bench extraction", run, as_json=as_json)


@bench.command(
    "robustness",
    epilog="Example: ssl-wm bench robustness --encoder victim=marked --key owner.key --null clean "
    "--images digits --attempts prune,noise,ftal --out washed",
)
def robustness(
    out: o.Out,
    config: o.ConfigFile = None,
    encoder: r.Encoders = None,
    key: r.Key = None,
    null: r.Nulls = None,
    images: o.ImagesSpec = None,
    attempts: r.Attempts = None,
    strengths: r.Strengths = None,
    transfer_images: r.Transfer = None,
    seeds: r.Seeds = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Try to wash the mark off, in many ways and strengths, and price each.

    For every attempt: the least loss of utility at which the mark is no longer
    detected. The clean encoder goes through the same, as control. Writes
    result.json, table.md, frontier.png and one file a cell.
    """

    def run() -> dict[str, Any]:
        from ssl_wm.bench.robustness_plan import load_robustness_config
        from ssl_wm.commands import robustness as washing

        flags = {
            "key": key, "encoders": washing.read_encoders(encoder), "nulls": null,
            "attempts": x.split(attempts), "strengths": washing.read_strengths(strengths),
            "transfer.spec": transfer_images, "seeds": seeds, "seed": seed,
        } | o.image_flags(images, size, limit, download)  # fmt: skip
        place = washing.Out(out, resume=resume, overwrite=overwrite)
        return washing.bench_robustness(
            load_robustness_config(config, flags), out=place,
            inputs=[] if config is None else [config],
        )  # fmt: skip

    show("bench robustness", run, as_json=as_json)


@bench.command(
    "survival",
    epilog="Example: ssl-wm bench survival --config configs/survival-cifar10-small.yaml "
    "--out runs/survival",
)
def survival(
    config: o.MeasureFile,
    out: o.Out,
    images: o.ImagesSpec = None,
    only: o.OnlyRuns = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    size: o.Size = None,
    limit: o.Limit = None,
    download: o.Download = None,
    as_json: o.Json = False,
) -> None:
    """Mark by each embedder, steal by each thief, and see whether the mark is still there.

    In every run a fresh clean encoder and key. Writes one folder for each
    encoder, result.json and table.md (both after every cell), survival.png
    and thefts.png.
    """
    flags = {"seed": seed} | o.image_flags(images, size, limit, download)

    def run() -> dict[str, Any]:
        from ssl_wm.commands import survival as surviving

        place = surviving.Out(out, resume=resume, overwrite=overwrite)
        told = surviving.load_survival_config(config, flags)
        chosen = x.numbers(only, "--only-runs")
        return surviving.bench_survival(told, out=place, inputs=[config], only=chosen)

    show("bench survival", run, as_json=as_json)


@bench.command("speed", epilog="Example: ssl-wm bench speed --only knn,probe --out speed")
def speed(
    out: o.Out,
    config: o.ConfigFile = None,
    only: v.Only = None,
    quick: v.Quick = False,
    repeats: v.Repeats = None,
    device: v.Device = None,
    seed: o.Seed = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Measure the speed of each stage beside lightly's and scikit-learn's way.

    Both sides are run in turns on this machine; each measurement gives a ratio
    with its range over the repeats. Also the peak memory of each stage. Writes
    speed.json, speed.md and speed.png.
    """
    flags = {
        "cases": x.split(only), "quick": quick or None, "repeats": repeats, "device": device,
        "seed": seed,
    }  # fmt: skip

    def run() -> dict[str, Any]:
        from ssl_wm.commands import speed as speeds

        place = speeds.Out(out, resume=resume, overwrite=overwrite)
        inputs = [] if config is None else [config]
        return speeds.bench_speed(speeds.load_speed_config(config, flags), out=place, inputs=inputs)

    show("bench speed", run, as_json=as_json)
