"""Calibrate: how often is an innocent encoder accused? Measured, with fresh random keys.

Every decision takes a key that was drawn afresh from a new master secret, after the encoders
were made. Its groups come from the generator as shipped, its recipes from one of a few other
fresh keys on the same terms (places and recipes of a key are independent draws, so this is a
draw of the whole key as well), and its p-value is that of the rule as shipped (test A1, with test C
where carriers are read), to the last bit.
Given the encoders, the recipes and the joint null's draws, all decisions are independent, so
the number of accusations is a sum of independent coin flips and its exact binomial interval
(Clopper and Pearson, 1934) holds; where the coins differ it is only wider than it need be. Each
coin's own chance is alpha up to the Monte-Carlo error of the null,
``sqrt(alpha (1 - alpha) / draws)``: draw many more than there are decisions on one encoder.

Beside it stands what rules of other schemes would have said of the same keys and encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ssl_wm.calibration.fresh import (
    FreshKeys,
    Reading,
    Reference,
    fresh_key,
    fresh_keys,
    places_among,
    read_all,
    read_nulls,
    without,
)
from ssl_wm.calibration.naive import naive_rules, of_triples
from ssl_wm.calibration.outcome import Calibration
from ssl_wm.console import say
from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import VerificationError
from ssl_wm.verification.carried import (
    both,
    carried_ranks,
    carried_statistics,
    rank_sum_tail,
)
from ssl_wm.verification.centring import key_statistics
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import (
    NOT_A_NUMBER,
    draw_joint_keys,
    joint_statistic,
    standardise,
    ways_to_reveal,
)
from ssl_wm.verification.verify import clean_base

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.open_key import OpenKey

__all__ = ["CalibrateConfig", "Calibration", "calibrate"]


class CalibrateConfig(BaseModel):
    """How the rate of false accusations is measured.

    Attributes:
        alpha: the rule's threshold.
        keys: fresh keys tried on each encoder.
        recipes: fresh master secrets whose mixers and image pairs are rendered; each encoder
            is asked this many times, and the keys are shared out among them.
        draws: random joint keys behind each p-value of several sub-keys. No key is counted here
            (``VerifyConfig.counted``), so the shipped rule, which adds 1e-5 to p of random keys
            where it counts, accuses no oftener.
        confidence: of the intervals.
        resamples: of the naive bootstrap.
        seed: of all secrets.
        read: how much is read from each encoder; its ``recipes`` and rates are left out. With
            ``natural_only`` there are no composites, so no naive rules either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(0.01, gt=0, lt=1)
    keys: int = Field(1_000, ge=1)
    recipes: int = Field(4, ge=1)
    draws: int = Field(499_999, ge=99, le=500_000)
    confidence: float = Field(0.99, gt=0, lt=1)
    resamples: int = Field(999, ge=99)
    seed: int = 0
    read: ReadConfig = ReadConfig()

    @model_validator(mode="after")
    def _a_key_for_each_recipe(self) -> CalibrateConfig:
        if self.keys < self.recipes:
            raise ValueError(f"{self.keys} keys cannot be shared out among {self.recipes} recipes")
        return self


def calibrate(
    suspects: Mapping[str, Encoder],
    *,
    key: OpenKey,
    images: Images,
    nulls: Sequence[Encoder],
    config: CalibrateConfig | None = None,
) -> Calibration:
    """Return how often fresh random keys accuse ``suspects``, all of them innocent.

    Args:
        suspects: encoders that carry no mark, by name.
        key: any key; only its public terms are used (groups, sub-keys, mixer families).
        images: those the key was made for.
        nulls: the encoders that verification will subtract. A suspect that is one of them is
            judged with the others only, as a real suspect would be.
        config: how much is tried.

    Raises:
        KeyFileError: the key was made for other images.
        VerificationError: there is no suspect or no null encoder, a suspect is the only null
            encoder, or a margin is not a number.
        EncoderError: an encoder's embeddings are not finite, or all the same.
    """
    config = config or CalibrateConfig()
    key.check_images(images)
    own = _own_places(suspects, nulls)
    recipes = [fresh_key(key, config.seed, "recipe", number) for number in range(config.recipes)]
    settings = config.read.model_copy(update={"recipes": 0})
    base = clean_base(nulls, key, images, config=VerifyConfig(read=settings))
    known = read_nulls(nulls, recipes, images, config=settings, base=base)
    drawn = draw_joint_keys(
        len(key.groups), sub_keys=key.terms.sub_key_count, draws=config.draws, seed=0
    )
    shown = len(key.sub_keys)
    each = config.keys // config.recipes
    parts: list[Decisions] = []
    for number, (name, encoder) in enumerate(suspects.items()):
        say(f"calibrate: {name} ({number + 1} of {len(suspects)})")
        readings = read_all(encoder, recipes, images, config=settings, base=base)
        for place, (reading, reference) in enumerate(zip(readings, known, strict=True)):
            carriers = len(reading.carried)
            tried = fresh_keys(key, config.seed, name, place, count=each, carriers=carriers)
            others = without(reference, own[name], reading)
            parts.append(decisions(reading, others, tried, drawn, shown=shown, config=config))
    return Calibration(
        alpha=config.alpha,
        confidence=config.confidence,
        names=tuple(suspects),
        p_values=np.concatenate([part.p_values for part in parts]),
        encoders=np.repeat(np.arange(len(suspects)), each * config.recipes),
        recipes=np.tile(np.repeat(np.arange(config.recipes), each), len(suspects)),
        naive={
            rule: np.concatenate([part.naive[rule] for part in parts]) for rule in parts[0].naive
        },
        facts={
            "images": key.fingerprints,
            "groups": len(key.groups),
            "sub_keys": key.terms.sub_key_count,
            "shown": shown,
            "suspects": {name: known_digest(encoder) for name, encoder in suspects.items()},
            "nulls": [known_digest(encoder) for encoder in nulls],
            "settings": config.model_dump(mode="json"),
        },
    )


