"""What ``ssl-wm bench survival`` does: settings in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_wm.bench.survival import SurvivalBench
from ssl_wm.bench.survival_plan import SurvivalConfig, load_survival_config, pools_of
from ssl_wm.commands.outputs import Out
from ssl_wm.data.sources import open_images
from ssl_wm.report.survival import write_survival, write_table

__all__ = ["Out", "bench_survival", "load_survival_config"]
LONG = ("settings", "common", "versions")


def bench_survival(
    config: SurvivalConfig, *, out: Out, inputs: Sequence[Path] = (),
    only: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a survival benchmark, or ``only`` some of its runs, into ``out``; return its result.

    Raises:
        SslWmError: bad settings, images, encoders or folder, or no cell could be measured.
    """
    out.check()
    chosen = config.images
    images = open_images(
        chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download
    )
    bench = SurvivalBench(config, images=images, out=out.folder)
    starts = [spec for grids in config.thefts.values() for grid in grids for spec in grid.starts]
    given = [config.clean.encoder, config.steal.start]
    read = [images.spec, *pools_of(config), *starts, *(spec for spec in given if spec)]
    folder = out.claim(inputs=[*read, *inputs])
    result = bench.run(only=only, after=lambda so_far: write_table(so_far, folder))
    files = [str(folder / "result.json"), *write_survival(result, folder)]
    told = {name: value for name, value in result.items() if name not in LONG}
    return {"out": str(folder), "files": files, **told}
