"""Does the mark survive theft? Embedders, runs and thieves, measured cell by cell.

Each cell is one folder: the encoder, ``asked.json`` (all that it follows from, written first)
and ``cell.json`` (what was measured, written last). A cell that was measured is not made again;
one that failed is tried again. ``result.json`` is written after every cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssl_wm.bench.extraction import drop_answers
from ssl_wm.bench.extraction_plan import SAME
from ssl_wm.bench.kept import refuse_others
from ssl_wm.bench.survival_plan import CLEAN, SurvivalCell, SurvivalConfig, expand, pools_of
from ssl_wm.bench.survival_rows import summary
from ssl_wm.bench.survival_run import SurvivalRun, key_path
from ssl_wm.bench.survival_thieves import HALF
from ssl_wm.console import say
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import ConfigError, EncoderError, OutputError, SslWmError, VerificationError
from ssl_wm.extraction.steal import begun as surrogate_begun
from ssl_wm.files import plain, read_json, write_json
from ssl_wm.training.pretrain import begun as pretrain_begun
from ssl_wm.versions import versions
from ssl_wm.watermark.terms import check_sub_keys

ASKED, DONE = "asked.json", "cell.json"
Facts = dict[str, Any]


class SurvivalBench:
    """One benchmark into one folder.

    Args:
        config: the settings.
        images: the owner's, as the config names them.
        out: the folder; measured cells in it are kept.

    Raises:
        ConfigError: an architecture is unknown, or there are too few groups for the sub-keys.
        EncoderError: the shared clean encoder, or one that a thief starts from, cannot be loaded.
        DataError: a pool cannot be used.
    """

    def __init__(self, config: SurvivalConfig, *, images: Images, out: Path) -> None:
        self.config, self.images, self.out = config, images, out
        chosen = config.clean
        self.shared = load_encoder(chosen.encoder) if chosen.encoder is not None else None
        self.pools = {spec: self._pool(spec) for spec in pools_of(config) if spec != HALF}
        sizes = {spec: len(pool) for spec, pool in self.pools.items()}
        self.cells = expand(config, sizes={HALF: len(images.train) // 2, **sizes})
        self._check()
        self.common = plain({
            "images": {"train": images.train.fingerprint, "test": images.test.fingerprint},
            "seed": config.seed, "neighbours": config.neighbours,
            "verify": config.verify.model_dump(mode="json"),
            "clean": self._clean_name(),
        })  # fmt: skip
        self.current: SurvivalRun | None = None

    def run(
        self,
        *,
        only: Sequence[int] | None = None,
        after: Callable[[Facts], object] | None = None,
    ) -> Facts:
        """Make and measure what is not there yet; return and write ``result.json``.

        Args:
            only: the runs to make now; None means all. The result tells of the others too, as
                far as they are in the folder.
            after: called with the result so far whenever a cell is done.

        Raises:
            ConfigError: a cell in the folder was made with other settings; the first is named.
                Or there is no such run.
            VerificationError: not one cell could be measured.
            OutputError: the folder cannot be written to.
        """
        self._check_runs(only)
        for cell in self.cells:
            refuse_others(cell.folder(self.out) / ASKED, self.identity(cell))
        for run in range(self.config.runs):
            refuse_others(key_path(self.out, run).with_suffix(".json"), self.key_identity(run))
        done: dict[SurvivalCell, Facts] = {}
        for cell in self.cells:
            path = cell.folder(self.out) / DONE
            if path.is_file() and "error" not in (facts := read_json(path, what="measured cell")):
                done[cell] = facts
        for number, cell in enumerate(self.cells, start=1):
            if cell in done or (only is not None and cell.run not in only):
                continue
            say(f"{number} of {len(self.cells)}: {cell.name}")
            done[cell] = self._cell(cell, done)
            say(f"{cell.name}: {_told(done[cell])}")
            result = self._tell(done)
            if after is not None:
                after(result)
        result = self._tell(done)
        if not any("error" not in facts for facts in done.values()):
            first = next(iter(done))
            raise VerificationError(
                f"none of {len(done)} cells could be measured; the first, {first.name}: "
                f"{done[first]['error']}"
            )
        return result

    def identity(self, cell: SurvivalCell) -> Facts:
        """Return all that the cell's numbers follow from."""
        facts = {**self.common, "run": cell.run}
        if cell.parent is not None:
            facts |= self.key_identity(cell.run)
        if cell.embedder != CLEAN:
            marking = self.config.embedders[cell.embedder].watermark
            facts["watermark"] = marking.model_dump(mode="json")
        if cell.thief is not None:
            theft = self.config.theft(cell.thief, run=cell.run)
            facts["steal"] = theft.model_dump(mode="json")
            facts["pool"] = (
                HALF if cell.thief.pool == HALF else self.pools[cell.thief.pool].fingerprint
            )
        return dict(plain(facts))

    def key_identity(self, run: int) -> Facts:
        """Return all that a run's key follows from."""
        facts = {name: self.common[name] for name in ("images", "seed", "clean")}
        return {**facts, "run": run, "key": self.config.key.model_dump(mode="json")}

    def _tell(self, done: Mapping[SurvivalCell, Facts]) -> Facts:
        config = self.config
        result = dict(plain({
            "title": config.title,
            **summary(self.cells, done, config=config),
            "seconds": round(sum(facts["seconds"]["all"] for facts in done.values()), 1),
            "common": self.common, "versions": versions(),
            "settings": config.model_dump(mode="json"),
        }))  # fmt: skip
        write_json(self.out / "result.json", result)
        return result

    def _check(self) -> None:
        """Refuse what no cell could be made with, before any is."""
        config = self.config
        if config.clean.pretrain is not None:
            pretrain_begun(config.clean.pretrain)
        thieves = {cell.thief for cell in self.cells if cell.thief is not None}
        for _, thief in sorted({(each.shape, each.warm): each for each in thieves}.items()):
            surrogate_begun(config.theft(thief, run=0))
        classes = len(self.images.train.class_names)
        groups = config.key.clusters if config.key.groups == "clusters" else classes
        count = config.key.sub_keys or (3 if groups >= 9 else 1)
        check_sub_keys(count + config.key.spare, groups=groups, families=config.key.families)

    def _check_runs(self, only: Sequence[int] | None) -> None:
        runs = self.config.runs
        for number in only or ():
            if not 0 <= number < runs:
                raise ConfigError(
                    f"there is no run {number}: the config has {runs}, counted from 0; give "
                    "some of these, or raise runs"
                )

    def _pool(self, spec: str) -> ImageSet:
        if spec == SAME:
            return self.images.train
        side = self.images.train.size[0]
        return open_images(spec, size=side, download=self.config.images.download).train

    def _clean_name(self) -> Facts:
        chosen = self.config.clean
        if chosen.pretrain is not None:
            return {"pretrain": chosen.pretrain.model_dump(mode="json")}
        return {"encoder": (self.shared and known_digest(self.shared)) or chosen.encoder}

    def _cell(self, cell: SurvivalCell, done: Mapping[SurvivalCell, Facts]) -> Facts:
        """Make and measure one cell and write its files."""
        folder = cell.folder(self.out)
        if self.current is None or self.current.number != cell.run:
            self.current = SurvivalRun(
                cell.run, self.config, images=self.images, pools=self.pools, shared=self.shared,
                out=self.out, key_identity=self.key_identity(cell.run),
            )  # fmt: skip
        write_json(folder / ASKED, {"identity": self.identity(cell)})
        began = time.perf_counter()
        facts: Facts = {"cell": asdict(cell)}
        try:
            _refuse_failed(cell.parent, done)
            facts |= self.current.measure(cell)
        except OutputError:
            raise
        except SslWmError as error:
            facts |= {"error": str(error), "seconds": {}}
        facts["seconds"]["all"] = round(time.perf_counter() - began, 1)
        facts = dict(plain(facts))
        write_json(folder / DONE, facts)
        if "error" not in facts:
            drop_answers(folder)
        return facts


def _refuse_failed(parent: SurvivalCell | None, done: Mapping[SurvivalCell, Facts]) -> None:
    """Do nothing where the encoder that a cell is made from was measured.

    Raises:
        EncoderError: it failed.
    """
    if parent is not None and "error" in done[parent]:
        raise EncoderError(f"it is made from '{parent.name}', which failed")


def _told(facts: Facts) -> str:
    if "error" in facts:
        return f"failed: {facts['error']}"
    told = f"linear {100 * facts['utility']['linear']:.1f} %"
    if "verdict" in facts:
        verdict = facts["verdict"]
        told += f", p = {verdict['p_value']:.2g}, WSR {100 * verdict['wsr']:.1f} %"
    return f"{told}, {facts['seconds']['all']:.0f} s"
