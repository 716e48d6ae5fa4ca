"""What is read from an encoder's answers: margins of all keys and recipes, and trigger rates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.encoders.space import evening
from ssl_wm.verification.carried import Base, carried_shares
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.margins import (
    composite_margins,
    contrasts,
    directions,
    group_centres,
    margin_table,
    nearness_table,
)
from ssl_wm.verification.probe import fit_sealed_probe
from ssl_wm.verification.questions import REFERENCE, own_size, reference_indices
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.triggers import ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.verification.answers import Answers
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey
    from ssl_wm.watermark.subkeys import SubKey


@dataclass(frozen=True)
class Space:
    """An encoder's feature space as the reference images span it.

    Attributes:
        z: (N, D) embeddings of the reference images.
        groups: (N,) their groups.
        centre: (D,) centre of the space.
        centres: (G, D) unit centres of the groups.
    """

    z: Tensor
    groups: Tensor
    centre: Tensor
    centres: Tensor


@dataclass(frozen=True)
class Margins:
    """Margins in one encoder.

    Attributes:
        tables: (S, G, G, G), of every key (A, B, t) under each sub-key's mixer; of natural images
            alone the nearness, which is the same for every mixer.
        own: (S, n), contrast of each composite of the sub-keys themselves, or of natural images
            of their targets.
        recipes: (S, R + 1), contrast of each sub-key's groups under its own recipe (first) and
            under R decoy recipes.
        carried: (P,), share of each carrier that the encoder knows (``carried.py``); (0,) where
            that was not read.
    """

    tables: Tensor
    own: Tensor
    recipes: Tensor
    carried: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))


def read_space(answers: Answers, key: OpenKey, *, config: ReadConfig) -> Space:
    """Return the space that an encoder gives the reference images (training split)."""
    groups = key.groups.train[reference_indices(key, config=config)]
    z = answers(REFERENCE)
    centre, centres = group_centres(z, groups, count=len(key.groups))
    return Space(z, groups, centre, centres)


def read_margins(
    answers: Answers, key: OpenKey, *, config: ReadConfig, base: Base | None = None
) -> Margins:
    """Return the margins of all keys and recipes, with composites of test images.

    The composites are shared between the key and its decoys: one pass over all ordered pairs
    of groups under a sub-key's mixer serves every (A, B, t). With ``natural_only`` nearness takes
    the margins' place. Carriers are read where ``base`` is given, what the clean encoder answers.
    """
    if base is not None:
        carried = carried_shares(answers(REFERENCE), base)
        return replace(read_margins(answers, key, config=config), carried=carried)
    space, answers = judged_space(answers, key, config=config)
    if config.natural_only:
        return _read_nearness(space, key, count=own_size(key, config=config))
    pairs = ordered_pairs(len(key.groups))
    tables, own, recipes = [], [], []
    for sub_key in key.sub_keys:
        z = answers(f"pairs/{sub_key.index}")
        tables.append(margin_table(z, pairs=pairs, centre=space.centre, centres=space.centres))
        place = pairs.index((sub_key.a, sub_key.b)) * config.per_pair
        mine = _contrasts(z[place : place + config.per_pair], sub_key, space)
        own.append(mine)
        decoys = mine.new_empty(0)
        if config.decoy_recipes:
            values = _contrasts(answers(f"recipes/{sub_key.index}"), sub_key, space)
            decoys = values.view(config.recipes, config.per_pair).mean(dim=1)
        recipes.append(torch.cat([mine.mean().view(1), decoys]))
    return Margins(torch.stack(tables), torch.stack(own), torch.stack(recipes))


def judged_space(answers: Answers, key: OpenKey, *, config: ReadConfig) -> tuple[Space, Answers]:
    """Return the space that margins are taken in (``ReadConfig.space``), and the answers in it."""
    space = read_space(answers, key, config=config)
    if config.space == "plain":
        return space, answers
    even = evening(space.z)
    z = space.z.double() @ even
    centre, centres = group_centres(z, space.groups, count=len(space.centres))
    return Space(z, space.groups, centre, centres), lambda name: answers(name).double() @ even


def _read_nearness(space: Space, key: OpenKey, *, count: int) -> Margins:
    table = nearness_table(space.centres)
    own, recipes = [], []
    for sub_key in key.sub_keys:
        sources = [sub_key.a, sub_key.b]
        z = space.z[space.groups == sub_key.target][:count]
        near = (directions(z, centre=space.centre) @ space.centres[sources].T).sum(dim=1)
        own.append(near - table[sub_key.a, sub_key.b].nanmean())
        row = contrasts(table[sub_key.a, sub_key.b])
        recipes.append(row[sub_key.target].view(1))
    tables = table.expand(len(key.sub_keys), *table.shape).contiguous()
    return Margins(tables, torch.stack(own), torch.stack(recipes))


def _contrasts(z: Tensor, sub_key: SubKey, space: Space) -> Tensor:
    """Return the contrast of each composite of a sub-key's groups to its target, (n,)."""
    cosines = directions(z, centre=space.centre) @ space.centres.T
    margins = composite_margins(cosines, a=sub_key.a, b=sub_key.b)
    margins[:, [sub_key.a, sub_key.b]] = torch.nan
    return contrasts(margins)[:, sub_key.target]


def read_rates(
    answers: Answers, key: OpenKey, *, config: ReadConfig
) -> list[dict[str, dict[str, object]]]:
    """Return, for each sub-key, WSR and WFPR by each reader with exact 95 % intervals.

    The readers (linear probe, kNN) tell the key's groups apart on the reference images; kNN
    works in the centred space, so that a shift of the embeddings changes nothing. WSR is the
    share of fresh composites that they put into the target group, WFPR that of composites of
    the same two groups by the other mixers. With ``natural_only`` there
    are none.
    """
    if config.natural_only:
        return [{} for _ in key.sub_keys]
    space = read_space(answers, key, config=config)
    probe = fit_sealed_probe(space.z, space.groups)
    bank = space.z - space.centre
    rates = []
    for sub_key in key.sub_keys:
        fresh, others = (answers(f"{kind}/{sub_key.index}") for kind in ("fresh", "others"))
        z = torch.cat([fresh, others])
        found = {
            "linear": probe.predict(z),
            "knn": knn_predict(z - space.centre, bank, space.groups, k=config.neighbours),
        }
        rates.append(
            {
                reader: _rates(answer == sub_key.target, fresh=len(fresh))
                for reader, answer in found.items()
            }
        )
    return rates


def _rates(hits: Tensor, *, fresh: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, part in (("wsr", hits[:fresh]), ("wfpr", hits[fresh:])):
        successes = int(part.sum())
        result[name] = successes / len(part)
        result[f"{name}_interval"] = list(clopper_pearson(successes, len(part)))
    return result
