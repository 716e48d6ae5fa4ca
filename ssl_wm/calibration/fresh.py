"""What fresh random keys read in innocent encoders: the raw material of a calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssl_wm.calibration.naive import all_margins
from ssl_wm.console import say
from ssl_wm.encoders.properties import known_digest
from ssl_wm.verification.answers import ask
from ssl_wm.verification.carried import Base
from ssl_wm.verification.margins import directions
from ssl_wm.verification.once import once, share_reference
from ssl_wm.verification.readings import judged_space, read_margins
from ssl_wm.watermark.carriers import own_carriers
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.triggers import ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.answers import Answers
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey


@dataclass(frozen=True)
class Composites:
    """Where one recipe key's composites lie in one encoder.

    Attributes:
        margins: (S, P, n, G) float32, of each composite of each ordered pair to each group.
        nearest: (S, P, n, G) bool, whether a group's centre is the composite's nearest.
    """

    margins: Tensor
    nearest: Tensor


@dataclass(frozen=True)
class Reading:
    """What one recipe key reads in one encoder.

    Attributes:
        tables: (S, G, G, G) margins of all keys.
        composites: what naive rules look at; None where natural images alone were asked.
        carried: (P,) share of each carrier that the encoder knows; (0,) where that was not read.
    """

    tables: Tensor
    composites: Composites | None = field(repr=False)
    carried: Tensor


@dataclass
class Reference:
    """What one recipe key reads in the null encoders.

    Attributes:
        tables: of each null encoder.
        margins: (S, P, n, G) sum over them of each composite's margins; None where natural images
            alone were asked.
        carried: of each null encoder, the share of each carrier that it knows.
    """

    tables: list[Tensor]
    margins: Tensor | None
    carried: list[Tensor]

    def add(self, reading: Reading) -> None:
        """Take up what the recipe key reads in one more null encoder."""
        self.tables.append(reading.tables)
        self.carried.append(reading.carried)
        if reading.composites is not None:
            more = reading.composites.margins
            self.margins = more if self.margins is None else self.margins + more


def fresh_key(key: OpenKey, seed: int, *names: str | int) -> WatermarkKey:
    """Return a key on the terms of ``key`` with a new master secret, a function of the rest."""
    text = "/".join(str(part) for part in (seed, *names))
    return WatermarkKey(hashlib.sha256(f"calibrate/{text}".encode()).digest(), key.terms)


@dataclass(frozen=True)
class FreshKeys:
    """What K fresh keys on the same terms stand for.

    Attributes:
        triples: (K, S, 3) groups of their sub-keys.
        carriers: (K, S, C) their carriers' places among all; (K, S, 0) where there are none.
    """

    triples: np.ndarray
    carriers: np.ndarray


def fresh_keys(key: OpenKey, seed: int, *names: str | int, count: int, carriers: int) -> FreshKeys:
    """Return ``count`` fresh keys on the terms of ``key``.

    Args:
        key: any key on these terms.
        seed: of their secrets, together with ``names``.
        names: what they are for.
        count: K.
        carriers: number of all carriers; 0 where they are not read.
    """
    fresh = [fresh_key(key, seed, "key", *names, place) for place in range(count)]
    triples = [[(sub.a, sub.b, sub.target) for sub in each.sub_keys] for each in fresh]
    own = [own_carriers(each, count=carriers) for each in fresh]
    return FreshKeys(np.array(triples, dtype=np.int64), np.array(own, dtype=np.int64))


def read_all(
    encoder: Encoder,
    recipes: Sequence[WatermarkKey],
    images: Images,
    *,
    config: ReadConfig,
    base: Base | None,
) -> Iterator[Reading]:
    """Yield what each recipe key reads in ``encoder``; natural images are asked about once."""
    kept: dict[str, Tensor] = {}
    for key in recipes:
        asked = ask(encoder, key, images, config=config)
        answers = once(share_reference(asked, key, config=config, kept=kept))
        margins = read_margins(answers, key, config=config, base=base)
        seen = None if config.natural_only else read_composites(answers, key, config=config)
        yield Reading(margins.tables, seen, margins.carried)


def read_composites(answers: Answers, key: OpenKey, *, config: ReadConfig) -> Composites:
    """Return where each composite lies, in the space that the key's margins are taken in."""
    space, seen = judged_space(answers, key, config=config)
    pairs = ordered_pairs(len(key.groups))
    margins, nearest = [], []
    for sub_key in key.sub_keys:
        z = directions(seen(f"pairs/{sub_key.index}"), centre=space.centre)
        cosines = (z @ space.centres.T).view(len(pairs), config.per_pair, len(key.groups))
        margins.append(all_margins(cosines, pairs=pairs))
        nearest.append(cosines >= cosines.amax(dim=2, keepdim=True))
    return Composites(torch.stack(margins), torch.stack(nearest))


def read_nulls(
    nulls: Sequence[Encoder],
    recipes: Sequence[WatermarkKey],
    images: Images,
    *,
    config: ReadConfig,
    base: Base | None,
) -> list[Reference]:
    """Return what each recipe key reads in all null encoders together."""
    known: list[Reference] = []
    for number, encoder in enumerate(nulls):
        say(f"calibrate: null encoder {number + 1} of {len(nulls)}")
        for place, reading in enumerate(
            read_all(encoder, recipes, images, config=config, base=base)
        ):
            if place == len(known):
                known.append(Reference([], None, []))
            known[place].add(reading)
    return known


def places_among(
    suspects: Mapping[str, Encoder], nulls: Sequence[Encoder]
) -> dict[str, int | None]:
    """Return for each suspect which of the null encoders it is, None where it is none.

    Besides the same object, equal weights of the same architecture make it the same encoder;
    of arch "custom" they do not, since a digest leaves out the code.
    """
    known = [known_digest(null) for null in nulls]
    places: dict[str, int | None] = {}
    for name, encoder in suspects.items():
        own = known_digest(encoder) if encoder.arch != "custom" else None
        same = [
            null is encoder
            or (own is not None and own == known[place] and null.arch == encoder.arch)
            for place, null in enumerate(nulls)
        ]
        places[name] = same.index(True) if any(same) else None
    return places


def without(reference: Reference, place: int | None, reading: Reading) -> Reference:
    """Return ``reference`` less the null encoder at ``place``, whose own ``reading`` this is."""
    if place is None:
        return reference
    tables, carried = (
        [part for number, part in enumerate(parts) if number != place]
        for parts in (reference.tables, reference.carried)
    )
    if reference.margins is None or reading.composites is None:
        return Reference(tables, None, carried)
    return Reference(tables, reference.margins - reading.composites.margins, carried)
