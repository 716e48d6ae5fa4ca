"""Peak memory of each stage against the size of its inputs, each in a process of its own.

What is measured is the resident memory of the whole process: ``baseline_bytes`` after the
libraries are imported, ``peak_bytes`` at the highest, inputs included. On Linux both are read from
``/proc/self/status``; elsewhere only the highest is known (``getrusage``), and the baseline is the
highest until then.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_wm.bench.speed_sizes import Setup, synthetic_embeddings, synthetic_pixels
from ssl_wm.bench.speed_training import our_training
from ssl_wm.console import say
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder
from ssl_wm.encoders.nearest import nearest
from ssl_wm.errors import SslWmError, VerificationError
from ssl_wm.verification.answers import ask
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.watermark.groups import label_groups
from ssl_wm.watermark.key import new_key

Facts = dict[str, Any]
LIMIT = 8 * 10**9
"""Bytes within which the large bank is to be searched."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Work:
    """A stage with its inputs made ready.

    Attributes:
        inputs: shape of each.
        input_bytes: of all together.
        run: the stage.
    """

    inputs: Mapping[str, list[int]]
    input_bytes: int
    run: Callable[[], object]


def prepared(
    run: Callable[[], object], *, network: nn.Module | None = None, **tensors: Tensor
) -> Work:
    """Return a stage with named inputs; a network counts with its weights."""
    held = list(network.state_dict().values()) if network is not None else []
    shapes = {name: list(each.shape) for name, each in tensors.items()}
    if network is not None:
        shapes["weights"] = [sum(each.numel() for each in held)]
    total = sum(each.numel() * each.element_size() for each in (*tensors.values(), *held))
    return Work(shapes, total, run)


def _training(setup: Setup) -> Work:
    brief = {"warmup": 1, "steps": 1, "embedded": 2}
    short = replace(setup, sizes=setup.sizes.model_copy(update=brief), workers=0)
    images = short.pixels
    network = build_encoder(short.sizes.arch, seed=short.seed)
    return prepared(lambda: our_training(short, clock=lambda: 0.0), network=network, images=images)


def _embedding(setup: Setup) -> Work:
    images = synthetic_pixels(setup.sizes.memory_images, seed=setup.seed)
    encoder = build_encoder(setup.sizes.arch, seed=setup.seed).to(setup.device)
    return prepared(lambda: embed(encoder, images), network=encoder, images=images)


def _reads(setup: Setup) -> Work:
    """Return the reading of an encoder with a key: composites of all pairs, decoys, references."""
    sizes = setup.sizes
    count = sizes.memory_images
    labels = torch.arange(count) % sizes.classes
    names = tuple(f"class {label}" for label in range(sizes.classes))
    train, test = (
        ImageSet("speed", split, synthetic_pixels(count, seed=setup.seed + place), labels, names)
        for place, split in enumerate(("train", "test"))
    )
    images = Images("speed", train, test)
    key = new_key(images, groups=label_groups(images), secret=bytes(32))
    encoder = build_encoder(sizes.arch, seed=setup.seed).to(setup.device)
    config = ReadConfig(
        per_pair=sizes.read_per_pair, recipes=sizes.read_recipes, reference=sizes.read_reference
    )

    def run() -> object:
        return read_margins(ask(encoder, key, images, config=config), key, config=config)

    pixels = [part.take(torch.arange(count)) for part in (train, test)]
    return prepared(run, network=encoder, train=pixels[0], test=pixels[1])


def _knn(setup: Setup) -> Work:
    sizes = setup.sizes
    return _search(setup, rows=sizes.bank, width=sizes.width, queries=sizes.queries)


def _large_knn(setup: Setup) -> Work:
    sizes = setup.sizes
    return _search(
        setup, rows=sizes.large_bank, width=sizes.large_width, queries=sizes.large_queries
    )


def _search(setup: Setup, *, rows: int, width: int, queries: int) -> Work:
    shape = {"width": width, "classes": setup.sizes.classes, "seed": setup.seed}
    bank, _ = synthetic_embeddings(rows, **shape, split="bank")
    asked, _ = synthetic_embeddings(queries, **shape, split="queries")
    k = min(setup.sizes.neighbours, rows)
    return prepared(lambda: nearest(asked, bank, k=k), bank=bank, queries=asked)


