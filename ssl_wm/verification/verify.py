"""Verify: does this suspect carry the key's watermark?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ssl_wm.encoders.load import encoder_digest
from ssl_wm.encoders.properties import known_digest, tensor_bytes
from ssl_wm.errors import VerificationError
from ssl_wm.files import sha256_bytes
from ssl_wm.verification.answers import Answers, as_labels, ask, through_labels
from ssl_wm.verification.carried import Base, reads_carriers
from ssl_wm.verification.judge import NO_NULLS, judge
from ssl_wm.verification.once import Memory, reference_name
from ssl_wm.verification.questions import REFERENCE, render, within_budget
from ssl_wm.verification.readings import Margins, read_margins, read_rates
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.verification.verdict import Verdict
from ssl_wm.watermark.carriers import axes_of, carrier_values
from ssl_wm.watermark.places import carrier_places, place_values

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey

LOG = logging.getLogger(__name__)


def verify(
    suspect: Encoder,
    *,
    key: OpenKey,
    images: Images,
    nulls: Sequence[Encoder],
    config: VerifyConfig | None = None,
    memory: Memory | None = None,
) -> Verdict:
    """Return the verdict on ``suspect``.

    Args:
        suspect: any encoder, a wrapped function too; only its answers are used.
        key: the owner's key, or some revealed sub-keys of it.
        images: those the key was made for.
        nulls: encoders known to be unmarked, the owner's clean encoder first. Any fixed choice
            keeps the test exact, a better one makes it stronger.
        config: threshold and effort.
        memory: what was read of null encoders before; read and added to.

    Raises:
        KeyFileError: the key was made for other images.
        VerificationError: no null encoder was given, or the key needs more queries than
            allowed.
        EncoderError: an encoder's embeddings are not finite, or all the same.
    """
    config = config or VerifyConfig()
    key.check_images(images)
    config = affordable(config, key)
    answers = ask(suspect, key, images, config=config.read)
    if config.access == "labels":
        answers = as_labels(answers)
    base = clean_base(nulls, key, images, config=config, memory=memory)
    known = read_nulls(nulls, key, images, suspect=answers, config=config, memory=memory, base=base)
    facts: dict[str, Any] = {
        "suspect": known_digest(suspect), "nulls": [known_digest(encoder) for encoder in nulls],
    }  # fmt: skip
    if key.terms.encoder not in (None, *facts["nulls"]):
        LOG.warning("the key commits to a clean encoder that is no null encoder here; ask for it")
    return judge_answers(answers, nulls=known, key=key, config=config, facts=facts, base=base)


def clean_base(
    nulls: Sequence[Encoder],
    key: OpenKey,
    images: Images,
    *,
    config: VerifyConfig,
    memory: Memory | None = None,
) -> Base | None:
    """Return what carriers are read against: the clean encoder; None where they are not read.

    It is the null encoder that the key commits to: one that was chosen after the suspect was seen
    could be made to suit it. Keys for the same images and groups have the same base, whatever
    their secrets, so ``memory`` holds it for all of them.

    Raises:
        VerificationError: no null encoder was given, or none is the one that the key commits to.
    """
    if not nulls:
        raise VerificationError(NO_NULLS)
    if not reads_carriers(key, config):
        return None
    committed = [each for each in nulls if known_digest(each) == key.terms.encoder]
    if not committed:
        raise VerificationError(
            "the key's carriers are read against the clean encoder that it commits to "
            f"({str(key.terms.encoder)[:12]}...), and no null encoder is that one; add it: --null"
        )
    clean = committed[0]
    if clean.arch == "custom" or memory is None:
        return base_of(clean, key, images, config=config.read)
    asked = reference_name(key, config=config.read)
    name = f"{encoder_digest(clean)}/{images.train.fingerprint}/{asked}/{key.terms.carriers_in}"
    name = f"{name}/{config.read.precision}"
    if name not in memory.bases:
        memory.bases[name] = base_of(clean, key, images, config=config.read)
    return memory.bases[name]


def base_of(clean: Encoder, key: OpenKey, images: Images, *, config: ReadConfig) -> Base:
    """Return what carriers are read against where ``clean`` is the clean encoder."""
    z = ask(clean, key, images, config=config)(REFERENCE)
    if key.terms.carriers_in == "answers":
        return Base(z, carrier_values(z, axes_of(clean, images.train)).float())
    asked = torch.cat(list(render(REFERENCE, key, images, config=config)))
    return Base(z, place_values(clean, asked, carrier_places(clean, images.train)))


def affordable(config: VerifyConfig, key: OpenKey) -> VerifyConfig:
    """Return ``config`` with as much read as its ``max_queries`` allow.

    Raises:
        VerificationError: not even the least reading fits.
    """
    fits = within_budget(key, config=config.read, limit=config.max_queries)
    return config.model_copy(update={"read": fits})


def read_nulls(
    nulls: Sequence[Encoder],
    key: OpenKey,
    images: Images,
    *,
    suspect: Answers,
    config: VerifyConfig,
    memory: Memory | None = None,
    base: Base | None = None,
) -> list[Margins]:
    """Return each null encoder's margins; with labels alone, through the suspect's own labels."""
    read = []
    for encoder in nulls:
        answers = ask(encoder, key, images, config=config.read)
        if config.access == "labels":
            answers = through_labels(answers, suspect=suspect)
            read.append(read_margins(answers, key, config=config.read))
        else:
            margins = remembered(
                encoder, answers, key, config=config.read, memory=memory, base=base
            )
            read.append(margins)
    return read


def remembered(
    encoder: Encoder,
    answers: Answers,
    key: OpenKey,
    *,
    config: ReadConfig,
    memory: Memory | None,
    base: Base | None = None,
) -> Margins:
    """Return the margins in ``answers`` of ``encoder``, read at most once.

    ``memory`` holds margins by encoder, key, settings and base. An encoder of arch
    "custom" is read anew each time, since its digest leaves out its code.
    """
    if encoder.arch == "custom" or memory is None:
        return read_margins(answers, key, config=config, base=base)
    revealed = [sub.index for sub in key.sub_keys]
    against = None
    if base is not None:
        against = sha256_bytes(b"".join(bytes(tensor_bytes(t)) for t in (base.z, base.carriers)))
    name = (
        f"{encoder_digest(encoder)}/{key.commitment}/{key.beacon}/{revealed}/{config!r}/{against}"
    )
    if name not in memory.margins:
        memory.margins[name] = read_margins(answers, key, config=config, base=base)
    return memory.margins[name]


def judge_answers(
    answers: Answers,
    *,
    nulls: Sequence[Margins],
    key: OpenKey,
    config: VerifyConfig,
    facts: dict[str, Any],
    base: Base | None = None,
) -> Verdict:
    """Return the verdict on a suspect that gave ``answers``.

    Raises:
        VerificationError: there is no null encoder, or a margin is not a number.
    """
    margins = read_margins(answers, key, config=config.read, base=base)
    rates = read_rates(answers, key, config=config.read)
    return judge(margins, nulls=nulls, rates=rates, key=key, config=config, facts=facts)
