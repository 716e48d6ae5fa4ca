"""What ``ssl-wm bench robustness`` does: specs in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_wm.bench.robustness import RobustnessBench
from ssl_wm.bench.robustness_open import open_robustness
from ssl_wm.bench.robustness_plan import NAME, RobustnessConfig
from ssl_wm.commands.outputs import Out
from ssl_wm.errors import ConfigError
from ssl_wm.removal.remove import parts_of
from ssl_wm.report.robustness import write_robustness, write_table

__all__ = ["Out", "bench_robustness", "read_encoders", "read_strengths"]
LONG = ("rows", "settings", "common", "versions", "title")


def bench_robustness(
    config: RobustnessConfig, *, out: Out, inputs: Sequence[Path] = ()
) -> dict[str, Any]:
    """Run a robustness benchmark into ``out`` and return its findings.

    The rows are in ``result.json`` alone.

    Raises:
        SslWmError: bad settings, images, encoders, key or folder, or an encoder that cannot be
            measured before any attempt.
    """
    out.check()
    opened = open_robustness(config)
    specs = [*config.encoders.values(), *config.nulls, config.images.spec]
    specs += [each for each in (config.control, config.transfer and config.transfer.spec) if each]
    folder = out.claim(inputs=[*specs, config.key, *inputs])
    bench = RobustnessBench(config, opened=opened, out=folder)
    result = bench.run(after=lambda so_far: write_table(so_far, folder))
    files = [str(folder / "result.json"), *write_robustness(result, folder)]
    told = {name: value for name, value in result.items() if name not in LONG}
    return {"out": str(folder), **told, "cells": len(result["rows"]), "files": files}


def read_strengths(texts: Sequence[str] | None) -> dict[str, list[list[float]]] | None:
    """Return the strengths in texts of the form "NAME=S,S"; of a stack "A+B=S:S,S:S".

    Raises:
        ConfigError: a text has another form.

    >>> read_strengths(["prune=0.1,0.5", "prune+ftal=0.3:0.001"])
    {'prune': [[0.1], [0.5]], 'prune+ftal': [[0.3, 0.001]]}
    """
    found: dict[str, list[list[float]]] = {}
    for text in texts or ():
        name, _, values = text.partition("=")
        try:
            each = [[float(part) for part in value.split(":")] for value in values.split(",")]
        except ValueError:
            raise ConfigError(
                f"--strengths takes NAME=S,S,... (of a stack A+B=S:S,...); got '{text}'"
            ) from None
        found["+".join(parts_of(name))] = each
    return found or None


def read_encoders(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Return encoder specs by name from texts of the form "NAME=SPEC".

    Raises:
        ConfigError: a text has another form, or a name comes twice.

    >>> read_encoders(["victim=runs/marked", "copy=runs/stolen?arch=x"])
    {'victim': 'runs/marked', 'copy': 'runs/stolen?arch=x'}
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, sign, spec = text.partition("=")
        if not (sign and NAME.fullmatch(name) and spec):
            raise ConfigError(f"--encoder takes NAME=SPEC, e.g. victim=marked; got '{text}'")
        if name in found:
            raise ConfigError(f"--encoder {name}=... comes twice; give each encoder its own name")
        found[name] = spec
    return found or None
