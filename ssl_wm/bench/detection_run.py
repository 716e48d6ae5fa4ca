"""One run of the detection benchmark: which cells there are, running them, writing the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_wm.bench.detection_cells import (
    Cell,
    Facts,
    attempt,
    detection_facts,
    found_facts,
    keep,
    owners_composites,
    read_detection,
)
from ssl_wm.bench.detection_plan import DetectionBench, Subject, expand
from ssl_wm.bench.detection_summary import compare, missing, queries_told
from ssl_wm.bench.kept import kept, stored
from ssl_wm.console import say
from ssl_wm.data.image_set import Images
from ssl_wm.detection.detect import DETECTORS, judge, scan
from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.success import OWN_GROUPS, Trial
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.files import canonical_json, plain, sha256_bytes, write_bytes, write_json, write_text
from ssl_wm.report.detection import roc_png, tables_markdown
from ssl_wm.verification.answers import ask
from ssl_wm.verification.readings import read_rates
from ssl_wm.versions import versions
from ssl_wm.watermark.open_key import OpenKey


class DetectionRun:
    """One run of a config into one folder.

    Args:
        config: the settings.
        subjects: the encoders, marked ones first.
        images: those that the config names.
        out: the folder; finished cells in it are kept.

    Raises:
        ConfigError: a finished cell was made with other settings.
    """

    def __init__(
        self, config: DetectionBench, *, subjects: Sequence[Subject], images: Images, out: Path
    ) -> None:
        self.config, self.images, self.out = config, images, out
        self.subjects = {each.name: each for each in subjects}
        self.keys = {each.name: each.key for each in subjects if each.key is not None}
        self.detectors = config.detectors or tuple(DETECTORS)
        named = {name: f"{key.name}/{key.beacon}" for name, key in self.keys.items()}
        clean = [each.name for each in subjects if each.key is None]
        self.cells = expand(named, clean, self.detectors)
        self.done: dict[Cell, Facts] = {}
        for cell in self.cells:
            facts = kept(cell.path(out), self.identity(cell))
            if facts is not None:
                self.done[cell] = facts

    @cached_property
    def common_groups(self) -> OpenKey | None:
        """A key with the public groups that all marked encoders share, if they share them."""
        first, *others = self.keys.values()
        same = all(
            torch.equal(first.groups.of(split), each.groups.of(split))
            for each in others
            for split in ("train", "test")
        )
        return first if same else None

    def groups_key(self, detector: str) -> OpenKey | None:
        """Return the key whose public groups a detector is given; None means the labels."""
        return self.common_groups if detector == "prms" else None

    def identity(self, cell: Cell) -> Facts:
        """Return all that a cell's result depends on."""
        subject, groups = self.subjects[cell.encoder], self.groups_key(cell.detector)
        asked = self.keys.get(cell.queries_of)
        config = self.config
        return {
            "detector": cell.detector, "encoder": subject.digest,
            "images": {"train": self.prints[0], "test": self.prints[1]},
            "groups": "labels" if groups is None else _named(groups.groups.train),
            "key": None if subject.key is None else subject.key.name,
            "queries": None if asked is None else {
                "key": asked.name, "beacon": asked.beacon, "count": config.queries,
            },
            "composites": config.queries if subject.key is not None else None,
            "seed": config.seed, "settings": config.settings.model_dump(mode="json"),
            "trial": config.trial.model_dump(mode="json"),
        }  # fmt: skip

    @cached_property
    def prints(self) -> tuple[str, str]:
        """Fingerprints of the training and the test images."""
        return self.images.train.fingerprint, self.images.test.fingerprint

    def given(self, cell: Cell) -> Given:
        """Return what the cell's detector is given."""
        key, images = self.groups_key(cell.detector), self.images.train
        if key is not None:
            images = replace(images, labels=key.groups.train, class_names=key.groups.names)
        asked = self.keys.get(cell.queries_of)
        queries = None if asked is None else self.composites(asked)
        return Given(images, queries, self.config.seed, self.config.settings)

    def composites(self, key: OpenKey) -> Tensor:
        """Return the owner's composites (Q, 3, H, W) uint8."""
        return owners_composites(key, self.images, count=self.config.queries)

    def run(self) -> Facts:
        """Run what is missing; return and write result.json, table.md and roc.png."""
        for name, missing_cells in self._missing():
            encoder = load_encoder(self.subjects[name].spec)
            trial = self._trial(encoder)
            for cell in missing_cells:
                self.done[cell] = self._run(cell, encoder, trial)
        rates = {name: self._rates(name) for name in self.keys}
        result = self._result(rates)
        write_json(self.out / "result.json", result)
        write_text(self.out / "table.md", tables_markdown(result))
        write_bytes(self.out / "roc.png", roc_png(result))
        return result

    def _missing(self) -> Iterator[tuple[str, list[Cell]]]:
        for name in self.subjects:
            cells = [c for c in self.cells if c.encoder == name and c not in self.done]
            if cells:
                yield name, cells

    def _trial(self, encoder: Encoder) -> Trial:
        config = self.config
        return Trial(encoder, images=self.images, seed=config.seed, config=config.trial)

    def _run(self, cell: Cell, encoder: Encoder, trial: Trial) -> Facts:
        began, identity = time.perf_counter(), self.identity(cell)
        found: list[Detection] = []

        def look() -> Facts:
            given = self.given(cell)
            detection = scan(
                encoder, detector=cell.detector, images=given.images, queries=given.queries,
                seed=given.seed, config=given.config,
            )  # fmt: skip
            facts = {"identity": identity, **detection_facts(detection)}
            if DETECTORS[cell.detector].rescore is None:
                facts["found"] = self._found(cell, detection, trial)
            facts["seconds"] = round(time.perf_counter() - began, 1)
            found.append(detection)
            return facts

        facts = attempt(look, identity=identity)
        if "error" in facts:
            say(f"{cell.encoder}, {cell.detector}: failed, {facts['error']}")
            return keep(cell.path(self.out), facts)
        say(f"{cell.encoder}, {cell.detector}: {facts['score']:.4g} in {facts['seconds']} s")
        return keep(cell.path(self.out), facts, detection=found[0])

    def _found(self, cell: Cell, detection: Detection, trial: Trial) -> Facts | None:
        """Return what the detection's most suspicious trigger does to its encoder."""
        key, given = self.groups_key(cell.detector), self.given(replace(cell, queries_of=""))
        tried = trial.run(
            detection, detector=cell.detector, given=given,
            groups=None if key is None else (key.groups.train, key.groups.test),
        )  # fmt: skip
        owner = self.subjects[cell.encoder].key
        return found_facts(
            tried, encoder=trial.encoder, judged=trial.judged,
            names=None if cell.detector == OWN_GROUPS else given.images.class_names, key=owner,
            composites=None if owner is None or tried is None else self.composites(owner),
            groups_of_key=key is not None,
        )  # fmt: skip

    def _rates(self, name: str) -> Facts:
        """Return the WSR and WFPR of the encoder's own key, the mean over its sub-keys."""
        key, path = self.keys[name], self.out / "cells" / name / "key.json"
        identity = {
            "encoder": self.subjects[name].digest, "key": key.name, "beacon": key.beacon,
            "read": self.config.read.model_dump(mode="json"),
        }  # fmt: skip

        def read() -> Facts:
            encoder = load_encoder(self.subjects[name].spec)
            answers = ask(encoder, key, self.images, config=self.config.read)
            told: list[dict[str, Any]] = list(read_rates(answers, key, config=self.config.read))
            return {
                "identity": identity,
                "readers": {
                    reader: {rate: float(np.mean([sub[reader][rate] for sub in told]))
                             for rate in ("wsr", "wfpr")}
                    for reader in told[0]
                },
            }  # fmt: skip

        return kept(path, identity) or keep(path, attempt(read, identity=identity))

    def _result(self, rates: Mapping[str, Facts]) -> Facts:
        rows: list[Facts] = []
        found: dict[Cell, Facts | None] = {}
        queries: dict[str, Facts] = {}
        for detector in self.detectors:
            mine = [c for c in self.cells if c.detector == detector and "error" not in self.done[c]]
            for whose in dict.fromkeys(cell.queries_of for cell in mine):
                cells = [cell for cell in mine if cell.queries_of == whose]
                read = {c: read_detection(c.path(self.out), self.done[c]) for c in cells}
                sides: list[dict[str, Detection]] = [
                    {c.encoder: each for c, each in read.items() if c.marked == side}
                    for side in (True, False)
                ]
                rows.append(compare(detector, queries_of=whose, marked=sides[0], clean=sides[1]))
                if DETECTORS[detector].of == "queries":
                    queries[f"{detector}/{whose}"] = queries_told({**sides[0], **sides[1]})
                found |= {c: self._told(c, read) for c in cells}
        by_encoder: dict[str, Facts] = {}
        for cell, facts in found.items():
            if facts is not None:
                by_encoder.setdefault(cell.encoder, {})[cell.detector] = facts
        failed = [
            {"encoder": c.encoder, "detector": c.detector, "error": self.done[c]["error"]}
            for c in self.cells if "error" in self.done[c]
        ]  # fmt: skip
        failed += [
            {"encoder": name, "detector": "WSR of the key", "error": facts["error"]}
            for name, facts in rates.items() if "error" in facts
        ]  # fmt: skip
        result: Facts = plain({
            "title": self.config.title, "comparisons": rows, "found": by_encoder,
            "rates": {n: facts["readers"] for n, facts in rates.items() if "readers" in facts},
            "queries": queries, "failed": failed, "notes": missing(rows),
            "prms_groups": "key" if self.common_groups is not None else "labels",
            "settings": self.config.model_dump(mode="json"), "versions": versions(),
            "images": {"train": self.prints[0], "test": self.prints[1]},
        })  # fmt: skip
        return result

    def _told(self, cell: Cell, read: Mapping[Cell, Detection]) -> Facts | None:
        """Return what the cell's trigger does; after the comparison, where that chooses it."""
        if DETECTORS[cell.detector].rescore is None:
            known: Facts | None = self.done[cell]["found"]
            return known
        others = [d for c, d in read.items() if not c.marked and c != cell]
        if not others:
            return None
        tables = [d.table for d in (read[cell], *others) if d.table is not None]
        identity = {"tables": [_named(table) for table in tables], **self.identity(cell)}
        path = cell.path(self.out)
        path = path.with_name(f"{path.stem}-found.json")
        before = stored(path, identity)
        if before is None:
            detection = judge(read[cell], others, detector=cell.detector).detection
            trial = self._trial(load_encoder(self.subjects[cell.encoder].spec))
            told = attempt(
                lambda: {"identity": identity, "found": self._found(cell, detection, trial)},
                identity=identity,
            )
            before = keep(path, told)
        chosen: Facts | None = before.get("found")
        return chosen


def _named(values: Tensor) -> str:
    """Return a short hash of a tensor's values."""
    return sha256_bytes(canonical_json([str(v) for v in values.flatten().tolist()]))[:16]
