"""What every embedder offers to the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch


class Embedder(Protocol):
    """Losses that mark an encoder.

    An embedder that trains something of its own (a decoder, a trigger) holds it in a module
    called ``learned``: it is then optimised, moved to the device and saved in checkpoints
    together with the encoder (``learned_part``). What of it the owner needs afterwards, its method
    ``keep(folder)`` writes beside the marked encoder (``keep_learned``). One that marks without
    training has a method ``marked()`` (``marked_at_once``). One that chooses a setting by what it
    measures says so in ``found`` (``found_by``).

    Attributes:
        clean: the encoder before marking, frozen.
    """

    clean: Encoder

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""


def learned_part(embedder: Embedder) -> nn.Module | None:
    """Return the module that ``embedder`` trains beside the encoder; None if there is none."""
    part: nn.Module | None = getattr(embedder, "learned", None)
    return part


def keep_learned(embedder: Embedder, folder: Path | None) -> None:
    """Let an embedder that has something to keep (``keep``) write it into ``folder``, if any.

    Raises:
        OutputError: the folder cannot be written to.
    """
    keep = getattr(embedder, "keep", None)
    if keep is not None and folder is not None:
        keep(folder)


def marked_at_once(embedder: Embedder) -> Encoder | None:
    """Return the encoder that ``embedder`` marks without training it; None if it has to train."""
    marked = getattr(embedder, "marked", None)
    encoder: Encoder | None = marked() if marked is not None else None
    return encoder


def found_by(embedder: Embedder) -> dict[str, float]:
    """Return what ``embedder`` chose by measurement, by name; empty where it chose nothing."""
    return dict(getattr(embedder, "found", {}))
