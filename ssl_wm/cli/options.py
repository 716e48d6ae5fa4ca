"""The command line's options: each with its flag, its placeholder and its help text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ssl_wm.config import Settings

IMAGES_HELP = "Images: a folder with one folder per class, torchvision/<Dataset>, or digits."
ENCODER_HELP = (
    "a folder saved by ssl-wm, timm/<name>, torchvision/<name>, convnet-s, or FILE?arch=NAME"
)
SHARED = "Options of every command"

ImagesSpec = Annotated[
    str | None, typer.Option("--images", metavar="SPEC", help=IMAGES_HELP, show_default=False)
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="N", show_default=False, rich_help_panel=SHARED,
        help="Resize images to N x N pixels. Without it they keep their common size.",
    ),
]  # fmt: skip
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", show_default=False, rich_help_panel=SHARED,
        help="Use at most N training and N test images, evenly from the classes.",
    ),
]  # fmt: skip
Download = Annotated[
    bool | None,
    typer.Option(
        "--download", metavar=" ", show_default=False, rich_help_panel=SHARED,
        help="Let torchvision download a data set that is missing in ./data.",
    ),
]  # fmt: skip
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.yaml", show_default=False, rich_help_panel=SHARED,
        help="Settings from a YAML file; flags override it.",
    ),
]  # fmt: skip
Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar=" ", rich_help_panel=SHARED,
        help="Print one JSON object on standard output and everything else on standard error.",
    ),
]  # fmt: skip
OnlyRuns = Annotated[
    list[str] | None,
    typer.Option(
        "--only-runs", metavar="N,...", show_default=False,
        help="Make only these runs, counted from 0, and tell what else is in --out.",
    ),
]  # fmt: skip
Out = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Folder for the results; new or empty."),
]
StoryOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for the results; new or empty."),
]
OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="The key file to write.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar=" ", help="Go on with an interrupted run in --out."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", metavar=" ", help="Throw away what is in --out and start over."),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", show_default=False, help="Passes over the images."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="S", show_default=False, help="Of every random draw; the default is 0."
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch", metavar="SPEC", show_default=False,
        help="Architecture: convnet-s, resnet18-cifar, timm/<name>, torchvision/<name>, ...",
    ),
]  # fmt: skip
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective", metavar="NAME", show_default=False,
        help="simclr (the default), byol or moco.",
    ),
]  # fmt: skip
EncoderSpec = Annotated[
    str, typer.Option("--encoder", metavar="SPEC", help=f"The encoder: {ENCODER_HELP}.")
]
CleanSpec = Annotated[
    str | None,
    typer.Option(
        "--encoder", metavar="SPEC", show_default=False,
        help="Your clean encoder; clusters of its embeddings become the key's groups.",
    ),
]  # fmt: skip
SuspectSpec = Annotated[
    str, typer.Option("--suspect", metavar="SPEC", help=f"The encoder to judge: {ENCODER_HELP}.")
]
NullSpecs = Annotated[
    list[str],
    typer.Option(
        "--null", metavar="SPEC",
        help="An encoder known to be unmarked, your clean one first, or a folder of several. "
        "May be given again.",
    ),
]  # fmt: skip
KeyFile = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The secret key that keygen wrote.")
]
Labels = Annotated[
    bool | None,
    typer.Option(
        "--labels/--no-labels", metavar=" ", show_default=False,
        help="Groups from the class labels, or from clusters of the encoder's embeddings; "
        "the default is clusters when --encoder is given, else labels.",
    ),
]  # fmt: skip
Clusters = Annotated[
    int | None,
    typer.Option(
        "--clusters", metavar="N", show_default=False,
        help="Number of clusters; the default is 20.",
    ),
]  # fmt: skip
SubKeys = Annotated[
    int | None,
    typer.Option(
        "--sub-keys", metavar="N", show_default=False,
        help="Number of marks, three groups each; the default is 3 where the groups suffice, "
        "else 1.",
    ),
]  # fmt: skip
Spare = Annotated[
    int | None,
    typer.Option(
        "--spare", metavar="N", show_default=False,
        help="Draw N sub-keys more, and use those of all that a copy will learn best; p is "
        "multiplied by the number of such choices. The default is 0.",
    ),
]  # fmt: skip
Carriers = Annotated[
    int | None,
    typer.Option(
        "--carriers", metavar="N", show_default=False,
        help="Number of carriers of each sub-key, which bend-space adds to the answers; the "
        "default is 3, with labels 0. Give 0 for a mark by any other method.",
    ),
]  # fmt: skip
CarriersIn = Annotated[
    str | None,
    typer.Option(
        "--carriers-in", metavar="WHERE", show_default=False,
        help="What carriers are made of: places inside the clean encoder, so that they stay in a "
        "copy that loses its last layers (the default where it has layers), or its answers.",
    ),
]  # fmt: skip
Method = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="NAME", show_default=False,
        help="Of the owner: bend-space (the default), move-target, mea-defender. To compare with: "
        "composite-backdoor, badencoder, ssl-guard, ssl-wm, none.",
    ),
]  # fmt: skip
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha", metavar="P", show_default=False,
        help="Largest acceptable rate of false accusations; the default is 0.01.",
    ),
]  # fmt: skip
KeyCount = Annotated[
    int | None,
    typer.Option(
        "--count", metavar="N", show_default=False,
        help="Make N keys over the same groups, one per licensee; --out is then a folder.",
    ),
]  # fmt: skip
GivenKey = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="FILE", show_default=False,
        help="A key whose commitment is published; --beacon is mixed into a copy of it.",
    ),
]  # fmt: skip
Beacon = Annotated[
    str | None,
    typer.Option(
        "--beacon", metavar="VALUE", show_default=False,
        help="A public random value published after the commitment, e.g. a drand round.",
    ),
]  # fmt: skip
BenchFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="The story to run, e.g. configs/demo.yaml."),
]
MeasureFile = Annotated[
    Path, typer.Option("--config", metavar="FILE.yaml", help="What is measured, and on what.")
]
Version = Annotated[
    bool,
    typer.Option("--version", metavar=" ", help="Print the version and exit.", show_default=False),
]


def image_flags(
    spec: str | None, size: int | None, limit: int | None, download: bool | None
) -> dict[str, Any]:
    """Return the image options as settings, by dotted name."""
    names = ("spec", "size", "limit", "download")
    return {f"images.{n}": v for n, v in zip(names, (spec, size, limit, download), strict=True)}


def read_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Return the settings of a file with flags on top.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    from ssl_wm.config import load_settings

    return load_settings(config, flags)
