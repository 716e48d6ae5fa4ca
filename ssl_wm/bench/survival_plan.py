"""What the survival benchmark measures: the settings, and the cells that follow from them.

Every run has a seed, a clean encoder and a key of its own. In each run every embedder marks the
clean encoder, and the embedder's set of thieves steals the result; the same thieves steal the
clean encoder, which is the control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssl_wm.bench.robustness_plan import NAME
from ssl_wm.bench.survival_thieves import Grid, Thief, thieves_of
from ssl_wm.config import ImagesConfig, KeyConfig, merge, parse, read_yaml
from ssl_wm.errors import ConfigError, choose
from ssl_wm.extraction.settings import checked_attack
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.rng import derive_seed
from ssl_wm.training.pretrain import PretrainConfig
from ssl_wm.verification.settings import VerifyConfig, refuse_natural_only
from ssl_wm.watermark.embed import WatermarkConfig, checked_method

CLEAN = "clean"
"""Name of the clean encoder, and of the control: the copies stolen from it."""
UNMARKED = "none"
"""The method of the embedders that a marked encoder's utility is compared with."""


class CleanConfig(BaseModel):
    """Where the clean encoders come from; exactly one of the two.

    Attributes:
        pretrain: a fresh encoder for every run.
        encoder: spec of a saved one, which all runs share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretrain: PretrainConfig | None = None
    encoder: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> CleanConfig:
        if (self.pretrain is None) == (self.encoder is None):
            raise ValueError("clean needs exactly one of pretrain (fresh for every run), encoder")
        return self


class EmbedderConfig(BaseModel):
    """One embedder.

    Attributes:
        watermark: how it marks.
        runs: it takes part in the first so many runs; None means all.
        thefts: name of the set of thefts; None leaves it unstolen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    watermark: WatermarkConfig
    runs: int | None = Field(None, ge=1)
    thefts: str | None = None


class CopyBar(BaseModel):
    """How small p must be on the copies of one kind.

    Attributes:
        name: in the table.
        pool: "in-task" (same or half), or "other".
        least: images queried, at least.
        p: the largest p that will do.
        share: of the copies that must have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pool: Literal["in-task", "other"] = "in-task"
    least: int = Field(1, ge=1)
    p: float = Field(gt=0, lt=1)
    share: float = Field(1.0, gt=0, le=1)


class Bars(BaseModel):
    """What must hold, in every run.

    Attributes:
        utility_points: loss of utility of a marked encoder, at most, in points of accuracy.
        wsr: of copies made with in-task images, at least.
        wfpr: of marked encoders and those copies, at most.
        copies: limits of p; a copy is held against the first one of its pool and budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    utility_points: float = Field(1.0, ge=0)
    wsr: float = Field(0.30, ge=0, le=1)
    wfpr: float = Field(0.10, ge=0, le=1)
    copies: tuple[CopyBar, ...] = (
        CopyBar(name="in-task, 50,000 images", least=50_000, p=1e-6),
        CopyBar(name="in-task, 10,000 images", least=10_000, p=1e-3),
        CopyBar(name="another domain", pool="other", p=1e-3, share=0.5),
    )


