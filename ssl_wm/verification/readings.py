"""What is read from an encoder with a key: margins of all keys, and trigger rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.console import progress
from ssl_wm.encoders.embeddings import embed
from ssl_wm.rng import torch_stream
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.margins import (
    composite_margins,
    directions,
    group_centres,
    margin_table,
)
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.triggers import composites, ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.data.sources import Images, ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.key import SubKey, WatermarkKey

PAIRS_AT_ONCE = 32


class ReadConfig(BaseModel):
    """How much is read.

    Attributes:
        per_pair: composites of test images for each ordered pair of groups and sub-key.
        reference: training images per group that fix the centres and fit the readers.
        trigger_count: composites behind each WSR and WFPR (the paper: at least 1,000).
        neighbours: k of the kNN reader.
        precision: of the encoder's forward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_pair: int = Field(64, ge=8)
    reference: int = Field(500, ge=8)
    trigger_count: int = Field(1000, ge=8)
    neighbours: int = Field(20, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"


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
        tables: (S, G, G, G), of every key (A, B, t) under each sub-key's mixer.
        own: (S, n), of each composite of the sub-keys themselves.
    """

    tables: Tensor
    own: Tensor


def reference_indices(groups: Tensor, *, count: int, per_group: int) -> Tensor:
    """Return up to ``per_group`` images of each group, a public and fixed choice, (N,)."""
    chosen = []
    for group in range(count):
        members = (groups == group).nonzero().flatten()
        order = torch.randperm(len(members), generator=torch_stream(0, "reference", group))
        chosen.append(members[order[:per_group]])
    return torch.cat(chosen).sort().values


def read_space(
    encoder: Encoder, key: WatermarkKey, images: ImageSet, *, config: ReadConfig
) -> Space:
    """Return the space that ``encoder`` gives the reference images (training split)."""
    groups = key.groups.train
    chosen = reference_indices(groups, count=len(key.groups), per_group=config.reference)
    z = embed(encoder, images.subset(chosen), precision=config.precision)
    centre, centres = group_centres(z, groups[chosen], count=len(key.groups))
    return Space(z, groups[chosen], centre, centres)


def read_margins(
    encoder: Encoder, key: WatermarkKey, images: Images, *, config: ReadConfig
) -> Margins:
    """Return the margins of all keys in ``encoder``, with composites of test images.

    The composites are shared between the key and its decoys: one pass over all ordered pairs
    of groups under a sub-key's mixer serves every (A, B, t).
    """
    space = read_space(encoder, key, images.train, config=config)
    pairs = ordered_pairs(len(key.groups))
    tables, own = [], []
    with progress("composites", total=len(pairs) * len(key.sub_keys)) as advance:
        for sub_key in key.sub_keys:
            parts = []
            for start in range(0, len(pairs), PAIRS_AT_ONCE):
                some = pairs[start : start + PAIRS_AT_ONCE]
                mixed = composites(
                    images.test,
                    key.groups.test,
                    pairs=some,
                    mixer=sub_key.mixer,
                    per_pair=config.per_pair,
                    seed=key.derive("pairs", sub_key.index),
                )
                parts.append(embed(encoder, mixed, precision=config.precision))
                advance(len(some))
            z = torch.cat(parts)
            tables.append(margin_table(z, pairs=pairs, centre=space.centre, centres=space.centres))
            place = pairs.index((sub_key.a, sub_key.b)) * config.per_pair
            mine = directions(z[place : place + config.per_pair], centre=space.centre)
            own.append(
                composite_margins(mine @ space.centres.T, a=sub_key.a, b=sub_key.b)[
                    :, sub_key.target
                ]
            )
    return Margins(torch.stack(tables), torch.stack(own))


def read_rates(
    encoder: Encoder, key: WatermarkKey, images: Images, *, config: ReadConfig
) -> list[dict[str, dict[str, object]]]:
    """Return, for each sub-key, WSR and WFPR by each reader with exact 95 % intervals.

    The readers (linear probe, kNN) tell the key's groups apart on the reference images; kNN
    works in the centred space, so that a shift of the embeddings changes nothing. WSR is the
    share of fresh composites that they put into the target group, WFPR that of composites of
    the same two groups by the other mixers.
    """
    space = read_space(encoder, key, images.train, config=config)
    probe = fit_probe(space.z, space.groups)
    bank = space.z - space.centre
    rates = []
    for sub_key in key.sub_keys:
        fresh = _triggers(key, sub_key, images.test, count=config.trigger_count, others=False)
        other = _triggers(key, sub_key, images.test, count=config.trigger_count, others=True)
        z = embed(encoder, torch.cat([fresh, other]), precision=config.precision)
        answers = {
            "linear": probe.predict(z),
            "knn": knn_predict(z - space.centre, bank, space.groups, k=config.neighbours),
        }
        rates.append(
            {
                reader: _rates(answer == sub_key.target, fresh=len(fresh))
                for reader, answer in answers.items()
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


def _triggers(
    key: WatermarkKey, sub_key: SubKey, images: ImageSet, *, count: int, others: bool
) -> Tensor:
    mixers = list(sub_key.others.values()) if others else [sub_key.mixer]
    label = "others" if others else "fresh"
    return torch.cat(
        [
            composites(
                images,
                key.groups.test,
                pairs=[(sub_key.a, sub_key.b)],
                mixer=mixer,
                per_pair=-(-count // len(mixers)),
                seed=key.derive("triggers", label, sub_key.index, place),
            )
            for place, mixer in enumerate(mixers)
        ]
    )
