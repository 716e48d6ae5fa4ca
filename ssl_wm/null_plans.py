"""Which null encoders are made, and how: a table of thefts gone through in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssl_wm.console import say
from ssl_wm.encoders.load import width_of
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.rng import derive_seed
from ssl_wm.training.pretrain import PretrainConfig
from ssl_wm.training.settings import FitConfig

if TYPE_CHECKING:
    from ssl_wm.data.sources import ImageSet
    from ssl_wm.encoders.encoder import Encoder

OWN = "own"
"""Stands for the architecture of the clean encoder, or the one taken in its place."""
LARGEST_SIDE = 64
"""Our small shapes, made for 32 x 32 images, are shown larger images at this side."""
SHAPES = {"convnet-xs": 128, "convnet-s": 256, "convnet-l": 512}
"""Stands in for a clean encoder that we did not pretrain: the one of nearest width."""


@dataclass(frozen=True)
class Copy:
    """One way of stealing the clean encoder.

    Attributes:
        attack: a name in ``ATTACKS``.
        arch: of the surrogate; ``OWN`` takes the clean encoder's.
        share: of the pool that is queried.
    """

    attack: str
    arch: str
    share: float


COPIES: tuple[Copy, ...] = (
    Copy("cosine", OWN, 1.0),
    Copy("mse", "resnet-small", 1.0),
    Copy("cont-steal", OWN, 1.0),
    Copy("stolen-encoder", "vgg-small", 0.5),
    Copy("cosine", "convnet-xs", 1.0),
    Copy("mse", OWN, 0.25),
    Copy("cont-steal", "resnet-small", 0.5),
    Copy("cosine", "alexnet-small", 0.5),
    Copy("stolen-encoder", OWN, 1.0),
    Copy("mse", "convnet-s", 0.5),
)
"""Gone through in turn, the pools too; further rounds differ by their seeds."""


class NullsConfig(BaseModel):
    """Which null encoders are made.

    Attributes:
        count: how many. More of them later leave the first ones as they are.
        retrained: share that is trained like the clean encoder; the others are copies of it.
        pretrain: the training loop of these; None takes the clean encoder's own.
        steal: the training loop of the copies.
        seed: every null encoder's seed is derived from it and its number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(20, ge=1, le=999)
    retrained: float = Field(0.25, ge=0, le=1)
    pretrain: FitConfig | None = None
    steal: FitConfig = Field(default_factory=lambda: FitConfig(epochs=8, learning_rate=2e-3))
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """How one null encoder is made; exactly one of ``pretrain`` and ``steal`` is set.

    Attributes:
        name: of its folder.
        pool: which images: "" for the owner's own, else a name of the pools.
        pretrain: settings of a retrained one.
        steal: settings of a copy.
    """

    name: str
    pool: str = ""
    pretrain: PretrainConfig | None = None
    steal: StealConfig | None = None

    @property
    def says(self) -> str:
        """What is done, in words."""
        if self.pretrain is not None:
            return f"trained like the clean encoder ({self.pretrain.arch}), another seed"
        theft = self.steal or StealConfig()
        pool = f" of {self.pool}" if self.pool else ""
        return f"copy by {theft.attack} into {theft.arch}, {theft.budget:,} queries{pool}"


def plan_nulls(clean: Encoder, *, config: NullsConfig, pools: Mapping[str, ImageSet]) -> list[Plan]:
    """Return how each null encoder is made; the first ones do not depend on the count.

    Args:
        clean: the owner's encoder.
        config: how many.
        pools: images by name, the owner's own under "".

    Raises:
        ConfigError: the encoder carries a mark, or a pool is named "".
    """
    if is_marked(clean.made):
        raise ConfigError(
            "this encoder carries a watermark, so copies of it are no null encoders; name the "
            "clean encoder that it was made from"
        )
    like = like_the_clean(clean, images=pools[""], fit=config.pretrain)
    names, plans = list(pools), []
    copies = 0
    for number in range(config.count):
        name, seed = f"null-{number:02d}", derive_seed(config.seed, "null", number) % 2**31
        before = math.floor(number * config.retrained + 1e-9)
        if math.floor((number + 1) * config.retrained + 1e-9) > before:
            plans.append(Plan(name, pretrain=like.model_copy(update={"seed": seed})))
            continue
        copy = COPIES[copies % len(COPIES)]
        pool = names[(copies + copies // len(COPIES)) % len(names)]
        arch = like.arch if copy.arch == OWN else sized(copy.arch, images=pools[pool])
        theft = StealConfig(
            attack=copy.attack,
            arch=arch,
            budget=max(1, round(copy.share * len(pools[pool]))),
            seed=seed,
            fit=config.steal,
        )
        plans.append(Plan(name, pool, steal=theft))
        copies += 1
    return plans


def like_the_clean(clean: Encoder, *, images: ImageSet, fit: FitConfig | None) -> PretrainConfig:
    """Return the settings that ``clean`` was pretrained with.

    Of an encoder that we did not pretrain nobody knows them: then the shape in ``SHAPES`` of
    nearest width, SimCLR and the default training stand in, and a message says so.

    Args:
        clean: the owner's encoder.
        images: its training images.
        fit: a training loop instead of its own.
    """
    try:
        if clean.made.get("stage") != "pretrain":
            raise KeyError("config")
        like = PretrainConfig.model_validate(clean.made["config"])
    except (KeyError, ValidationError):
        width = width_of(clean, image_size=images.size[0])
        near = min(SHAPES, key=lambda shape: abs(math.log(SHAPES[shape] / width)))
        like = PretrainConfig(arch=sized(near, images=images))
        say(
            f"the clean encoder ({clean.arch}, width {width}) was not pretrained here: null "
            f"encoders are {like.arch} trained by {like.objective} in its place"
        )
    return like.model_copy(update={"fit": fit}) if fit is not None else like


def sized(arch: str, *, images: ImageSet) -> str:
    """Return one of our shapes by name, with the side that it is shown ``images`` at.

    >>> from types import SimpleNamespace
    >>> [sized("convnet-s", images=SimpleNamespace(size=(s, s))) for s in (32, 27, 224)]
    ['convnet-s', 'convnet-s?size=28', 'convnet-s?size=64']
    """
    side = images.size[0]
    shown = min(side + side % 2, LARGEST_SIDE)
    return arch if images.size == (shown, shown) else f"{arch}?size={shown}"


def is_marked(made: Mapping[str, Any]) -> bool:
    """Return whether an encoder made so carries a mark."""
    return made.get("stage") == "watermark"