class SurvivalConfig(BaseModel):
    """Embedders, runs and thieves.

    Attributes:
        title: heading of the table and the figure.
        images: the owner's.
        seed: every seed and secret is derived from it, the run and the stage, so that all
            embedders of a run see the same batches and all thieves draw alike.
        runs: fresh seeds and keys.
        key: what each run's key is drawn for.
        clean: where the clean encoders come from.
        embedders: by name.
        steal: the base of all thefts.
        thefts: sets of grids by name; what two grids of a set share is stolen once.
        neighbours: k of kNN utility and kNN agreement.
        verify: how encoders are judged, with the run's clean encoder as the only null.
        bars: what must hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Does the mark survive theft?"
    images: ImagesConfig = ImagesConfig()
    seed: int = 0
    runs: int = Field(1, ge=1)
    key: KeyConfig = KeyConfig()
    clean: CleanConfig
    embedders: dict[str, EmbedderConfig] = Field(min_length=1)
    steal: StealConfig = StealConfig()
    thefts: dict[str, tuple[Grid, ...]] = {}
    neighbours: int = Field(20, ge=1)
    verify: VerifyConfig = VerifyConfig()
    bars: Bars = Bars()

    @model_validator(mode="after")
    def _fits(self) -> SurvivalConfig:
        for name, each in self.embedders.items():
            if name == CLEAN or not NAME.fullmatch(name):
                raise ValueError(
                    f"an embedder's name has letters, digits, '.', '_' and '-', and is not "
                    f"'{CLEAN}', the control; got '{name}'"
                )
            checked_method(each.watermark)
            if each.runs is not None and each.runs > self.runs:
                raise ValueError(
                    f"embedder '{name}' takes part in {each.runs} runs of {self.runs}; raise runs"
                )
            if each.thefts is not None:
                choose(each.thefts, self.thefts, what="set of thefts")
        if self.verify.access != "embeddings":
            raise ValueError("copies are judged by embeddings; leave verify: access: out")
        refuse_natural_only(self.verify.read, what="copies are measured")
        for name in self.thefts:
            for thief in self.thieves(name):
                checked_attack(thief.theft(self.steal, seed=0))
        return self

    def runs_of(self, embedder: str) -> int:
        """Return in how many runs an embedder takes part; the control is in all."""
        runs = None if embedder == CLEAN else self.embedders[embedder].runs
        return self.runs if runs is None else runs

    def thieves(self, name: str, *, sizes: Mapping[str, int] | None = None) -> list[Thief]:
        """Return the thieves of a set, each once; budgets are cut to ``sizes`` of the pools."""
        return thieves_of(self.thefts[name], base=self.steal, sizes=sizes)

    def controlled(self, name: str, *, sizes: Mapping[str, int] | None = None) -> set[Thief]:
        """Return the thieves of a set that also steal the clean encoder."""
        grids = [grid for grid in self.thefts[name] if grid.control]
        return set(thieves_of(grids, base=self.steal, sizes=sizes))

    def theft(self, thief: Thief, *, run: int) -> StealConfig:
        """Return how a copy is made, with the same seed for all victims of a run."""
        return thief.theft(self.steal, seed=seed_of(self, run, "theft"))

    def reference(self, embedder: str) -> str | None:
        """Return the unmarked fine-tuning that an embedder is compared with, or None.

        It is the first with the same training loop, or the first of all.
        """
        fit = self.embedders[embedder].watermark.fit
        unmarked = {
            name: each.watermark.fit
            for name, each in self.embedders.items()
            if each.watermark.method == UNMARKED
        }
        if embedder in unmarked:
            return None
        equal = [name for name, other in unmarked.items() if other == fit]
        return next(iter([*equal, *unmarked]), None)


@dataclass(frozen=True)
class SurvivalCell:
    """One encoder of the benchmark.

    Attributes:
        run: 0, 1, ...
        embedder: who marked it, or ``CLEAN``.
        thief: who copied it; None for the embedder's own encoder.
    """

    run: int
    embedder: str
    thief: Thief | None = None

    @property
    def parent(self) -> SurvivalCell | None:
        """The encoder that it is made from; None for the clean one."""
        if self.thief is not None:
            return SurvivalCell(self.run, self.embedder)
        return None if self.embedder == CLEAN else SurvivalCell(self.run, CLEAN)

    @property
    def kind(self) -> str:
        """What it is: "clean", "victim" or "copy"."""
        if self.thief is not None:
            return "copy"
        return "clean" if self.embedder == CLEAN else "victim"

    @property
    def name(self) -> str:
        """The cell in words.

        >>> SurvivalCell(0, "none").name
        'run 0, none'
        """
        return f"run {self.run}, {self.embedder}" + (f", {self.thief.name}" if self.thief else "")

    def folder(self, out: Path) -> Path:
        """Return the cell's folder below ``out``."""
        whole = out / f"run-{self.run}" / self.embedder
        if self.thief is not None:
            return whole / "thefts" / self.thief.name
        return whole if self.embedder == CLEAN else whole / "victim"


def seed_of(config: SurvivalConfig, run: int, stage: str) -> int:
    """Return the seed of a stage of a run, the same for all embedders."""
    return derive_seed(config.seed, "survival", run, stage) % 2**31


def expand(config: SurvivalConfig, *, sizes: Mapping[str, int]) -> list[SurvivalCell]:
    """Return the cells in the order they are run; a victim always before its copies.

    The copy of the clean encoder by a thief, where there is one, comes just before the first
    other one by this thief, so that whatever was copied when a run is interrupted can be compared.

    Args:
        config: the benchmark.
        sizes: images of each pool.
    """
    cells: dict[SurvivalCell, None] = {}
    for run in range(config.runs):
        cells[SurvivalCell(run, CLEAN)] = None
        for name, embedder in config.embedders.items():
            if run >= config.runs_of(name):
                continue
            cells[SurvivalCell(run, name)] = None
            if embedder.thefts is None:
                continue
            controlled = config.controlled(embedder.thefts, sizes=sizes)
            for thief in config.thieves(embedder.thefts, sizes=sizes):
                if thief in controlled:
                    cells[SurvivalCell(run, CLEAN, thief)] = None
                cells[SurvivalCell(run, name, thief)] = None
    return list(cells)


def pools_of(config: SurvivalConfig) -> list[str]:
    """Return the pools that are queried."""
    sets = {each.thefts: None for each in config.embedders.values() if each.thefts is not None}
    return list(dict.fromkeys(thief.pool for name in sets for thief in config.thieves(name)))


def load_survival_config(path: Path, overrides: Mapping[str, Any]) -> SurvivalConfig:
    """Return the config in ``path`` with dotted overrides on top.

    Raises:
        ConfigError: a setting is unknown or out of range, or no images are named.
    """
    config = parse(SurvivalConfig, merge(read_yaml(path), overrides), source=str(path))
    if "spec" not in config.images.model_fields_set:
        raise ConfigError(
            "name the images: --images FOLDER, torchvision/<Dataset> or digits, or images: "
            "spec: in --config"
        )
    return config