def _probe(setup: Setup) -> Work:
    sizes = setup.sizes
    z, labels = synthetic_embeddings(
        sizes.probed, width=sizes.width, classes=sizes.classes, seed=setup.seed, split="probe"
    )
    return prepared(lambda: fit_probe(z, labels), rows=z, labels=labels)


STAGES: Mapping[str, Callable[[Setup], Work]] = {
    "training": _training,
    "embedding": _embedding,
    "verification reads": _reads,
    "knn": _knn,
    "large knn": _large_knn,
    "probe": _probe,
}
LIMITS: Mapping[str, int] = {"large knn": LIMIT}


def measure_stage(name: str, setup: Setup) -> Facts:
    """Run one stage in this process and return its memory; ``STAGES`` has the names."""
    import faiss  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    baseline = resident()
    work = STAGES[name](setup)
    work.run()
    told: Facts = {
        "inputs": dict(work.inputs), "input_bytes": work.input_bytes, "baseline_bytes": baseline,
        "peak_bytes": peak(),
    }  # fmt: skip
    if setup.on_gpu:
        told["device_peak_bytes"] = torch.cuda.max_memory_allocated(setup.device)
    return told


def judge_stage(name: str, measured: Facts) -> Facts:
    """Return a stage's memory with its ratio to the inputs and, where there is one, its limit.

    >>> told = judge_stage("knn", {"input_bytes": 10, "baseline_bytes": 5, "peak_bytes": 30})
    >>> told["above_baseline_bytes"], told["ratio"], "met" in told
    (25, 2.5, False)
    """
    above = measured["peak_bytes"] - measured["baseline_bytes"]
    told = {
        **measured, "above_baseline_bytes": above, "ratio": above / measured["input_bytes"]
    }  # fmt: skip
    if name in LIMITS:
        limit = LIMITS[name]
        told |= {"limit_bytes": limit, "met": measured["peak_bytes"] <= limit}
    return told


def measure_memory(setup: Setup) -> Facts:
    """Return the memory of every stage, each measured in a fresh process.

    A stage that fails is told with its error, and the others are measured.

    Raises:
        VerificationError: no stage could be measured.
    """
    stages: Facts = {}
    for name in STAGES:
        try:
            stages[name] = judge_stage(name, in_child(measure_stage, name, replace(setup)))
            say(f"memory of {name}: at most {stages[name]['peak_bytes'] / 1e9:.2f} GB")
        except SslWmError as error:
            stages[name] = {"error": str(error)}
            say(f"memory of {name} could not be measured: {error}")
    good = [told for told in stages.values() if "error" not in told]
    if not good:
        raise VerificationError(
            f"no stage's memory could be measured; the first says: {stages[next(iter(STAGES))]}"
        )
    whole = len(good) == len(stages)
    return {
        "compared": "memory", "stages": stages,
        "met": whole and all(told.get("met", True) for told in good),
    }  # fmt: skip


def in_child(work: Callable[..., Facts], *given: Any) -> Facts:
    """Return what ``work(*given)`` returns in a fresh process.

    Raises:
        VerificationError: the process ended early, as one does that takes too much memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(work, *given).result()
        except BrokenProcessPool:
            raise VerificationError(
                "the process that was measured ended early, as one does that is given less memory "
                "than it takes; free some memory, or lower sizes in --config"
            ) from None


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    return _status("VmRSS") or _highest()


def peak() -> int:
    """Return the most bytes of memory that this process has held."""
    return _status("VmHWM") or _highest()


def _status(name: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes; 0 where there is none.

    The fields are of this program alone. ``getrusage`` on Linux also counts the process that
    started it.
    """
    if not STATUS.is_file():
        return 0
    found = [line.split() for line in STATUS.read_text().splitlines() if line.startswith(name)]
    return 1024 * int(found[0][1]) if found else 0


def _highest() -> int:
    try:
        import resource
    except ModuleNotFoundError:
        raise VerificationError("this system does not tell a process's peak memory") from None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
