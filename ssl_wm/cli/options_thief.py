"""The options of ``ssl-wm steal`` and ``ssl-wm remove``: what a thief chooses."""

from __future__ import annotations

from typing import Annotated

import typer

from ssl_wm.cli.options import ENCODER_HELP

Victim = Annotated[
    str, typer.Option("--victim", metavar="SPEC", help=f"The encoder to copy: {ENCODER_HELP}.")
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch", metavar="SPEC", show_default=False,
        help="The copy's architecture, the thief's own choice; the default is convnet-s.",
    ),
]  # fmt: skip
Start = Annotated[
    str | None,
    typer.Option(
        "--start", metavar="SPEC", show_default=False,
        help="An encoder that the copy starts from, e.g. one you pretrained; it costs no query.",
    ),
]  # fmt: skip
Attack = Annotated[
    str | None,
    typer.Option(
        "--attack", metavar="NAME", show_default=False,
        help="cosine (the default), mse, hybrid, hinton-kd, hinton-relational, stolen-encoder, "
        "stolen-encoder-plain, cont-steal, cont-steal-live, rda, infonce, soft-nn, barlow, jba, "
        "knockoff-random, knockoff-adaptive or composites.",
    ),
]  # fmt: skip
Budget = Annotated[
    int | None,
    typer.Option(
        "--budget", metavar="N", show_default=False,
        help="Images to query; without it every training image is sent once.",
    ),
]  # fmt: skip
Selection = Annotated[
    str | None,
    typer.Option(
        "--selection", metavar="NAME", show_default=False,
        help="Which images: random (the default), k-centre or cluster-balanced.",
    ),
]  # fmt: skip
Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats", metavar="R", show_default=False,
        help="Send each image R times and keep the mean answer, against noise.",
    ),
]  # fmt: skip
Denoise = Annotated[
    bool | None,
    typer.Option(
        "--denoise", metavar=" ", show_default=False,
        help="Shrink noise out of the answers' principal components before training.",
    ),
]  # fmt: skip
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep", metavar="EPOCH", show_default=False,
        help="last (the default), or best: the epoch that fits held-out answers best.",
    ),
]  # fmt: skip
Price = Annotated[
    float | None,
    typer.Option(
        "--price", metavar="P", show_default=False,
        help="Price of 1,000 images; what the theft will cost is told before anything is sent.",
    ),
]  # fmt: skip
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate", metavar="N", show_default=False,
        help="Images a second that the service answers; how long the queries take is told first.",
    ),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", metavar=" ", help="Tell the calls and the price, and send nothing."),
]
Attempt = Annotated[
    str,
    typer.Option(
        "--attempt", metavar="NAME",
        help="Of the weights: prune, prune-global, prune-channels, fine-prune, float, "
        "round-weights, weight-shift, weight-noise, cut-layers. By training: ssl, ftal, ftll, "
        "rtal, rtll, decay, mixed-labels, mixed-features, overwrite, wrk, distil, transfer. Of the "
        "answers: pca-leading, pca-trailing, rotate, permute, scale, narrow. Or some joined by +.",
    ),
]  # fmt: skip
Strengths = Annotated[
    list[float],
    typer.Option(
        "--strength", metavar="S",
        help="How strong: a share, a peak learning rate, bits, ... (docs/removal.md); once for "
        "each attempt.",
    ),
]  # fmt: skip
