"""Which null encoders are made, and how: tables of thefts and washings gone through in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ssl_wm.console import say
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.load import width_of
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.later import WithLater
from ssl_wm.removal.remove import REMOVALS
from ssl_wm.rng import derive_seed
from ssl_wm.training.pretrain import PretrainConfig
from ssl_wm.training.settings import FitConfig

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
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


@dataclass(frozen=True)
class Wash:
    """One way of washing the clean encoder, as if it had a mark.

    Attributes:
        attempt: a name in ``REMOVALS``.
        strength: as its ``dial`` says.
    """

    attempt: str
    strength: float


WASHES: tuple[Wash, ...] = (
    Wash("ssl", 1e-3),
    Wash("ftal", 1e-3),
    Wash("weight-shift", 1.5),
    Wash("cut-layers", 1),
    Wash("cut-layers", 2),
    Wash("cut-layers", 3),
    Wash("rtal", 1e-3),
    Wash("rtal", 3e-3),
    Wash("ssl", 3e-4),
    Wash("ftal", 3e-4),
    Wash("weight-shift", 1.0),
)
"""Gone through in turn, but for those that need labels where the images have one class, and those
that leave out more layers than there are."""

WASHED_WITH = 5000
"""Most images that a washing takes."""
WASH = FitConfig(epochs=2, batch_size=64, weight_decay=0.0, warmup_steps=10)


class NullsConfig(WithLater):
    """Which null encoders are made.

    Attributes:
        count: how many. More of them later leave the first ones as they are.
        retrained: share that is trained like the clean encoder.
        washed: share that is the clean encoder after an attempt to wash a mark off (``WASHES``);
            the rest are copies of it. They show ``verify`` with ``centring: fitted`` what such
            attempts move by themselves.
        pretrain: the training loop of the retrained ones; None takes the clean encoder's own.
        steal: the training loop of the copies.
        wash: the training loop of the washings, which set its learning rate.
        seed: every null encoder's seed is derived from it and its number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {"washed": 0.0, "wash": WASH}

    count: int = Field(20, ge=1, le=999)
    retrained: float = Field(0.25, ge=0, le=1)
    washed: float = Field(0.0, ge=0, le=1)
    pretrain: FitConfig | None = None
    steal: FitConfig = Field(default_factory=lambda: FitConfig(epochs=8, learning_rate=2e-3))
    wash: FitConfig = WASH
    seed: int = 0

    @model_validator(mode="after")
    def _shares(self) -> NullsConfig:
        if self.retrained + self.washed > 1:
            raise ValueError(
                f"retrained {self.retrained:g} and washed {self.washed:g} are shares of one whole, "
                "so together at most 1"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """How one null encoder is made; exactly one of ``pretrain``, ``steal`` and ``wash`` is set.

    Attributes:
        name: of its folder.
        pool: which images: "" for the owner's own, else a name of the pools.
        pretrain: settings of a retrained one.
        steal: settings of a copy.
        wash: what the clean encoder goes through, with which training loop and seed.
    """

    name: str
    pool: str = ""
    pretrain: PretrainConfig | None = None
    steal: StealConfig | None = None
    wash: tuple[Wash, FitConfig, int] | None = None

    @property
    def says(self) -> str:
        """What is done, in words."""
        if self.pretrain is not None:
            return f"trained like the clean encoder ({self.pretrain.arch}), another seed"
        if self.wash is not None:
            wash = self.wash[0]
            return f"the clean encoder after {wash.attempt} at {wash.strength:g}"
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
    washes = _washes_of(clean, images=pools[""]) if config.washed else []
    share = config.washed / (1 - config.retrained) if config.retrained < 1 else 0.0
    copies = washed = 0
    for number in range(config.count):
        name, seed = f"null-{number:02d}", derive_seed(config.seed, "null", number) % 2**31
        if _is_due(number, config.retrained):
            plans.append(Plan(name, pretrain=like.model_copy(update={"seed": seed})))
            continue
        if _is_due(copies + washed, share):
            wash = washes[washed % len(washes)]
            plans.append(Plan(name, wash=(wash, config.wash, seed)))
            washed += 1
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


def _washes_of(clean: Encoder, *, images: ImageSet) -> list[Wash]:
    """Return the washings that ``clean`` has layers for, and the images labels."""
    labelled = len(images.labels.unique()) > 1
    side = None if clean.preprocessing.size else images.size[-1]
    layers = len(layers_of(clean, side=side))
    return [
        each
        for each in WASHES
        if (labelled or REMOVALS[each.attempt].needs != "labels")
        and (each.attempt != "cut-layers" or each.strength < layers)
    ]


def _is_due(number: int, share: float) -> bool:
    """Return whether the ``number``-th of many is one of the ``share`` that is spread evenly."""
    return math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)


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
    """Return whether an encoder made so carries a mark; the embedder ``none`` leaves none.

    >>> [is_marked({"stage": "watermark", "config": {"method": m}}) for m in ("bend-space", "none")]
    [True, False]
    """
    method = made.get("config", {}).get("method")
    return made.get("stage") == "watermark" and method != "none"
