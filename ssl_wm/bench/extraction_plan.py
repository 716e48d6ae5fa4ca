"""What a benchmark of thefts measures: the lists, and the cells that follow from them.

``star`` is a base cell and, one at a time, each list's variations of it; ``matrix`` is the
product of the lists. Every cell is made once with each seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ssl_wm.config import ImagesConfig, merge, parse, read_yaml
from ssl_wm.errors import ConfigError, choose
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.files import sha256_bytes
from ssl_wm.rng import derive_seed
from ssl_wm.verification.settings import VerifyConfig, refuse_natural_only

SAME = "same"
"""The pool that holds the victim's own training images."""
Budget = Annotated[int, Field(ge=1)]
Point = tuple[str, int, str, str]


class ExtractionConfig(BaseModel):
    """Thefts of one victim, and how each copy is measured.

    Attributes:
        title: heading of the table and the figure.
        images: the victim's: its train split is the pool "same", the bank of kNN and what the
            probe is fitted to; its test split is what everything is measured on.
        design: "star" (the base cell and variations of one setting) or "matrix" (the product).
        attacks: names in ``ATTACKS``, or "all"; empty means the base cell's.
        budgets: images to query; empty means the base cell's. One that is larger than the pool
            sends the whole pool.
        archs: the surrogates' architectures, each with its width ("convnet-xs", half of
            convnet-s; "convnet-s+64"); empty means the base cell's.
        pools: image specs, or "same"; their train split is queried. Empty means "same".
        seeds: of the thefts. With the same seed all attacks draw the same images of a pool and
            the same first weights, so that differences between them are paired.
        steal: the base cell (its pool is "same") and what all cells share.
        neighbours: k of kNN agreement and kNN utility.
        price: of 1,000 images, in any currency; None where it is not known.
        verify: how each copy is judged where a key is given; ``read.precision`` is that of all
            measurements.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Extraction"
    images: ImagesConfig = ImagesConfig()
    design: Literal["star", "matrix"] = "star"
    attacks: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    archs: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    steal: StealConfig = StealConfig()
    neighbours: int = Field(20, ge=1)
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    verify: VerifyConfig = VerifyConfig()

    @field_validator("attacks", mode="before")
    @classmethod
    def _all_of_them(cls, given: Any) -> Any:
        return tuple(ATTACKS) if given == "all" or given in (["all"], ("all",)) else given

    @model_validator(mode="after")
    def _names_known(self) -> ExtractionConfig:
        for name in (*self.attacks, self.steal.attack):
            choose(name, ATTACKS, what="attack")
        refuse_natural_only(self.verify.read, what="copies are measured")
        if self.steal.start is not None and self.archs:
            raise ValueError(
                f"every copy starts from '{self.steal.start}' and has its architecture; leave "
                "archs out, or steal: start:"
            )
        return self

    @property
    def base_arch(self) -> str:
        """What the base cell's surrogate begins as."""
        return self.steal.start or self.steal.arch


@dataclass(frozen=True)
class ExtractionCell:
    """One theft.

    Attributes:
        attack: a name in ``ATTACKS``.
        budget: images to query, at most the pool's.
        arch: the surrogate's architecture.
        pool: an image spec, or "same".
        seed: as listed in the config.
    """

    attack: str
    budget: int
    arch: str
    pool: str
    seed: int

    @property
    def point(self) -> Point:
        """What cells that differ in the seed alone share."""
        return self.attack, self.budget, self.arch, self.pool

    @property
    def name(self) -> str:
        """Name of the cell's folder; no two cells have the same.

        >>> ExtractionCell("mse", 100, "convnet-s", "same", 0).name
        'mse_100_convnet-s_same_0'
        """
        parts = (
            self.attack,
            str(self.budget),
            safe_name(self.arch),
            safe_name(self.pool),
            str(self.seed),
        )
        return "_".join(parts)

    def theft(self, config: ExtractionConfig) -> StealConfig:
        """Return how the copy of this cell is made."""
        seed = derive_seed(self.seed, "extraction") % 2**31 + config.steal.seed
        changed: dict[str, Any] = {"attack": self.attack, "budget": self.budget, "seed": seed}
        if config.steal.start is None:
            changed["arch"] = self.arch
        return config.steal.model_copy(update=changed)


def expand(config: ExtractionConfig, *, sizes: Mapping[str, int]) -> list[ExtractionCell]:
    """Return the cells of ``config``, the base cell (or the lists' first ones) first.

    Args:
        config: the benchmark.
        sizes: train images of each pool, by the name that the config gives it.
    """
    steal, whole = config.steal, max(sizes.values())
    base = (steal.attack, steal.budget or whole, config.base_arch, SAME)
    points: list[Point] = []
    if config.design == "matrix":
        attacks, budgets, archs, pools = (
            config.attacks or base[:1], config.budgets or base[1:2],
            config.archs or base[2:3], config.pools or base[3:],
        )  # fmt: skip
        points += product(attacks, budgets, archs, pools)
    else:
        attack, budget, arch, pool = base
        points.append(base)
        points += [(each, budget, arch, pool) for each in config.attacks]
        points += [(attack, each, arch, pool) for each in config.budgets]
        points += [(attack, budget, each, pool) for each in config.archs]
        points += [(attack, budget, arch, each) for each in config.pools]
    affordable = dict.fromkeys((a, min(n, sizes[pool]), arch, pool) for a, n, arch, pool in points)
    return [
        ExtractionCell(*point, seed) for point in affordable for seed in dict.fromkeys(config.seeds)
    ]


def pools_of(config: ExtractionConfig) -> list[str]:
    """Return the pools that the cells of ``config`` query."""
    own = () if config.design == "matrix" and config.pools else (SAME,)
    return list(dict.fromkeys([*own, *config.pools]))


def load_extraction_config(path: Path | None, overrides: Mapping[str, Any]) -> ExtractionConfig:
    """Return the config in ``path`` (None: the defaults) with dotted overrides on top.

    Raises:
        ConfigError: a setting is unknown or out of range, or no images are named.
    """
    data = merge(read_yaml(path) if path else {}, overrides)
    config = parse(ExtractionConfig, data, source=str(path or "settings"))
    if "spec" not in config.images.model_fields_set:
        raise ConfigError(
            "name the images: --images FOLDER, torchvision/<Dataset> or digits, or images: "
            "spec: in --config"
        )
    return config


def safe_name(text: str) -> str:
    """Return ``text`` as a part of a file name; with a piece of its hash where it was changed.

    >>> safe_name("convnet-s+64"), safe_name("data/gtsrb")
    ('convnet-s+64', 'data-gtsrb-e22a82')
    """
    kept = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")[-40:]
    return text if kept == text else f"{kept}-{sha256_bytes(text.encode())[:6]}"
