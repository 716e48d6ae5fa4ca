"""Ask once: answers that several keys, or several readings, need alike."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ssl_wm.encoders.properties import tensor_bytes
from ssl_wm.files import sha256_bytes
from ssl_wm.verification.questions import REFERENCE, reference_indices

if TYPE_CHECKING:
    from ssl_wm.verification.answers import Answers
    from ssl_wm.verification.carried import Base
    from ssl_wm.verification.readings import Margins
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey


@dataclass
class Memory:
    """What was read of null encoders, so that no further suspect waits for it.

    Attributes:
        margins: of each null encoder, key, settings and base (``verify.remembered``).
        bases: what carriers are read against, for each clean encoder, set of natural images and
            kind of carriers (``verify.clean_base``).
    """

    margins: dict[str, Margins] = field(default_factory=dict)
    bases: dict[str, Base] = field(default_factory=dict)


def reference_name(key: OpenKey, *, config: ReadConfig) -> str:
    """Return a digest of which natural images ``key`` asks about.

    Keys for the same images and groups share it, whatever their secrets.
    """
    return sha256_bytes(bytes(tensor_bytes(reference_indices(key, config=config))))


def share_reference(
    answers: Answers, key: OpenKey, *, config: ReadConfig, kept: MutableMapping[str, Tensor]
) -> Answers:
    """Return ``answers`` of one encoder that ask about natural images only once for all keys.

    Args:
        answers: of one encoder to ``key``.
        key: one of several for the same images.
        config: how much is read.
        kept: embeddings (N, D) of natural images by ``reference_name``; read and added to.
            One mapping belongs to one encoder.
    """

    def answer(name: str) -> Tensor:
        if name != REFERENCE:
            return answers(name)
        natural = reference_name(key, config=config)
        if natural not in kept:
            kept[natural] = answers(REFERENCE)
        return kept[natural]

    return answer


def once(answers: Answers) -> Answers:
    """Return ``answers`` that keep every set of embeddings (N, D) after it was asked for."""
    kept: dict[str, Tensor] = {}

    def answer(name: str) -> Tensor:
        if name not in kept:
            kept[name] = answers(name)
        return kept[name]

    return answer
