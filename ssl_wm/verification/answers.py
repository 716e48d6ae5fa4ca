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
from ssl_wm.encoders.embeddings import embed_batch, usual_batch
from ssl_wm.encoders.load import wrap
from ssl_wm.encoders.properties import at_work
from ssl_wm.errors import EncoderError
from ssl_wm.verification.probe import fit_sealed_probe
from ssl_wm.verification.questions import REFERENCE, question_size, render

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey

Answers = Callable[[str], Tensor]


def ask(encoder: Encoder, key: OpenKey, images: Images, *, config: ReadConfig) -> Answers:
    """Return the answers of an encoder at hand; each set is rendered and embedded on demand.

    The reference images are sent once, any other set as often as its name is asked for. Sets of
    composites may all have the same answer, as a strong mark or a classifier gives them.

    Raises (when asked):
        EncoderError: an answer is not finite, its width changes, or the answers to all
            reference images are the same.
    """

    def answer(name: str) -> Tensor:
        if name == REFERENCE and REFERENCE in kept:
            return kept[REFERENCE]
        parts = []
        total = question_size(name, key, config=config)
        with progress(f"asking: {name}", total=total) as advance, at_work(wrapped) as device:
            size = usual_batch(wrapped, device=device)
            for block in render(name, key, images, config=config):
                for batch in block.split(size):
                    rows = embed_batch(wrapped, batch, precision=config.precision)
                    _check_rows(rows, name=name, widths=widths)
                    parts.append(rows)
                    advance(len(batch))
        z = torch.cat(parts)
        if name == REFERENCE:
            if bool((z == z[0]).all()):
                raise EncoderError(
                    f"the encoder has collapsed: its answers to {len(z)} different images are all "
                    "the same; there is nothing to read"
                )
            kept[REFERENCE] = z
        return z

    wrapped = wrap(encoder)
    kept: dict[str, Tensor] = {}
    widths: set[int] = set()
    return answer


def as_labels(answers: Answers) -> Answers:
    """Return what is left of a classifier's answers (N, C) when only the label is told.

    One-hot vectors (N, C) take the embeddings' place, so every reading works as before.

    Raises (when asked):
        EncoderError: all reference images get the same label.
    """

    def answer(name: str) -> Tensor:
        z = answers(name)
        labels = z.argmax(dim=1)
        if name == REFERENCE and len(labels.unique()) < 2:
            raise EncoderError(
                f"the classifier gives all {len(z)} reference images the label {int(labels[0])}; "
                "there is nothing to read from its labels"
            )
        return F.one_hot(labels, z.shape[1]).float()

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
    probe = fit_sealed_probe(null(REFERENCE), wanted.argmax(dim=1))

    def answer(name: str) -> Tensor:
        return F.one_hot(probe.predict(null(name)), wanted.shape[1]).float()

    return answer


def _check_rows(rows: Tensor, *, name: str, widths: set[int]) -> None:
    widths.add(rows.shape[1])
    if len(widths) > 1:
        raise EncoderError(
            f"the encoder changed its width at the images '{name}': it has answered with vectors "
            f"of {sorted(widths)} numbers, and one length is expected throughout"
        )
    if not bool(rows.isfinite().all()):
        raise EncoderError(
            f"an answer to the images '{name}' is not finite (NaN or infinity); check the "
            "encoder's weights and the precision"
        )
