"""The speed benchmark: each way of working beside another one, in turns, in one run.

``OUT/speed.json`` is written whole after every measurement. What is there already, made with the
same settings on the same machine, is not measured again; a failed measurement is.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_wm.bench.kept import difference
from ssl_wm.bench.side_by_side import Case, Clock, measure
from ssl_wm.bench.speed_memory import measure_memory
from ssl_wm.bench.speed_plan import NAMES, SpeedConfig, machine, setup_of
from ssl_wm.bench.speed_reading import embedding_case, knn_case, probe_case
from ssl_wm.bench.speed_sizes import Setup
from ssl_wm.bench.speed_training import augmentation_case, training_case
from ssl_wm.console import say
from ssl_wm.encoders.properties import one_line
from ssl_wm.errors import ConfigError, OutputError, SslWmError, VerificationError
from ssl_wm.files import plain, read_json, write_json
from ssl_wm.versions import versions

Facts = dict[str, Any]
RESULT = "speed.json"
CASES: Mapping[str, Callable[[Setup], Case]] = {
    "training": training_case,
    "augmentation": augmentation_case,
    "embedding": embedding_case,
    "knn": knn_case,
    "probe": probe_case,
}
"""Every measurement of two sides; ``memory`` has none."""
OWN_WARMUP = frozenset({"training"})
"""Measurements whose every run begins with untimed steps."""


def run_speed(config: SpeedConfig, *, out: Path, clock: Clock = time.perf_counter) -> Facts:
    """Run what is missing; return and write ``speed.json``.

    A measurement that fails with an error of ours, or for want of the device's memory, is noted
    and the run goes on.

    Args:
        config: the settings.
        out: the folder; finished measurements in it are kept.
        clock: seconds, from any origin.

    Raises:
        ConfigError: what is in the folder was made with other settings or on another machine.
        VerificationError: nothing could be measured.
        OutputError: the folder cannot be written to.
    """
    setup, load = setup_of(config), busy()
    identity = identity_of(config, setup)
    done = finished(out / RESULT, identity)
    result = told(done, identity)
    names = config.chosen
    for number, name in enumerate(names, start=1):
        if name not in done:
            done[name] = run_case(name, setup, repeats=config.repeats, clock=clock)
            done[name]["load_before_run"] = load
            say(f"{number} of {len(names)}, {name}: {short(done[name])}")
            result = told(done, identity)
            write_json(out / RESULT, result)
    if all("error" in facts for facts in done.values()):
        first = next(iter(done.values()))["error"]
        raise VerificationError(
            f"none of {len(done)} measurements could be made; the first says: {first}"
        )
    return result


def identity_of(config: SpeedConfig, setup: Setup) -> Facts:
    """Return all that the figures depend on."""
    facts: Facts = plain({
        "settings": {
            **config.model_dump(mode="json", exclude={"cases", "sizes", "device", "workers"}),
            "device": str(setup.device), "workers": setup.workers,
            "sizes": setup.sizes.model_dump(),
        },
        "machine": machine(), "versions": versions(),
    })  # fmt: skip
    return facts


def finished(path: Path, identity: Facts) -> dict[str, Facts]:
    """Return what an earlier run measured, without what failed.

    Raises:
        ConfigError: it had other settings, another machine or other versions, or is damaged.
    """
    if not path.is_file():
        return {}
    before = read_json(path, error=ConfigError, what="result")
    parts = {name: before.get(name) for name in identity} if isinstance(before, dict) else {}
    changed = difference(parts, identity)
    if changed:
        raise ConfigError(
            f"{path} was measured with other settings ({changed}); resume with the settings and "
            "on the machine of then, or use --overwrite, or another --out"
        )
    return {name: facts for name, facts in before["cases"].items() if "error" not in facts}


def run_case(name: str, setup: Setup, *, repeats: int, clock: Clock) -> Facts:
    """Return one measurement, or the error that it ended with, and how long it took."""
    began = time.perf_counter()
    try:
        if name == "memory":
            facts = measure_memory(setup)
        else:
            case = CASES[name](setup)
            facts = measure(case, repeats=repeats, clock=clock, warm=name not in OWN_WARMUP)
            del case
    except OutputError:
        raise
    except SslWmError as error:
        facts = {"error": str(error)}
    except torch.OutOfMemoryError as error:
        facts = {"error": f"the device's memory does not suffice: {one_line(error)}"}
    gc.collect()
    if setup.on_gpu:
        torch.cuda.empty_cache()
    facts["took_seconds"] = round(time.perf_counter() - began, 1)
    whole: Facts = plain(facts)
    return whole


def busy() -> float | None:
    """Return how many processes wanted the processor in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def told(done: Mapping[str, Facts], identity: Facts) -> Facts:
    """Return the whole result; measurements come in the order of ``NAMES``."""
    cases = {name: done[name] for name in NAMES if name in done}
    facts: Facts = plain({
        **identity, "repeats": identity["settings"]["repeats"],
        "quick": identity["settings"]["quick"], "cases": cases,
        "failed": [name for name, each in cases.items() if "error" in each],
        "met": [name for name, each in cases.items() if each.get("met")],
    })  # fmt: skip
    return facts


def short(facts: Facts) -> str:
    """Return one measurement in a few words.

    >>> short({"ratio": {"median": 3.1415, "low": 3, "high": 4}, "took_seconds": 2.0})
    'ratio 3.14 (3 to 4), 2.0 s'
    """
    if "error" in facts:
        return f"failed: {facts['error']}"
    if "ratio" not in facts:
        return f"{len(facts['stages'])} stages, {facts['took_seconds']} s"
    of = facts["ratio"]
    spread = f"{of['low']:.3g} to {of['high']:.3g}"
    return f"ratio {of['median']:.3g} ({spread}), {facts['took_seconds']} s"
