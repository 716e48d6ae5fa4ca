"""Answers: an encoder's embeddings of the images it is asked about, by the set's name.

``Answers`` is a function from a set's name to its embeddings (N, D): of an encoder at hand, of
an evidence bundle, or of a classifier that gives labels only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.console import progress
from ssl_wm.encoders.embeddings import embed
from ssl_wm.errors import EncoderError
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.questions import REFERENCE, question_size, render

if TYPE_CHECKING:
    from ssl_wm.data.sources import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.key import OpenKey

Answers = Callable[[str], Tensor]


def ask(encoder: Encoder, key: OpenKey, images: Images, *, config: ReadConfig) -> Answers:
    """Return the answers of an encoder at hand; each set is rendered and embedded on demand."""

    def answer(name: str) -> Tensor:
        if name == REFERENCE and REFERENCE in kept:
            return kept[REFERENCE]
        parts = []
        with progress(f"asking: {name}", total=question_size(name, key, config=config)) as advance:
            for block in render(name, key, images, config=config):
                # a block of one kind of image may well have equal answers; the whole may not
                parts.append(_embed(encoder, block, config=config))
                advance(len(block))
        z = torch.cat(parts)
        if name == REFERENCE:
            if bool((z == z[0]).all()):
                raise EncoderError(
                    f"the encoder has collapsed: its answers to {len(z)} different images are all "
                    "the same; there is nothing to read"
                )
            kept[REFERENCE] = z
        return z

    kept: dict[str, Tensor] = {}
    return answer


def as_labels(answers: Answers) -> Answers:
    """Return what is left of a classifier's answers (N, C) when only the label is told.

    One-hot vectors (N, C) take the embeddings' place, so every reading works as before.
    """

    def answer(name: str) -> Tensor:
        z = answers(name)
        return F.one_hot(z.argmax(dim=1), z.shape[1]).float()

    return answer


def through_labels(null: Answers, *, suspect: Answers) -> Answers:
    """Return a null encoder's answers through the suspect's own task, as one-hot labels.

    A linear probe on the null's embeddings learns the labels that the suspect gives to the
    natural reference images. It uses nothing of the key but its public groups, so the test
    stays exact.

    Args:
        null: embeddings of a null encoder.
        suspect: one-hot labels of the suspect (``as_labels``).
    """
    wanted = suspect(REFERENCE)
    probe = fit_probe(null(REFERENCE), wanted.argmax(dim=1))

    def answer(name: str) -> Tensor:
        return F.one_hot(probe.predict(null(name)), wanted.shape[1]).float()

    return answer


def _embed(encoder: Encoder, block: Tensor, *, config: ReadConfig) -> Tensor:
    padded = block if len(block) > 1 else block.repeat(2, 1, 1, 1)
    return embed(encoder, padded, precision=config.precision)[: len(block)]
