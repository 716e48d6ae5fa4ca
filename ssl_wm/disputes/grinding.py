"""Grinding: try many keys and present the best; and the beacon that undoes it.

An accuser who may choose his key after he has seen the suspect finds one that fits by chance.
The commitment comes first and the beacon afterwards, and the beacon draws the groups and the
recipe anew, so nothing that he found before is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssl_wm.calibration.calibrate import key_p_values
from ssl_wm.errors import VerificationError
from ssl_wm.files import sha256_bytes
from ssl_wm.rng import derive_seed
from ssl_wm.verification.answers import ask
from ssl_wm.verification.centring import key_statistics
from ssl_wm.verification.once import share_reference
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.statistics import (
    clopper_pearson,
    draw_joint_keys,
    joint_statistic,
    standardise,
)
from ssl_wm.watermark.derivation import derive
from ssl_wm.watermark.key import WatermarkKey

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.answers import Answers
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey
    from ssl_wm.watermark.terms import Terms

Read = Callable[["OpenKey"], Tensor]
"""From a key to the null-centred statistics (S, G, G, G) of its recipes."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The best of many keys.

    Attributes:
        key: it.
        p_value: its own, without a beacon.
        read: how many keys were read in full.
    """

    key: WatermarkKey
    p_value: float
    read: int


def key_reader(
    suspect: Encoder, *, images: Images, nulls: Sequence[Encoder], config: ReadConfig
) -> Read:
    """Return a function that reads ``suspect`` with keys of the same terms.

    The statistics are those that ``verify`` ranks. The reference images are the same for all
    such keys, so each encoder embeds them once.

    Raises:
        VerificationError: there is no null encoder.
    """
    if not nulls:
        raise VerificationError("a key is read against at least one null encoder; give one")
    encoders = [suspect, *nulls]
    references: list[dict[str, Tensor]] = [{} for _ in encoders]
    lean = config.model_copy(update={"recipes": 0})

    def asked(encoder: Encoder, key: OpenKey, kept: dict[str, Tensor]) -> Answers:
        answers = ask(encoder, key, images, config=lean)
        return share_reference(answers, key, config=lean, kept=kept)

    def read(key: OpenKey) -> Tensor:
        suspected, *others = (
            read_margins(asked(encoder, key, kept), key, config=lean).tables
            for encoder, kept in zip(encoders, references, strict=True)
        )
        return key_statistics(suspected, others, centring=config.centring)

    return read


def own_places(key: OpenKey) -> np.ndarray:
    """Return the key's own groups as one joint key, (1, S, 3)."""
    return np.array([[[sub.a, sub.b, sub.target] for sub in key.sub_keys]])


def p_values(statistics: Tensor, keys: np.ndarray, *, draws: int) -> np.ndarray:
    """Return the p-value of each joint key, (B,), as ``verify`` (test A1) would give it.

    Args:
        statistics: (S, G, G, G), null-centred.
        keys: (B, S, 3) joint keys.
        draws: random joint keys ranked against, where S is above 1.

    Raises:
        VerificationError: a statistic is not a number.
    """
    drawn = _random_keys(statistics.shape[1], len(statistics), draws)
    return key_p_values(statistics, keys, drawn=drawn)


def grind(
    read: Read, *, terms: Terms, keys: int, shortlist: int, draws: int, seed: int = 0
) -> Ground:
    """Return the key that fits the suspect best of ``keys`` random ones, without a beacon.

    To open a key costs nothing, to read the suspect with it does. So one scouting key is read,
    its tables (in robust units, mean over its sub-keys) rank all keys by their groups, and only
    the ``shortlist`` best are read in full.

    Args:
        read: of the suspect (``key_reader``).
        terms: public terms of all keys.
        keys: how many are tried.
        shortlist: how many of them are read in full.
        draws: random joint keys behind a p-value.
        seed: of the secrets.
    """
    tried = [accuser_key(terms, seed=seed, number=number) for number in range(keys)]
    chosen = tried
    if shortlist < keys:
        scouted = read(accuser_key(terms, seed=seed, number=keys))
        table = torch.stack([standardise(part) for part in scouted]).mean(dim=0)
        places = np.concatenate([own_places(key) for key in tried])
        fit = joint_statistic(table.expand(places.shape[1], -1, -1, -1), places)
        chosen = [tried[number] for number in np.argsort(-fit, kind="stable")[:shortlist]]
    found = [float(p_values(read(key), own_places(key), draws=draws)[0]) for key in chosen]
    best = int(np.argmin(found))
    return Ground(chosen[best], found[best], len(chosen))


def accuser_key(terms: Terms, *, seed: int, number: int) -> WatermarkKey:
    """Return the accuser's key ``number``; experiments must repeat, so it follows from a seed."""
    root = derive_seed(seed, "accuser").to_bytes(8, "big")
    return WatermarkKey(derive(root, "secret", number), terms)


def beacon_p_values(
    read: Read, key: WatermarkKey, *, beacons: int, redraws: int, draws: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the key's p-value under each of many beacons.

    Args:
        read: of the suspect.
        key: as it was committed to, without a beacon.
        beacons: values drawn after the commitment; each draws groups and recipe anew.
        redraws: further draws of the groups alone under each beacon's recipe.
        draws: random joint keys behind a p-value.
        seed: of the beacons.

    Returns:
        (beacons,) p-values of the key itself, and (beacons, redraws) of the redrawn groups.
    """
    own, redrawn = [], []
    for number in range(beacons):
        published = sha256_bytes(b"beacon %d of seed %d" % (number, seed))
        opened = key.with_beacon(published)
        statistics = read(opened)
        others = draw_joint_keys(
            len(key.groups),
            sub_keys=len(statistics),
            draws=redraws,
            seed=derive_seed(seed, "redraw", number),
        )
        joint = np.concatenate([own_places(opened), others.astype(np.int64)])
        found = p_values(statistics, joint, draws=draws)
        own.append(found[0])
        redrawn.append(found[1:])
    return np.array(own), np.array(redrawn)


def rejections(found: np.ndarray, *, alpha: float) -> dict[str, object]:
    """Return how often p <= alpha, with an exact 95 % interval (Clopper and Pearson, 1934).

    For draws under several recipes the chances differ. The interval then covers their mean: a
    sum of independent unequal chances is less spread than a binomial (Hoeffding, 1956).

    >>> rejections(np.array([0.5, 0.001, 0.2, 0.7]), alpha=0.01)["rate"]
    0.25
    """
    count = int((found <= alpha).sum())
    low, high = clopper_pearson(count, found.size)
    return {
        "draws": found.size,
        "accusations": count,
        "rate": count / found.size,
        "interval": [low, high],
        "alpha": alpha,
        "within_alpha": low <= alpha,
    }


@lru_cache(maxsize=4)
def _random_keys(groups: int, sub_keys: int, draws: int) -> np.ndarray:
    return draw_joint_keys(groups, sub_keys=sub_keys, draws=draws, seed=0)
