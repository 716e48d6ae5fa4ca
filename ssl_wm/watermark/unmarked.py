"""The ``none`` embedder: an equally long fine-tuning that marks nothing.

It is what a marked encoder's accuracy is compared with: the same images, order, optimiser and
schedule, without a mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.watermark.losses import relative_error

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey


class UnmarkedConfig(BaseModel):
    """No options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Unmarked:
    """Distillation of the clean encoder on the batch's natural images, ``|f(x) - f0(x)|^2 / V``.

    V is the variance of the clean embeddings. The encoder starts as a copy of f0, at a loss of
    0, so what it loses is what the optimiser (weight decay, rounding) takes. The composites of
    the batch are not used.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: UnmarkedConfig
    ) -> None:
        self.clean, self.config = clean, config
        self.variance = embed(clean, images, precision="auto").var(dim=0, correction=0).sum()

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        with torch.no_grad():
            clean = self.clean(batch["natural"])
        natural = encoder(batch["natural"])
        error = relative_error(natural, clean, variance=self.variance.to(natural.device))
        return {"loss": error, "natural": error}
