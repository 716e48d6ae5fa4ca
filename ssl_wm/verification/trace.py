"""Trace: whose copy leaked, when each licensee was given the encoder with a key of its own.

Every key gives one verdict and one p-value; Holm's step-down procedure (1979) corrects for
their number. Those with an adjusted p-value of at most alpha are named.

**Why no innocent licensee is named more often than alpha.** Let the suspect be made from the
copies of some licensees, L, or of none, by whatever thief. Each other licensee's key was drawn
from its own secret, which nobody used in making the suspect, so the suspect is a function of
things that are independent of that key; and so are the null encoders, which the owner made
before any key. Given suspect and null encoders, such a key is therefore one uniform draw from
its generator, and its p-value (``verify``'s: test A1, and with carriers test C) is valid:
P(p <= x) <= x for every x. Holm's procedure keeps the chance of rejecting *any* true
hypothesis at most alpha whenever each true one has a valid p-value: take the first true
hypothesis that it rejects, and let k hypotheses be true; at most m - k false ones come before
it, so its p-value is at most alpha / k, which by the union bound happens for one of the k with
chance at most alpha. Nothing was said of the joint distribution: the p-values of licensees may
depend on each other (same suspect, same groups, same images, same null encoders). It does not
matter either whether L is empty, one licensee, or several who pooled their copies.

What would break it: null encoders made from a marked copy (they would depend on a key), or a
key that was chosen after a look at the suspect. Commitments published beforehand show that
none was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ssl_wm.console import say
from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import KeyFileError, VerificationError
from ssl_wm.verification.answers import Answers, as_labels, ask, through_labels
from ssl_wm.verification.attribution import Trace, attribute
from ssl_wm.verification.once import Memory, reference_name, share_reference
from ssl_wm.verification.questions import REFERENCE, count_queries, question_size, within_budget
from ssl_wm.verification.readings import Margins, read_margins
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.verification.statistics import alpha_of_look
from ssl_wm.verification.verify import clean_base, judge_answers, remembered
from ssl_wm.watermark.keyfile import load_key

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.carried import Base
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.open_key import OpenKey

__all__ = ["Trace", "attribute", "load_keys", "total_queries", "trace"]

Asked = dict[str, Answers]


def trace(
    suspect: Encoder,
    *,
    keys: Mapping[str, OpenKey],
    images: Images,
    nulls: Sequence[Encoder],
    config: VerifyConfig | None = None,
    memory: Memory | None = None,
) -> Trace:
    """Return which licensees' copies ``suspect`` was made from.

    The suspect is asked about the natural reference images once for all keys with the same
    groups, and each null encoder likewise.

    Args:
        suspect: any encoder; only its answers are used.
        keys: each licensee's key, all for the same images.
        images: those the keys were made for.
        nulls: unmarked encoders that depend on none of the keys, the clean one first.
        config: threshold and effort; ``max_queries`` holds for all keys together, ``look``
            counts uses of the whole family of keys.
        memory: what was read of null encoders before; read and added to, so that further
            suspects cost no reading of them. Encoders of arch "custom" are always read anew,
            and so is everything through labels.

    Raises:
        KeyFileError: a key was made for other images; the message names it.
        VerificationError: no key or no null encoder was given, two licensees have the same
            key, or the keys need more queries than allowed.
        EncoderError: an encoder's embeddings are not finite, or all the same.
    """
    config = config or VerifyConfig()
    _check(keys, images, nulls)
    config = _affordable(config, keys)
    asked = _ask_all(suspect, keys, images, config=config.read)
    if config.access == "labels":
        asked = {name: as_labels(answers) for name, answers in asked.items()}
    memory = Memory() if memory is None else memory
    bases = _bases(nulls, keys, images, config=config, memory=memory)
    known = _read_nulls(nulls, asked, keys, images, config=config, memory=memory, bases=bases)
    facts = {
        "suspect": known_digest(suspect),
        "nulls": [known_digest(encoder) for encoder in nulls],
    }
    verdicts = {}
    for name, key in keys.items():
        verdicts[name] = judge_answers(
            asked[name],
            nulls=known[name],
            key=key,
            config=config,
            facts=facts,
            base=bases[name],
        )
        say(f"{name}: p = {verdicts[name].p_value:.2g}")
    alpha = config.alpha if config.look is None else alpha_of_look(config.alpha, config.look)
    settings = {"settings": config.model_dump(mode="json")}
    queries = {"queries": total_queries(keys, config=config.read)}
    return attribute(verdicts, alpha=alpha, facts={**facts, **queries, **settings})


def load_keys(folder: Path) -> dict[str, WatermarkKey]:
    """Return all keys ``*.key`` in ``folder`` by file name without its ending, sorted.

    Raises:
        KeyFileError: there is no such folder, no key in it, or one of them is damaged.
    """
    if not folder.is_dir():
        raise KeyFileError(f"{folder} is no folder; name the one that holds the licensees' keys")
    paths = sorted(path for path in folder.glob("*.key") if path.is_file())
    if not paths:
        raise KeyFileError(
            f"folder {folder} holds no *.key file; put one key for each licensee there"
        )
    return {path.stem: load_key(path) for path in paths}


def total_queries(keys: Mapping[str, OpenKey], *, config: ReadConfig) -> int:
    """Return how many images a suspect is sent when all ``keys`` are tried on it."""
    shared: dict[str, int] = {}
    own = 0
    for key in keys.values():
        reference = question_size(REFERENCE, key, config=config)
        shared[reference_name(key, config=config)] = reference
        own += count_queries(key, config=config) - reference
    return own + sum(shared.values())


def _check(keys: Mapping[str, OpenKey], images: Images, nulls: Sequence[Encoder]) -> None:
    if not keys:
        raise VerificationError("trace needs the key of at least one licensee; got none")
    if not nulls:
        raise VerificationError(
            "trace needs at least one null encoder: name the clean encoder with --null"
        )
    seen: dict[tuple[str, str], str] = {}
    for name, key in keys.items():
        try:
            key.check_images(images)
        except KeyFileError as error:
            raise KeyFileError(f"key '{name}': {error}") from error
        twin = seen.setdefault((key.commitment, key.beacon), name)
        if twin != name:
            raise VerificationError(
                f"licensees '{twin}' and '{name}' have the same key, so nothing can tell them "
                "apart; give each licensee a key of its own, or leave one of the two out"
            )


def _affordable(config: VerifyConfig, keys: Mapping[str, OpenKey]) -> VerifyConfig:
    """Return ``config`` with as much read as an equal share of the queries allows each key."""
    share = None if config.max_queries is None else config.max_queries // len(keys)
    read = config.read
    for name, key in keys.items():
        try:
            read = within_budget(key, config=read, limit=share)
        except VerificationError as error:
            raise VerificationError(
                f"key '{name}', one of {len(keys)} that share --max-queries "
                f"{config.max_queries:,}: {error}"
            ) from error
    return config.model_copy(update={"read": read})


def _ask_all(
    encoder: Encoder, keys: Mapping[str, OpenKey], images: Images, *, config: ReadConfig
) -> Asked:
    kept: dict[str, Tensor] = {}
    return {
        name: share_reference(
            ask(encoder, key, images, config=config), key, config=config, kept=kept
        )
        for name, key in keys.items()
    }


def _bases(
    nulls: Sequence[Encoder],
    keys: Mapping[str, OpenKey],
    images: Images,
    *,
    config: VerifyConfig,
    memory: Memory,
) -> dict[str, Base | None]:
    """Return what each key's carriers are read against; keys for the same groups share it.

    Raises:
        VerificationError: no null encoder is the one that a key commits to; the key is named.
    """
    bases: dict[str, Base | None] = {}
    for name, key in keys.items():
        try:
            bases[name] = clean_base(nulls, key, images, config=config, memory=memory)
        except VerificationError as error:
            raise VerificationError(f"key '{name}': {error}") from error
    return bases


def _read_nulls(
    nulls: Sequence[Encoder],
    suspect: Asked,
    keys: Mapping[str, OpenKey],
    images: Images,
    *,
    config: VerifyConfig,
    memory: Memory,
    bases: Mapping[str, Base | None],
) -> dict[str, list[Margins]]:
    """Return the margins of all null encoders for each key, one encoder after the other."""
    read: dict[str, list[Margins]] = {name: [] for name in keys}
    for encoder in nulls:
        asked = _ask_all(encoder, keys, images, config=config.read)
        for name, key in keys.items():
            if config.access == "labels":
                answers = through_labels(asked[name], suspect=suspect[name])
                margins = read_margins(answers, key, config=config.read)
            else:
                margins = remembered(
                    encoder, asked[name], key, config=config.read, memory=memory, base=bases[name]
                )
            read[name].append(margins)
    return read
