"""What ``ssl-wm bench speed`` does: settings in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_wm.bench.speed import RESULT, run_speed
from ssl_wm.bench.speed_plan import SpeedConfig, load_speed_config
from ssl_wm.commands.outputs import Out
from ssl_wm.report.speed import write_speed

__all__ = ["Out", "bench_speed", "load_speed_config"]


def bench_speed(config: SpeedConfig, *, out: Out, inputs: Sequence[Path] = ()) -> dict[str, Any]:
    """Measure into ``out`` and return the result.

    Raises:
        SslWmError: bad settings or folder, or nothing could be measured.
    """
    out.check()
    folder = out.claim(inputs=list(inputs))
    result = run_speed(config, out=folder)
    files = [str(folder / RESULT), *write_speed(result, folder)]
    return {"out": str(folder), "files": files, **result}
