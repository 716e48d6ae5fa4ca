"""Fidelity, utility and the mark of stolen copies against the budget, cell by cell.

Each cell is one folder below ``cells``: the copy, ``asked.json`` (what it was made of),
``images.safetensors`` (the measures of every test image) and, written last, ``cell.json``.
A cell that was measured is not made again; one that failed is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_wm.bench.agreement import EXACT, RULE, Reading, per_image, read_labels
from ssl_wm.bench.extraction_plan import SAME, ExtractionCell, ExtractionConfig, expand, pools_of
from ssl_wm.bench.extraction_rows import Measured, make_rows, marks
from ssl_wm.bench.kept import refuse_others, seconds_before
from ssl_wm.console import say
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.encoders.properties import known_digest
from ssl_wm.encoders.saved import FACTS
from ssl_wm.errors import ConfigError, OutputError, SslWmError, VerificationError
from ssl_wm.extraction.settings import checked_attack
from ssl_wm.extraction.steal import steal
from ssl_wm.files import plain, read_json, read_tensors, write_json, write_tensors
from ssl_wm.training.loop import finish
from ssl_wm.verification.once import Memory
from ssl_wm.verification.questions import FRESH, OTHERS, question_size
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.verification.verdict import Verdict
from ssl_wm.verification.verify import verify
from ssl_wm.versions import versions
from ssl_wm.watermark.key import WatermarkKey

CELLS = "cells"


class ExtractionBench:
    """One benchmark of thefts into one folder.

    Args:
        config: what is stolen how.
        victim: who answers.
        images: the victim's, as the config names them.
        out: the folder; measured cells in it are kept.
        key: the owner's key; without one nothing is judged.
        nulls: null encoders, the owner's clean one first; needed with a key.
        name: of a victim without weights (an address), to tell it from another one.

    Raises:
        ConfigError: there is a key and no null encoder, or settings contradict each other.
        KeyFileError: the key was made for other images.
        DataError: a pool cannot be used.
    """

    def __init__(
        self,
        config: ExtractionConfig,
        *,
        victim: Encoder,
        images: Images,
        out: Path,
        key: WatermarkKey | None = None,
        nulls: Sequence[Encoder] = (),
        name: str = "",
    ) -> None:
        if key is not None and not nulls:
            raise ConfigError("a key needs a null encoder to compare with: add --null SPEC")
        if key is not None:
            key.check_images(images)
        self.config, self.victim, self.images, self.out = config, victim, images, out
        self.key, self.nulls = key, nulls
        self.pools = {spec: self._pool(spec) for spec in pools_of(config)}
        sizes = {spec: len(pool) for spec, pool in self.pools.items()}
        self.cells = expand(config, sizes=sizes)
        for cell in self.cells:
            checked_attack(cell.theft(config))
        self.memory = Memory()
        self.common = plain({
            "victim": known_digest(victim) or victim.made.get("url") or name,
            "images": {"train": images.train.fingerprint, "test": images.test.fingerprint},
            "key": None if key is None else key.name,
            "nulls": [known_digest(null) for null in nulls],
            "verify": None if key is None else config.verify.model_dump(mode="json"),
            "precision": config.verify.read.precision,
            "neighbours": config.neighbours,
        })  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Make and measure what is not there yet; return and write ``result.json``.

        Raises:
            ConfigError: a cell in the folder was made with other settings; the first is named.
            VerificationError: not one cell could be measured.
            OutputError: the folder cannot be written to.
        """
        refuse_others(self.out / "victim.json", self.common, under="asked")
        for cell in self.cells:
            refuse_others(self._folder(cell) / "asked.json", self._asked(cell), under="asked")
        measured = []
        for number, cell in enumerate(self.cells, start=1):
            measured.append(self._cell(cell, said=f"{number} of {len(self.cells)}, {cell.name}"))
        result = {
            "title": self.config.title,
            "settings": self.config.model_dump(mode="json"),
            "common": self.common,
            "versions": versions(),
            "victim": self._victim_facts(),
            "rows": make_rows(measured, price=self.config.price),
            "rule": RULE,
            "cells": len(measured),
            "failed": sum(each.images is None for each in measured),
            "seconds": {each.cell.name: each.facts["seconds"] for each in measured},
        }
        result = dict(plain(result))
        write_json(self.out / "result.json", result)
        if result["failed"] == len(measured):
            raise VerificationError(
                f"none of {len(measured)} cells could be measured; the first, "
                f"{measured[0].cell.name}: {measured[0].facts['error']}"
            )
        return result

    def _folder(self, cell: ExtractionCell) -> Path:
        return self.out / CELLS / cell.name

    def _pool(self, spec: str) -> ImageSet:
        if spec == SAME:
            return self.images.train
        side = self.images.train.size[0]
        return open_images(spec, size=side, download=self.config.images.download).train

    def _asked(self, cell: ExtractionCell) -> dict[str, Any]:
        """Return all that the cell's numbers follow from."""
        theft = cell.theft(self.config).model_dump(mode="json")
        pool = self.pools[cell.pool].fingerprint
        return {"steal": plain(theft), "pool": pool, **self.common}

    def _cell(self, cell: ExtractionCell, *, said: str) -> Measured:
        folder = self._folder(cell)
        path = folder / "cell.json"
        if path.is_file():
            facts = read_json(path, what="measured cell")
            if facts["status"] == "measured":
                drop_answers(folder)
                return Measured(cell, facts, read_tensors(folder / "images.safetensors"))
        say(said)
        write_json(folder / "asked.json", {"asked": self._asked(cell)})
        began = time.perf_counter()
        try:
            facts, images = self._measure(cell, folder)
        except OutputError:
            raise
        except SslWmError as error:
            say(f"{cell.name} failed: {error}")
            facts, images = {"status": "failed", "error": str(error)}, None
            facts["seconds"] = {"all": round(time.perf_counter() - began, 1)}
        else:
            write_tensors(folder / "images.safetensors", images)
        write_json(path, {"cell": vars(cell), **facts})
        if images is not None:
            drop_answers(folder)
        return Measured(cell, facts, images)

    def _measure(self, cell: ExtractionCell, folder: Path) -> tuple[dict[str, Any], Any]:
        """Return the facts of a cell and the measures of each test image."""
        victim = self._reading
        before = seconds_before(folder)
        began = time.perf_counter() - before
        if (folder / FACTS).is_file():
            copy, seconds = load_encoder(folder), before
        else:
            pool, config = self.pools[cell.pool], cell.theft(self.config)
            copy = steal(self.victim, images=pool, config=config, folder=folder).surrogate
            save_encoder(copy, folder)
            seconds = time.perf_counter() - began
        middle = time.perf_counter()
        reading = self._read(copy)
        images = per_image(reading, victim=victim, labels=self.images.test.labels)
        verdict = self._judge(copy)
        calls = read_json(folder / "ledger.json", what="ledger")["calls"]
        facts = {
            "status": "measured",
            "surrogate": copy.arch,
            "parameters": sum(each.numel() for each in copy.backbone.parameters()),
            "means": {name: float(values.mean()) for name, values in images.items()},
            "verdict": verdict,
            "calls": calls,
            "seconds": {
                "steal": round(seconds, 1), "measure": round(time.perf_counter() - middle, 1),
            },
        }  # fmt: skip
        return plain(facts), {name: values.float() for name, values in images.items()}

    @cached_property
    def _reading(self) -> Reading:
        """The victim on the test images, read once a run."""
        return self._read(self.victim)

    def _read(self, encoder: Encoder) -> Reading:
        train, test = self.images.train, self.images.test
        precision = self.config.verify.read.precision
        z, z_test = (embed(encoder, part, precision=precision) for part in (train, test))
        return read_labels(z, train.labels, z_test, k=self.config.neighbours)

    def _judge(self, encoder: Encoder) -> dict[str, Any] | None:
        if self.key is None:
            return None
        verdict = verify(
            encoder, key=self.key, images=self.images, nulls=self.nulls,
            config=self.config.verify, memory=self.memory,
        )  # fmt: skip
        return {**plain(verdict.to_dict()), **_hits(verdict, self.key)}

    def _victim_facts(self) -> dict[str, Any]:
        """Return the victim's own utility and mark, measured once for all runs."""
        path = self.out / "victim.json"
        if path.is_file():
            return dict(read_json(path, what="victim's measures")["measures"])
        labels = self.images.test.labels
        facts = {
            name: _share(said == labels)
            for name, said in (("linear", self._reading.linear), ("knn", self._reading.knn))
        }
        verdict = self._judge(self.victim)
        facts |= {} if verdict is None else marks([verdict])
        write_json(path, {"asked": self.common, "measures": facts})
        return facts


def _share(hits: Tensor) -> dict[str, Any]:
    count, total = int(hits.sum()), len(hits)
    return {
        "value": count / total, "interval": list(clopper_pearson(count, total)), "how": EXACT,
    }  # fmt: skip


def _hits(verdict: Verdict, key: WatermarkKey) -> dict[str, list[int]]:
    """Return (hits, composites) behind WSR and WFPR, all sub-keys together."""
    config = ReadConfig.as_written(verdict.facts["settings"]["read"])
    told = {}
    for name, kind in (("wsr", FRESH), ("wfpr", OTHERS)):
        hits, total = 0, 0
        for sub in verdict.sub_keys:
            count = question_size(f"{kind}/{sub.index}", key, config=config)
            hits += round(float(str(sub.readers[str(verdict.reader)][name])) * count)
            total += count
        told[f"{name}_hits"] = [hits, total]
    return told


def drop_answers(folder: Path) -> None:
    """Drop what only resuming a theft needs: the checkpoint and many MB of answers."""
    finish(folder)
    for name in ("transfer.safetensors", "queries.json"):
        (folder / name).unlink(missing_ok=True)
