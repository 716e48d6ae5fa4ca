"""Make a key: groups from labels or clusters, the blend mixer's autoencoder, a secret."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError
from ssl_wm.watermark.autoencoder import train_autoencoder
from ssl_wm.watermark.choice import choose_sub_keys
from ssl_wm.watermark.groups import cluster_groups, label_groups
from ssl_wm.watermark.key import WatermarkKey, new_key
from ssl_wm.watermark.terms import check_sub_keys

if TYPE_CHECKING:
    from ssl_wm.data.sources import Images
    from ssl_wm.encoders.encoder import Encoder

MOST_SPARE = 2
"""Sub-keys beyond those that are marked, at most, where nobody says how many."""


def keygen(
    images: Images,
    *,
    encoder: Encoder | None = None,
    clusters: int = 20,
    sub_keys: int | None = None,
    spare: int | None = None,
    families: tuple[str, ...] = ("crop-paste",),
    autoencoder_steps: int = 400,
    secret: bytes | None = None,
) -> WatermarkKey:
    """Return a fresh key.

    Args:
        images: what composites are made of; the key is bound to them.
        encoder: the clean encoder whose clusters become the groups; None takes the labels.
        clusters: number of clusters.
        sub_keys: number of marks; None means three where the groups suffice, else one.
        spare: sub-keys that are drawn beyond these, so that those can be marked that a copy
            will learn best (``choose_sub_keys``); they need ``encoder``. None means as many as
            the groups suffice for, at most two, and with labels none.
        families: mixer families that the secret may choose among.
        autoencoder_steps: training of the blend mixer; 0 leaves that mixer out.
        secret: 32 bytes for experiments that must repeat; None draws them from the system.

    Raises:
        DataError: a group has too few images.
        ConfigError: too few groups for the sub-keys, or an unknown mixer family.
    """
    if encoder is None:
        groups = label_groups(images)
    else:
        groups = cluster_groups(images, encoder=encoder, count=clusters)
    sub_keys, spare = sub_key_counts(
        sub_keys, spare=spare, groups=len(groups), clustered=encoder is not None
    )
    check_sub_keys(sub_keys + spare, groups=len(groups), families=families)
    if spare and encoder is None:
        raise ConfigError(
            "spare sub-keys are told from the others by what the clean encoder sees; name it, or "
            "leave spare at 0"
        )
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
        secret=secret,
    )
    if spare == 0 or encoder is None:
        return key
    return choose_sub_keys(key, encoder=encoder, images=images.train, count=sub_keys)


def sub_key_counts(
    sub_keys: int | None, *, spare: int | None, groups: int, clustered: bool
) -> tuple[int, int]:
    """Return how many sub-keys are marked, and how many more are drawn to choose them from.

    Args:
        sub_keys: number of marks; None means three where the groups suffice, else one.
        spare: those beyond; None means as many as the groups suffice for, at most two.
        groups: number of groups; a sub-key takes three.
        clustered: whether they are clusters of the clean encoder's, by which to choose.

    >>> sub_key_counts(None, spare=None, groups=20, clustered=True)
    (3, 2)
    >>> sub_key_counts(None, spare=None, groups=12, clustered=True)
    (3, 1)
    >>> sub_key_counts(None, spare=None, groups=10, clustered=False)
    (3, 0)
    """
    if sub_keys is None:
        sub_keys = 3 if groups >= 9 else 1
    if spare is None:
        spare = min(MOST_SPARE, max(0, groups // 3 - sub_keys)) if clustered else 0
    return sub_keys, spare


def another_key(key: WatermarkKey) -> WatermarkKey:
    """Return a fresh key on the same public terms, for another licensee."""
    return WatermarkKey(secrets.token_bytes(32), key.terms)
