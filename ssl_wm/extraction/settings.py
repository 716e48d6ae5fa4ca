"""How an encoder is stolen: the settings, what they cost, and which of them do not go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from ssl_wm.data.order import whole_batches
from ssl_wm.errors import ConfigError, choose
from ssl_wm.extraction.attacks import ATTACKS, Attack, Rounds
from ssl_wm.extraction.queries import Ledger
from ssl_wm.extraction.selection import SELECTIONS, select_random
from ssl_wm.later import WithLater
from ssl_wm.processes import place
from ssl_wm.training.settings import FitConfig


class StealConfig(WithLater):
    """How an encoder is stolen.

    Attributes:
        attack: a name in ``ATTACKS``.
        arch: the surrogate's architecture; the victim's is unknown to a thief, so it is his
            own choice. Another width is fitted through a linear projection, kept in the
            surrogate.
        budget: images to query; None sends the whole pool. An attack that sends several views
            of an image makes more calls (``quote``).
        held_out: share of the transfer set that is not trained on and measures fidelity.
        seed: of the selection, the weights and the views.
        fit: the training loop.
        selection: a name in ``SELECTIONS``; one that looks at features takes those of
            ``start``, or of the untrained surrogate.
        repeats: times each image is sent; the mean answer is kept (against noise).
        start: encoder that the surrogate starts from, in place of random weights of ``arch``.
        keep: the surrogate of the last epoch, or of the epoch with the best held-out fidelity.
        denoise: whether the answers are projected on their principal components first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {
        "selection": "random", "repeats": 1, "start": None, "keep": "last", "denoise": False,
    }  # fmt: skip

    attack: str = "cosine"
    arch: str = "convnet-s"
    budget: int | None = Field(None, ge=1)
    held_out: float = Field(0.02, ge=0, lt=0.5)
    seed: int = 0
    fit: FitConfig = Field(default_factory=lambda: FitConfig(epochs=8, learning_rate=2e-3))
    selection: str = "random"
    repeats: int = Field(1, ge=1)
    start: str | None = None
    keep: Literal["last", "best"] = "last"
    denoise: bool = False

    def _left_out(self) -> set[str]:
        return super()._left_out() | ({"arch"} if self.start is not None else set())


def checked_attack(config: StealConfig) -> Attack:
    """Return the attack that ``config`` names.

    Raises:
        ConfigError: attack or selection is unknown, or two settings contradict each other.
    """
    attack = ATTACKS[choose(config.attack, ATTACKS, what="attack")]
    choose(config.selection, SELECTIONS, what="selection")
    how = attack.asking.how
    if config.keep == "best" and config.held_out == 0:
        raise ConfigError("keep: best needs images to compare epochs on; set held_out above 0")
    if config.repeats > 1 and how in ("views", "live"):
        raise ConfigError(
            f"attack '{config.attack}' sends views, not images, so there is nothing to repeat; "
            "leave repeats at 1"
        )
    if config.denoise and how == "live":
        raise ConfigError(
            f"attack '{config.attack}' has no fixed set of answers to denoise; leave denoise out"
        )
    world = max(config.fit.devices, place().world)
    if world > 1 and (how == "live" or attack.asking.rounds):
        raise ConfigError(
            f"attack '{config.attack}' asks the victim while it trains and runs in one process; "
            "set fit.devices to 1, and start it without torchrun or srun"
        )
    if config.attack == "knockoff-random" and config.selection != "random":
        raise ConfigError(
            "knockoff-random draws at random; for another selection use attack cosine with "
            f"selection {config.selection}"
        )
    if config.start is not None and "arch" in config.model_fields_set:
        raise ConfigError(
            f"the surrogate starts from '{config.start}' and has its architecture; leave arch out"
        )
    return attack


@dataclass(frozen=True)
class Plan:
    """How a budget is spent.

    Attributes:
        images: images of the transfer set, N.
        held: of these, held out from training.
        composites: of these, mixes that the thief makes.
        first: images asked before the first round; all where there are none.
        batch: images a round.
        rounds: rounds after the first images.
        live: images asked anew in every epoch.
        calls: images sent in all; an upper bound where rounds may find nothing new.
    """

    images: int
    held: int
    composites: int
    first: int
    batch: int
    rounds: int
    live: int
    calls: Ledger


def plan(config: StealConfig, *, pool: int) -> Plan:
    """Return how ``config`` spends its budget on a pool of ``pool`` images.

    Raises:
        ConfigError: settings contradict each other, or the budget does not suit the attack.
    """
    asking = checked_attack(config).asking
    images = len(select_random(pool, budget=config.budget, seed=config.seed))
    held = int(images * config.held_out)
    first, batch, count, live = images, 0, 0, 0
    calls = Ledger(images, (config.repeats - 1) * images)
    if asking.how == "views":
        calls = Ledger(asking.count * images)
    if asking.how == "live":
        held = max(held, 1)
        size = config.fit.batch_size
        live = min(images - held, whole_batches(images - held, batch_size=size) * size)
        calls = Ledger(held + config.fit.epochs * live)
    if asking.rounds is not None:
        first, batch, count = _rounds(asking.rounds, images=images, held=held)
    composites = int(images * asking.composites)
    least = 2 if composites or asking.rounds else 1
    if images - composites - held < least:
        raise ConfigError(
            f"a budget of {images} images is too small for attack '{config.attack}': {held} are "
            f"held out, and {least} of the pool must be left to train on"
        )
    return Plan(images, held, composites, first, batch, count, live, calls)


def _rounds(rounds: Rounds, *, images: int, held: int) -> tuple[int, int, int]:
    """Return the first images, the images a round and the number of rounds."""
    first = min(images, max(held + 2, math.ceil(images * rounds.first)))
    rest = images - first
    batch = max(rounds.least, -(-rest // rounds.count))
    return first, batch, -(-rest // batch)


@dataclass(frozen=True)
class Quote:
    """What a theft will cost, before anything is sent.

    Attributes:
        images: images of the transfer set.
        unique: different images or views that are sent.
        repeated: images that are sent again.
        billed: all that are sent.
        price_per_1000: price of 1,000 images; None where it is not known.
        cost: ``billed * price_per_1000 / 1000``, in the same currency.
        rate: images a second that the service answers; None where it is not known.
        seconds: ``billed / rate``, queries alone.
    """

    images: int
    unique: int
    repeated: int
    billed: int
    price_per_1000: float | None
    cost: float | None
    rate: float | None
    seconds: float | None


def quote(
    config: StealConfig, *, pool: int, price: float | None = None, rate: float | None = None
) -> Quote:
    """Return what the theft in ``config`` costs with a pool of ``pool`` images.

    Args:
        config: attack and budget.
        pool: images in the pool.
        price: of 1,000 images, in any currency.
        rate: images a second that the service answers.

    Raises:
        ConfigError: the settings contradict each other, or price or rate are out of range.

    >>> told = quote(StealConfig(attack="rda", budget=500), pool=1000, price=0.12)
    >>> told.billed, told.cost
    (5000, 0.6)
    """
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"the price of 1,000 images must be 0 or more; got {price}")
    if rate is not None and not 0 < rate < float("inf"):
        raise ConfigError(f"the rate must be more than 0 images a second; got {rate}")
    planned = plan(config, pool=pool)
    billed = planned.calls.billed
    cost = None if price is None else round(billed * price / 1000, 6)
    seconds = None if rate is None else round(billed / rate, 3)
    return Quote(
        planned.images, planned.calls.unique, planned.calls.repeated, billed,
        price, cost, rate, seconds,
    )  # fmt: skip
