"""Make a key: groups from labels or clusters, the blend mixer's autoencoder, a secret."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from ssl_wm.encoders.places import has_places
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError
from ssl_wm.watermark.autoencoder import train_autoencoder
from ssl_wm.watermark.carriers import EACH
from ssl_wm.watermark.choice import choose_sub_keys
from ssl_wm.watermark.groups import cluster_groups, label_groups
from ssl_wm.watermark.key import WatermarkKey, new_key
from ssl_wm.watermark.terms import CarriersIn, check_sub_keys

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder


def keygen(
    images: Images,
    *,
    encoder: Encoder | None = None,
    clusters: int = 20,
    sub_keys: int | None = None,
    spare: int = 0,
    families: tuple[str, ...] = ("crop-paste",),
    autoencoder_steps: int = 400,
    carriers: int | None = None,
    carriers_in: CarriersIn | None = None,
    secret: bytes | None = None,
) -> WatermarkKey:
    """Return a fresh key.

    Args:
        images: what composites are made of; the key is bound to them.
        encoder: the clean encoder whose clusters become the groups; None takes the labels.
        clusters: number of clusters.
        sub_keys: number of marks; None means three where the groups suffice, else one.
        spare: sub-keys that are drawn beyond these, so that those can be marked that a copy
            will learn best (``choose_sub_keys``); they need ``encoder``.
        families: mixer families that the secret may choose among.
        autoencoder_steps: training of the blend mixer; 0 leaves that mixer out.
        carriers: number of carriers of each sub-key (``carriers.py``); 0 for marks without, such as
            all but ``bend-space``. None means ``EACH`` where there is an ``encoder``, else 0.
        carriers_in: what they are functions of, "answers" or "places" (``places.py``). None means
            places, where the encoder has layers with something between them.
        secret: 32 bytes for experiments that must repeat; None draws them from the system.

    Raises:
        DataError: a group has too few images.
        ConfigError: too few groups for the sub-keys, an unknown mixer family, or carriers in the
            places of an encoder that has none.
    """
    if encoder is None:
        groups = label_groups(images)
    else:
        groups = cluster_groups(images, encoder=encoder, count=clusters)
    if sub_keys is None:
        sub_keys = 3 if len(groups) >= 9 else 1
    check_sub_keys(sub_keys + spare, groups=len(groups), families=families)
    if spare and encoder is None:
        raise ConfigError(
            "spare sub-keys are told from the others by what the clean encoder sees; name it, or "
            "leave spare at 0"
        )
    if carriers is None:
        carriers = 0 if encoder is None else EACH
    inside = encoder is not None and has_places(encoder, side=images.train.size[-1])
    if carriers_in == "places" and not inside:
        raise ConfigError(
            "carriers in places need a clean encoder whose layers can be told apart; take "
            "carriers_in: answers (--carriers-in answers)"
        )
    if carriers_in is None:
        carriers_in = "places" if carriers and inside else "answers"
    autoencoder = None
    if autoencoder_steps:
        autoencoder = train_autoencoder(images.train, seed=0, steps=autoencoder_steps)
    key = new_key(
        images,
        groups=groups,
        sub_keys=sub_keys + spare,
        families=families,
        autoencoder=autoencoder,
        encoder=encoder_digest(encoder) if encoder is not None else None,
        carriers=carriers,
        carriers_in=carriers_in,
        secret=secret,
    )
    if spare == 0 or encoder is None:
        return key
    return choose_sub_keys(key, encoder=encoder, images=images.train, count=sub_keys)


def another_key(key: WatermarkKey) -> WatermarkKey:
    """Return a fresh key on the same public terms, for another licensee."""
    return WatermarkKey(secrets.token_bytes(32), key.terms)
