"""The robustness benchmark: attempts to wash a mark off, and what each costs in utility.

Each (encoder, attempt, strength, repetition) is one JSON file below ``OUT/cells``, written whole
or not at all. What is there already, made with the same settings, is not run again; a failed
cell is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_wm.bench.kept import kept
from ssl_wm.bench.robustness_judge import Judge, asked_of, concluded
from ssl_wm.bench.robustness_open import Opened
from ssl_wm.bench.robustness_plan import (
    CONTROL,
    UNTOUCHED,
    Cell,
    RobustnessConfig,
    expand,
    missing_images,
)
from ssl_wm.bench.robustness_readings import keep_readings, kept_readings
from ssl_wm.bench.robustness_rows import summary
from ssl_wm.console import say
from ssl_wm.data.image_set import ImageSet
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import OutputError, SslWmError, VerificationError
from ssl_wm.files import plain, write_json
from ssl_wm.removal.remove import REMOVALS, parts_of, remove
from ssl_wm.rng import torch_stream
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe
from ssl_wm.versions import versions

Facts = dict[str, Any]
VERDICTS = ("judged", "verdict", "fresh", "second")
"""What a cell says that follows from its readings."""


class RobustnessBench:
    """One run of a config into one folder.

    Args:
        config: the settings.
        opened: what they name.
        out: the folder; finished cells in it are kept.
    """

    def __init__(self, config: RobustnessConfig, *, opened: Opened, out: Path) -> None:
        self.config, self.opened, self.out = config, opened, out
        self.skipped = missing_images(config)
        self.cells = expand(config, skipped=self.skipped)
        self.judge = Judge(config, opened=opened)
        train = opened.images.train
        self.thief = _some(train, config.thief_limit, config.seed, "thief")
        self.fitted = _some(train, config.utility_limit, config.seed, "utility")
        self.transfer = opened.transfer and _some(
            opened.transfer, config.thief_limit, config.seed, "transfer"
        )

    def run(self, *, after: Callable[[Facts], object] | None = None) -> Facts:
        """Run what is missing; return ``result.json``, which is written after every cell.

        A cell that fails with an error of ours is noted as failed and the run goes on.

        Args:
            after: called with the result so far, at the start where there is one, and whenever a
                cell is done.

        Raises:
            ConfigError: a finished cell was made with other settings; the first is named.
            VerificationError: the key can give no p-value as low as alpha.
            OutputError: the folder cannot be written to.
        """
        done: dict[Cell, Facts] = {}
        for cell in self.cells:
            facts = self._kept(cell)
            if facts is not None:
                done[cell] = facts
        if done:  # it may have been judged again: that is told before anything else is run
            self._tell(done, after)
        for number, cell in enumerate(self.cells, start=1):
            is_new = cell not in done
            if is_new:
                done[cell] = self._run(cell)
                told = f"{number} of {len(self.cells)}, {cell.name}"
                say(f"{told}: {_told(self._concluded(done[cell]))}")
            if cell.attempt == UNTOUCHED:
                _refuse_undecided(self._concluded(done[cell]))
            if is_new:
                self._tell(done, after)
        return self._write(done)

    def _tell(self, done: Mapping[Cell, Facts], after: Callable[[Facts], object] | None) -> None:
        so_far = self._write(done)
        if after is not None:
            after(so_far)

    def _kept(self, cell: Cell) -> Facts | None:
        """Return a finished cell, judged by today's settings; None where it has to be run."""
        path = cell.path(self.out)
        facts = kept(path, self.identity(cell))
        if facts is None:
            return None
        if facts["judged"] == self.judge.settings:
            return facts if self.judge.is_final(facts) else None
        again = self.judge.again(cell, kept_readings(path, facts))
        if again is None:
            return None
        rest = {name: facts[name] for name in facts if name not in VERDICTS}
        facts = {**rest, **plain(again)}
        write_json(path, facts)
        return facts

    def _write(self, done: Mapping[Cell, Facts]) -> Facts:
        """Write and return the result of the cells so far."""
        config = self.config
        begun = {cell.encoder for cell in done if cell.attempt == UNTOUCHED}
        ordered = {
            cell: self._concluded(done[cell])
            for cell in self.cells
            if cell in done and cell.encoder in begun
        }
        result = plain({
            "title": config.title, "left": len(self.cells) - len(ordered),
            **summary(ordered, config=config), "skipped": self.skipped, "versions": versions(),
            "settings": config.model_dump(mode="json"), "common": self.common,
            "seconds": round(sum(facts["seconds"]["all"] for facts in done.values()), 1),
        })  # fmt: skip
        write_json(self.out / "result.json", result)
        return dict(result)

    def _concluded(self, facts: Facts) -> Facts:
        return concluded(facts, confirm=self.config.confirm is not None)

    @cached_property
    def common(self) -> Facts:
        """All that every cell's result depends on."""
        opened, config = self.opened, self.config
        images = opened.images
        return {
            "images": {"train": images.train.fingerprint, "test": images.test.fingerprint},
            "key": f"{opened.key.name}/{opened.key.beacon}",
            "read": asked_of(self.judge.first.read), "seed": config.seed,
            "utility_limit": config.utility_limit, "neighbours": config.neighbours,
        }  # fmt: skip

    def identity(self, cell: Cell) -> Facts:
        """Return all that the cell's result depends on."""
        facts = {
            **self.common, "encoder": self.opened.names[cell.encoder], "attempt": cell.attempt,
            "strengths": list(cell.strengths), "repetition": cell.repetition,
            "control_keys": self.config.control_keys if cell.encoder == CONTROL else 0,
        }  # fmt: skip
        images = self._needed(cell)
        if images is not None:
            facts["thief"] = {"limit": self.config.thief_limit, "images": images.fingerprint}
            facts["removal"] = self.config.removal.model_dump(mode="json")
        return facts

    def _needed(self, cell: Cell) -> ImageSet | None:
        """Return the thief's images where the attempt needs any."""
        if cell.attempt == UNTOUCHED:
            return None
        needs = {REMOVALS[part].needs for part in parts_of(cell.attempt)}
        if "other labels" in needs:
            return self.transfer
        return None if needs == {"nothing"} else self.thief

    def _run(self, cell: Cell) -> Facts:
        """Run one cell and write its file."""
        facts: Facts = {"identity": self.identity(cell), "cell": asdict(cell)}
        began = time.perf_counter()
        seconds: dict[str, float] = {}
        try:
            encoder = self._attempt(cell)
            seconds["attempt"] = time.perf_counter() - began
            told, readings = self.judge(encoder, cell=cell)
            facts |= told | keep_readings(cell.path(self.out), readings)
            seconds["verify"] = time.perf_counter() - began - sum(seconds.values())
            facts |= self._utility(encoder)
            seconds["utility"] = time.perf_counter() - began - sum(seconds.values())
        except OutputError:
            raise
        except SslWmError as error:
            facts = {"identity": facts["identity"], "cell": facts["cell"], "error": str(error)}
        seconds["all"] = time.perf_counter() - began
        facts["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
        facts = plain(facts)
        write_json(cell.path(self.out), facts)
        return facts

    def _attempt(self, cell: Cell) -> Encoder:
        encoder = self.opened.encoders[cell.encoder]
        if cell.attempt == UNTOUCHED:
            return encoder
        return remove(
            encoder, attempt=cell.attempt, strength=cell.strengths, images=self._needed(cell),
            seed=cell.seed(self.config.seed), config=self.config.removal,
        )  # fmt: skip

    def _utility(self, encoder: Encoder) -> Facts:
        """Return accuracies of both readers and which test images they get right."""
        precision, test = self.judge.first.read.precision, self.opened.images.test
        z, z_test = (embed(encoder, part, precision=precision) for part in (self.fitted, test))
        labels = self.fitted.labels
        said = {
            "linear": fit_probe(z, labels).predict(z_test),
            "knn": knn_predict(z_test, z, labels, k=self.config.neighbours),
        }
        hits = {name: answer == test.labels for name, answer in said.items()}
        return {
            "utility": {name: float(each.double().mean()) for name, each in hits.items()},
            "hits": {name: packed(each) for name, each in hits.items()},
            "tested": len(test),
        }


def packed(hits: Tensor) -> str:
    """Return booleans (N,) as hex, eight to a byte.

    >>> packed(torch.tensor([True, False, False, False, False, False, False, True, True]))
    '8180'
    """
    return np.packbits(hits.numpy()).tobytes().hex()


def _some(images: ImageSet, limit: int | None, seed: int, purpose: str) -> ImageSet:
    """Return at most ``limit`` of the images, drawn at random."""
    if limit is None or limit >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch_stream(seed, "robustness", purpose))
    return images.subset(order[:limit].sort().values)


def _refuse_undecided(facts: Facts) -> None:
    """Do nothing where the untouched encoder could be read and judged.

    Raises:
        VerificationError: it could not, so no attempt on it has anything to be compared with.
    """
    name = facts["cell"]["encoder"]
    if "error" in facts:
        raise VerificationError(f"encoder '{name}' cannot be measured: {facts['error']}")
    if facts["verdict"]["decision"] == "inconclusive":
        raise VerificationError(f"encoder '{name}': {facts['verdict']['reason']}")


def _told(facts: Facts) -> str:
    if "error" in facts:
        return f"failed: {facts['error']}"
    again = " (read again)" if facts["verdict"]["readings"] > 1 else ""
    return (
        f"p = {facts['verdict']['p_value']:.2g}{again}, "
        f"linear {100 * facts['utility']['linear']:.1f} %, {facts['seconds']['all']:.1f} s"
    )