def _own_places(suspects: Mapping[str, Encoder], nulls: Sequence[Encoder]) -> dict[str, int | None]:
    if not suspects or not nulls:
        raise VerificationError(
            f"calibrate needs innocent encoders and null encoders; got {len(suspects)} and "
            f"{len(nulls)}"
        )
    own = places_among(suspects, nulls)
    alone = [name for name, place in own.items() if place is not None and len(nulls) == 1]
    if alone:
        raise VerificationError(
            f"'{alone[0]}' is the only null encoder, and judged with itself it always gets p = 1; "
            "name another null encoder"
        )
    return own


@dataclass(frozen=True)
class Decisions:
    """Decisions on K keys in one encoder.

    Attributes:
        p_values: (K,) of the rule as shipped.
        naive: (K,) bool accusations of each naive rule; none where no composites were read.
    """

    p_values: np.ndarray
    naive: dict[str, np.ndarray]


def decisions(
    reading: Reading,
    reference: Reference,
    tried: FreshKeys,
    drawn: np.ndarray,
    *,
    shown: int,
    config: CalibrateConfig,
) -> Decisions:
    """Return what the shipped rule and the naive ones say of fresh keys.

    Where fewer sub-keys are shown than a key has, the rule is told of the owner who looks at the
    suspect first and shows those that do best; the naive rules see the first ones.

    Args:
        reading: of the suspect.
        reference: of the null encoders.
        tried: the keys to decide on.
        drawn: (draws, S, 3) joint keys behind the null.
        shown: sub-keys of a key that are shown, at most S.
        config: levels.
    """
    statistics = key_statistics(reading.tables, reference.tables, centring=config.read.centring)
    p_values = best_choice_p_values(
        statistics, tried, drawn=drawn, shown=shown,
        carried=carried_statistics(reading.carried, reference.carried),
    )  # fmt: skip
    if reading.composites is None or reference.margins is None:
        return Decisions(p_values, {})
    away = reading.composites.margins - reference.margins / len(reference.tables)
    naive = naive_rules(
        of_triples(away[:shown], tried.triples[:, :shown]),
        of_triples(reading.composites.nearest[:shown], tried.triples[:, :shown]),
        alpha=config.alpha, resamples=config.resamples,
    )  # fmt: skip
    return Decisions(p_values, naive)


def best_choice_p_values(
    statistics: Tensor, tried: FreshKeys, *, drawn: np.ndarray, shown: int, carried: Tensor
) -> np.ndarray:
    """Return the p-values (K,) of keys of which the ``shown`` best sub-keys are shown.

    That is the least over all choices, times their number (``ways_to_reveal``), at most 1.

    Args:
        statistics: (S, G, G, G) null-centred contrasts.
        tried: the keys.
        drawn: (draws, S, 3) random joint keys.
        shown: at most S.
        carried: (P,) statistics of all carriers; (0,) where they were not read.

    Raises:
        VerificationError: a statistic is NaN where there is such a key.
    """
    choices = [list(each) for each in combinations(range(len(statistics)), shown)]
    found = [
        key_p_values(statistics[each], tried.triples[:, each], drawn=drawn[:, each])
        for each in choices
    ]
    if tried.carriers.shape[2]:
        places = carried_ranks(carried, tried.carriers)
        tail = rank_sum_tail(shown, each=places.shape[2], count=len(carried))
        sums = (places[:, each].sum(axis=(1, 2)) for each in choices)
        found = [both(one, tail[total]) for one, total in zip(found, sums, strict=True)]
    ways = ways_to_reveal(shown, len(statistics))
    p_values: np.ndarray = np.minimum(1.0, ways * np.min(found, axis=0))
    return p_values


def key_p_values(statistics: Tensor, triples: np.ndarray, *, drawn: np.ndarray) -> np.ndarray:
    """Return the p-values (K,) of joint keys by test A1, each looked up in the sorted null.

    The same numbers as ``joint_p_value``, ``(1 + #{null >= key's}) / (1 + draws)``, or with
    one sub-key ``rank_p_value``, ``#{all keys >= key's} / #keys``.

    Args:
        statistics: (S, G, G, G) null-centred contrasts.
        triples: (K, S, 3) joint keys.
        drawn: (draws, S, 3) random joint keys.

    Raises:
        VerificationError: a statistic is NaN where there is such a key.
    """
    if len(statistics) == 1:
        table = statistics[0].numpy()
        null, slack, extra = np.sort(table[~np.isnan(table)]), 0.0, 0
        observed = joint_statistic(statistics, triples)
    else:
        tables = torch.stack([standardise(table) for table in statistics])
        null, slack, extra = np.sort(joint_statistic(tables, drawn)), 1e-12, 1
        observed = joint_statistic(tables, triples)
    if np.isnan(observed).any() or np.isnan(null).any():
        raise VerificationError(NOT_A_NUMBER)
    at_least = len(null) - np.searchsorted(null, observed - slack, side="left")
    p_values: np.ndarray = (extra + at_least) / (extra + len(null))
    return p_values
