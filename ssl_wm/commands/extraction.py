"""What ``ssl-wm bench extraction`` does: specs in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_wm.bench.extraction import ExtractionBench
from ssl_wm.bench.extraction_plan import SAME, ExtractionConfig
from ssl_wm.commands.claims import load_nulls
from ssl_wm.commands.outputs import Out
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import load_encoder
from ssl_wm.report.extraction import write_extraction
from ssl_wm.watermark.keyfile import load_key

__all__ = ["Out", "bench_extraction"]


def bench_extraction(
    config: ExtractionConfig, *, victim: str, key: Path | None, nulls: Sequence[str], out: Out,
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Run a benchmark of thefts into ``out`` and return its result.

    Raises:
        SslWmError: bad settings, images, encoders, key or folder, or no cell could be measured.
    """
    out.check()
    secret = None if key is None else load_key(key)
    chosen = config.images
    images = open_images(
        chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download
    )
    bench = ExtractionBench(
        config, victim=load_encoder(victim), images=images, out=out.folder, key=secret,
        nulls=load_nulls(nulls), name=victim,
    )  # fmt: skip
    pools = [spec for spec in config.pools if spec != SAME]
    read: list[str | Path] = [
        victim,
        images.spec,
        *pools,
        *nulls,
        *inputs,
        *([] if key is None else [key]),
    ]
    folder = out.claim(inputs=read)
    result = bench.run()
    files = [str(path) for path in write_extraction(result, folder)]
    return {"out": str(folder), "files": [str(folder / "result.json"), *files], **result}
