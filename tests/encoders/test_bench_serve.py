"""The throughput script runs and tells both sides and the waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_serve.py"


def test_the_throughput_of_both_sides_is_measured():
    words = ["--encoder", "convnet-xs", "--images", "64", "--per-request", "16", "--rounds", "1"]
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--clients", "2"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    rates = told["images_per_second"]
    assert told["ratios"] == [told["ratio"]]
    assert abs(told["ratio"] - rates["served"] / rates["local"]) < 0.01
    assert 0 < told["seconds_a_request"]["p50"] <= told["seconds_a_request"]["p99"]
