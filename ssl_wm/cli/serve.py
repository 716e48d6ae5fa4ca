"""The command that serves an encoder over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_wm.cli import options as o

serving = typer.Typer()

Port = Annotated[
    int | None,
    typer.Option(
        "--port", metavar="P", show_default=False,
        help="TCP port; the default is 8000, and 0 takes a free one.",
    ),
]  # fmt: skip
Host = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="H", show_default=False,
        help="Address to listen on; the default, 127.0.0.1, is this machine alone.",
    ),
]  # fmt: skip
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="FILE.yaml", show_default=False,
        help="Accounts: names, SHA-256 of keys, rates and quotas. Without it one account has the "
        "key in the environment variable SSL_WM_API_KEY, or a random key that is shown.",
    ),
]  # fmt: skip
Defences = Annotated[
    list[str] | None,
    typer.Option(
        "--defence", metavar="NAME[=VALUE]", show_default=False,
        help="rounding=DECIMALS, noise=SIGMA, top-k=K, normalise, rotate or b4b. May be given "
        "again.",
    ),
]  # fmt: skip
Secret = Annotated[
    Path | None,
    typer.Option(
        "--secret", metavar="FILE", show_default=False,
        help="At least 32 random bytes that noise and the accounts' maps are drawn from; without "
        "it they are new at each start.",
    ),
]  # fmt: skip
Usage = Annotated[
    Path | None,
    typer.Option(
        "--usage", metavar="FILE.json", show_default=False,
        help="Keep what accounts have used in this file, over restarts.",
    ),
]  # fmt: skip
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", show_default=False,
        help="Images a pass of the encoder; the default is 64.",
    ),
]  # fmt: skip
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.yaml", show_default=False,
        help="Limits and defences from a YAML file; flags override it.",
    ),
]  # fmt: skip


@serving.command(epilog="Example: ssl-wm serve --encoder marked --port 8000 --keys accounts.yaml")
def serve(
    encoder: o.EncoderSpec,
    port: Port = None,
    host: Host = None,
    keys: Keys = None,
    defence: Defences = None,
    secret: Secret = None,
    usage: Usage = None,
    batch: Batch = None,
    config: Config = None,
) -> None:
    """Answer embedding queries over HTTP: POST /v1/embeddings, /v1/usage, /healthz, /metrics.

    Runs until SIGTERM or Ctrl-C and finishes started requests first. One JSON
    line a request goes to standard error. Load it from elsewhere with
    --encoder http://HOST:PORT. Needs the extra named serve.
    """
    from ssl_wm.commands import serve as serve_commands

    flags = {"port": port, "host": host, "batch": batch}
    serve_commands.serve(
        encoder, flags=flags, defences=defence or [], config=config, keys=keys, secret=secret,
        usage=usage,
    )  # fmt: skip
