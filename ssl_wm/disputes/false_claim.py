"""The false-claim experiment: a dishonest accuser against an innocent encoder.

He crafts trigger images and he grinds keys. A naive verifier accuses; ``verify`` renders the
images itself from a key that was committed to before a public beacon, and does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_wm.disputes.crafting import (
    claimed_triggers,
    craft_triggers,
    naive_verify,
    trigger_margins,
)
from ssl_wm.disputes.grinding import (
    Read,
    accuser_key,
    beacon_p_values,
    grind,
    key_reader,
    own_places,
    p_values,
    rejections,
)
from ssl_wm.disputes.settings import CraftConfig, FalseClaimConfig
from ssl_wm.encoders.properties import known_digest
from ssl_wm.files import plain
from ssl_wm.verification.answers import ask
from ssl_wm.verification.readings import read_space

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.terms import Terms

__all__ = [
    "CraftConfig", "FalseClaimConfig", "craft_triggers", "crafting_result",
    "false_claim_experiment", "grinding_result", "naive_verify",
]  # fmt: skip


def false_claim_experiment(
    encoder: Encoder,
    *,
    terms: Terms,
    images: Images,
    nulls: Sequence[Encoder],
    config: FalseClaimConfig | None = None,
    source: Encoder | None = None,
) -> dict[str, Any]:
    """Return what a naive verifier and ``verify`` say of an innocent encoder, JSON-ready.

    Args:
        encoder: the innocent suspect.
        terms: public terms of the accuser's keys.
        images: those that the terms were made for.
        nulls: unmarked encoders of the accuser, fixed before the beacon.
        config: effort of both sides.
        source: encoder that images are crafted on; None takes the suspect itself (the
            strongest accuser). Another one shows whether crafted images transfer.

    Raises:
        KeyFileError: the terms were made for other images.
        EncoderError: the encoder that images are crafted on gives no gradients.
        VerificationError: no null encoder was given.
    """
    config = config or FalseClaimConfig()
    terms.check_images(images)
    read = key_reader(encoder, images=images, nulls=nulls, config=config.read)
    honest = accuser_key(terms, seed=config.seed, number=config.keys + 1)
    crafting = crafting_result(encoder, honest, images, config=config, source=source)
    p_value = float(p_values(read(honest), own_places(honest), draws=config.draws)[0])
    crafting["verify"] = {"p_value": p_value, "accused": p_value <= config.alpha}
    found = {
        "suspect": known_digest(encoder),
        "nulls": [known_digest(null) for null in nulls],
        "groups": len(terms.groups),
        "sub_keys": terms.sub_key_count,
        "crafting": crafting,
        "grinding": grinding_result(read, terms=terms, config=config),
        "settings": config.model_dump(mode="json"),
    }
    return dict(plain(found))


def crafting_result(
    encoder: Encoder,
    key: WatermarkKey,
    images: Images,
    *,
    config: FalseClaimConfig,
    source: Encoder | None = None,
) -> dict[str, Any]:
    """Return the naive verifier's verdicts before and after the images were crafted.

    Args:
        encoder: the suspect.
        key: whose first sub-key the accuser claims.
        images: those the key was made for.
        config: effort.
        source: encoder that images are crafted on; None takes the suspect.
    """
    sub_key, made_on = key.sub_keys[0], source or encoder
    space = read_space(ask(encoder, key, images, config=config.read), key, config=config.read)
    theirs = space
    if source is not None:
        theirs = read_space(ask(source, key, images, config=config.read), key, config=config.read)
    count = config.craft.count
    natural = claimed_triggers(key, images, count=count)
    crafted = craft_triggers(made_on, natural, space=theirs, sub_key=sub_key, config=config.craft)
    baseline = claimed_triggers(key, images, count=count, label="baseline")
    before, after = (
        naive_verify(
            encoder, triggers, baseline=baseline, space=space, sub_key=sub_key, alpha=config.alpha,
            claimed_wsr=config.claimed_wsr, read=config.read,
        )
        for triggers in (natural, crafted)
    )  # fmt: skip
    return {
        "crafted_on": "another encoder" if source is not None else "the suspect",
        "triggers": count,
        "largest_change": int((crafted.int() - natural.int()).abs().max()),
        "margin_on_source": [
            float(trigger_margins(made_on, part, space=theirs, sub_key=sub_key).mean())
            for part in (natural, crafted)
        ],
        "naive_before": before.to_dict(),
        "naive_after": after.to_dict(),
    }


def grinding_result(read: Read, *, terms: Terms, config: FalseClaimConfig) -> dict[str, Any]:
    """Return the best p-value of many keys, and what beacons leave of it.

    Args:
        read: of the suspect (``grinding.key_reader``).
        terms: public terms of the accuser's keys.
        config: effort.
    """
    ground = grind(
        read, terms=terms, keys=config.keys, shortlist=config.shortlist, draws=config.draws,
        seed=config.seed,
    )  # fmt: skip
    own, redrawn = beacon_p_values(
        read, ground.key, beacons=config.beacons, redraws=config.redraws, draws=config.draws,
        seed=config.seed,
    )  # fmt: skip
    result: dict[str, Any] = {
        "keys": config.keys,
        "keys_read": ground.read,
        "commitment": ground.key.commitment,
        "best_p_without_beacon": ground.p_value,
        "accused_without_beacon": ground.p_value <= config.alpha,
        "with_beacon": {**rejections(own, alpha=config.alpha), "p_values": own.tolist()},
        "redrawn_groups": None,
        "many_commitments": None,
    }
    if redrawn.size:
        result["redrawn_groups"] = rejections(redrawn, alpha=config.alpha)
    if redrawn.shape[1] >= config.commitments:
        result["many_commitments"] = _best_of(redrawn, config.commitments, alpha=config.alpha)
    return result


def _best_of(redrawn: np.ndarray, count: int, *, alpha: float) -> dict[str, Any]:
    """Return how often the best of ``count`` committed keys accuses, counted or not."""
    whole = redrawn.shape[1] // count * count
    best = redrawn[:, :whole].reshape(-1, count).min(axis=1)
    return {
        "commitments": count,
        "not_counted": rejections(best, alpha=alpha),
        "counted": rejections(np.minimum(1.0, count * best), alpha=alpha),
    }
