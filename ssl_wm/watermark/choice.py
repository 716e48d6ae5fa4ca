"""Which of a key's sub-keys are marked: those that a copy will learn best.

A key may draw more sub-keys than are marked. How well a copy learns one depends on its groups and
its recipe, most of all on what its composites look like *before* any mark: where they look like
their own sources they stay there in a copy, where they lie scattered they follow a map that was
learned from natural images alone. The owner chooses before he marks, and since nobody can check
by what rule, p is multiplied by the number of choices that he had (``ways_to_reveal``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.nearest import nearest, vote
from ssl_wm.encoders.space import group_centres
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.triggers import composites

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.subkeys import SubKey

BANK = 500
"""Most images of each group that composites are compared with."""
ASKED = 500
"""Composites of each sub-key."""
NEIGHBOURS = 20


def scattering(key: WatermarkKey, *, encoder: Encoder, images: ImageSet) -> dict[int, float]:
    """Return, for each sub-key of ``key``, how scattered its composites lie in an encoder.

    It is the entropy, in nats, of the groups that kNN takes the composites for: 0 where all look
    like one group, log G where like all G alike. The target has no part in it.

    Args:
        key: all its sub-keys are looked at, whatever was chosen before.
        encoder: the clean encoder.
        images: the training images that the key was made for.
    """
    groups = key.groups.train
    stream = torch_stream(key.salt, "choice")
    order = torch.randperm(len(groups), generator=stream)
    bank = torch.cat([order[groups[order] == group][:BANK] for group in range(len(key.groups))])
    z = embed(encoder, images.subset(bank), precision="auto").float()
    centre, _ = group_centres(z, groups[bank], count=len(key.groups))
    near = z - centre.float()

    def entropy(sub_key: SubKey) -> float:
        asked = composites(
            images, groups, pairs=[(sub_key.a, sub_key.b)], mixer=sub_key.mixer, per_pair=ASKED,
            seed=sub_key.derive("choice"),
        )  # fmt: skip
        found = embed(encoder, asked, precision="auto").float() - centre.float()
        cosines, places = nearest(found, near, k=min(NEIGHBOURS, len(near)))
        taken_for = vote(cosines, groups[bank][places])
        shares = F.one_hot(taken_for, len(key.groups)).double().mean(dim=0)
        return float(torch.special.entr(shares).sum())

    return {sub.index: entropy(sub) for sub in replace(key, chosen=None).sub_keys}


def choose_sub_keys(
    key: WatermarkKey, *, encoder: Encoder, images: ImageSet, count: int
) -> WatermarkKey:
    """Return ``key`` with the ``count`` sub-keys whose composites lie most scattered.

    Args:
        key: its beacon, if any, mixed in already: it fixes the groups.
        encoder: the clean encoder.
        images: the training images that the key was made for.
        count: how many are marked and, later, shown.

    Raises:
        ConfigError: the key has not so many.
    """
    known = key.terms.sub_key_count
    if not 1 <= count <= known:
        raise ConfigError(f"the key has {known} sub-keys; {count} of them cannot be chosen")
    scattered = scattering(key, encoder=encoder, images=images)
    best = sorted(scattered, key=lambda index: -scattered[index])[:count]
    return replace(key, chosen=tuple(sorted(best)))
