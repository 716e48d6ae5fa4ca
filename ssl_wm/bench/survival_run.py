"""One run of the survival benchmark: its clean encoder, its key, what is marked and stolen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ssl_wm.bench.agreement import Reading
from ssl_wm.bench.kept import seconds_before
from ssl_wm.bench.survival_measure import (
    compatibility,
    in_targets,
    kept_of,
    nearness,
    read_encoder,
    utility_of,
)
from ssl_wm.bench.survival_plan import CLEAN, SurvivalCell, SurvivalConfig, seed_of
from ssl_wm.bench.survival_thieves import HALF, Thief
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.encoders.saved import FACTS
from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.extraction.steal import steal
from ssl_wm.files import read_json, write_json
from ssl_wm.rng import torch_stream
from ssl_wm.training.pretrain import pretrain
from ssl_wm.verification.once import Memory
from ssl_wm.verification.verify import verify
from ssl_wm.watermark.embed import watermark
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.keyfile import load_key, save_key
from ssl_wm.watermark.keygen import keygen

Facts = dict[str, Any]


class SurvivalRun:
    """What is made and measured in one run; each encoder is loaded and read at most once.

    Args:
        number: of the run.
        config: the benchmark.
        images: the owner's.
        pools: the thieves' images by name, but for "half".
        shared: the clean encoder where all runs share one.
        out: the benchmark's folder.
        key_identity: all that the key follows from, noted beside it.
    """

    def __init__(
        self, number: int, config: SurvivalConfig, *, images: Images,
        pools: Mapping[str, ImageSet], shared: Encoder | None, out: Path, key_identity: Facts,
    ) -> None:  # fmt: skip
        self.number, self.config, self.images, self.out = number, config, images, out
        self.pools, self.shared, self.key_identity = pools, shared, key_identity
        self.clean = SurvivalCell(number, CLEAN)
        self.encoders: dict[SurvivalCell, Encoder] = {} if shared is None else {self.clean: shared}
        self.readings: dict[SurvivalCell, Reading] = {}
        self.memory = Memory()

    def measure(self, cell: SurvivalCell) -> Facts:
        """Return what is measured of a cell's encoder, which is made where it is not there.

        Raises:
            SslWmError: whatever a stage raises.
        """
        labels = self.images.test.labels
        key = None if cell == self.clean else self.key
        encoder, made = self._made(cell)
        began = time.perf_counter()
        reading = self._reading(cell, encoder)
        facts: Facts = {
            "arch": encoder.arch,
            "parameters": sum(each.numel() for each in encoder.backbone.parameters()),
            "utility": utility_of(reading, labels),
        }
        if key is not None:
            verdict = verify(
                encoder, key=key, images=self.images, nulls=[self._encoder(self.clean)],
                config=self.config.verify, memory=self.memory,
            )  # fmt: skip
            facts["verdict"] = kept_of(verdict)
        if cell.thief is not None:
            victim = SurvivalCell(cell.run, cell.embedder)
            known = self._reading(victim, self._encoder(victim))
            facts |= nearness(reading, victim=known, labels=labels)
            ledger = read_json(cell.folder(self.out) / "ledger.json", what="ledger")
            facts["calls"] = ledger["calls"]
        elif key is not None:
            before = self._reading(self.clean, self._encoder(self.clean))
            facts["compatibility"] = compatibility(reading.z, before.z, targets=in_targets(key))
        measured = time.perf_counter() - began
        return {**facts, "seconds": {"make": round(made, 1), "measure": round(measured, 1)}}

    @cached_property
    def key(self) -> WatermarkKey:
        """The run's key, drawn for its clean encoder, now or before.

        Raises:
            KeyFileError: it is not the one that was drawn.
            SslWmError: whatever ``keygen`` raises.
        """
        path, config = key_path(self.out, self.number), self.config.key
        note = path.with_suffix(".json")
        if note.is_file():
            key = load_key(path)
            if key.commitment != read_json(note, what="note of a key")["commitment"]:
                raise KeyFileError(f"{path} is not the key that was drawn there; put that back")
            return key
        began = time.perf_counter()
        key = keygen(
            self.images,
            encoder=self._encoder(self.clean) if config.groups == "clusters" else None,
            clusters=config.clusters,
            sub_keys=config.sub_keys,
            spare=config.spare,
            families=config.families,
            autoencoder_steps=config.autoencoder_steps,
            carriers=config.carriers,
            carriers_in=config.carriers_in,
            secret=sha256(f"{self.config.seed}/{self.number}/survival key".encode()).digest(),
        )
        save_key(key, path)
        seconds = round(time.perf_counter() - began, 1)
        said = {"identity": self.key_identity, "commitment": key.commitment, "seconds": seconds}
        write_json(note, said)
        return key

    def _made(self, cell: SurvivalCell) -> tuple[Encoder, float]:
        """Return the cell's encoder and the seconds that making it took, now and before."""
        if cell == self.clean and self.shared is not None:
            return self.shared, 0.0
        folder = cell.folder(self.out)
        before = seconds_before(folder)
        if (folder / FACTS).is_file():
            return self._encoder(cell), before
        began = time.perf_counter()
        encoder = self._stage(cell, folder)
        seconds = time.perf_counter() - began
        save_encoder(encoder, folder)
        if cell.thief is None:
            self.encoders[cell] = encoder
        return encoder, seconds + before

    def _stage(self, cell: SurvivalCell, folder: Path) -> Encoder:
        config, run = self.config, self.number
        if cell.thief is not None:
            victim = self._encoder(SurvivalCell(run, cell.embedder))
            pool, theft = self._pool(cell.thief), config.theft(cell.thief, run=run)
            return steal(victim, images=pool, config=theft, folder=folder).surrogate
        if cell.embedder != CLEAN:
            marking = config.embedders[cell.embedder].watermark
            seed = seed_of(config, run, "watermark") + marking.seed
            return watermark(
                self._encoder(self.clean), key=self.key, images=self.images,
                config=marking.model_copy(update={"seed": seed}), folder=folder,
            )[0]  # fmt: skip
        settings = config.clean.pretrain
        if settings is None:
            raise ConfigError("there is neither a clean encoder nor clean: pretrain:")
        seed = seed_of(config, run, "pretrain") + settings.seed
        settings = settings.model_copy(update={"seed": seed})
        return pretrain(self.images.train, config=settings, folder=folder)[0]

    def _encoder(self, cell: SurvivalCell) -> Encoder:
        """Return a finished encoder; copies are not kept in memory."""
        if cell in self.encoders:
            return self.encoders[cell]
        encoder = load_encoder(cell.folder(self.out))
        if cell.thief is None:
            self.encoders[cell] = encoder
        return encoder

    def _reading(self, cell: SurvivalCell, encoder: Encoder) -> Reading:
        if cell in self.readings:
            return self.readings[cell]
        reading = read_encoder(
            encoder, self.images, k=self.config.neighbours,
            precision=self.config.verify.read.precision,
        )  # fmt: skip
        if cell.thief is None:
            self.readings[cell] = reading
        return reading

    def _pool(self, thief: Thief) -> ImageSet:
        return self._half if thief.pool == HALF else self.pools[thief.pool]

    @cached_property
    def _half(self) -> ImageSet:
        """A random half of the owner's training images, the same for all thieves of the run."""
        train = self.images.train
        stream = torch_stream(self.config.seed, "survival", self.number, HALF)
        order = torch.randperm(len(train), generator=stream)
        return train.subset(order[: len(train) // 2].sort().values)


def key_path(out: Path, run: int) -> Path:
    """Return the file of a run's key below the benchmark's folder."""
    return out / f"run-{run}" / "owner.key"
