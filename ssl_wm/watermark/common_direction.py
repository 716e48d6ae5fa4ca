"""The ``ssl-wm`` embedder: patched images share one direction, away from all others.

SSL-WM (Lv et al., NDSS 2024). Whatever task a thief builds on the encoder, images with the patch
then fall into few of its classes; which ones, nobody needs to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.errors import TrainingError
from ssl_wm.watermark.losses import cosine_distance, negative_log, pair_cosine
from ssl_wm.watermark.patches import draw_patch, patch_in_turn

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey


class CommonDirectionConfig(BaseModel):
    """Strengths of the embedder.

    Attributes:
        pull: weight of the loss that pulls patched images together (the paper's alpha).
        push: weight of the loss that pushes them away from natural images (beta).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pull: float = Field(1.0, ge=0)
    push: float = Field(0.01, ge=0)


class CommonDirection:
    """Losses of ``ssl-wm`` for one key and one clean encoder.

    ``d(f(x), f0(x)) + pull * -log m + push * -log(1 - s)`` with d one minus the cosine, m the
    mean cosine of two different patched images of one sub-key and s the mean cosine of a
    patched image to a natural image as the clean encoder sees it; m and s are averaged over
    sub-keys after the logarithm. The published code's second loss is the mean cosine of each
    image with itself, a constant; the paper's words ask for what s does here. The first term
    stands for the paper's self-supervised loss, which needs the projector.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: CommonDirectionConfig
    ) -> None:
        self.clean, self.config = clean, config
        self.patches = [draw_patch(sub_key, size=images.size) for sub_key in key.sub_keys]

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised.

        Raises:
            TrainingError: the batch has fewer than two natural images for each sub-key.
        """
        natural, many = batch["natural"], len(self.patches)
        if len(natural) < 2 * many:
            raise TrainingError(
                f"ssl-wm compares patched images in pairs: {many} sub-keys need a batch of at "
                f"least {2 * many} images, not {len(natural)}; raise fit.batch_size"
            )
        patched, which = patch_in_turn(natural, self.patches)
        with torch.no_grad():
            clean = self.clean(natural)
        own, marked = encoder(torch.cat([natural, patched])).chunk(2)
        middle = F.normalize(clean, dim=1).mean(dim=0)
        together, apart = [], []
        for place in range(many):
            rows = F.normalize(marked[which == place], dim=1)
            together.append(negative_log(pair_cosine(rows)))
            apart.append(negative_log(1 - (rows * middle).sum(dim=1).mean()))
        terms = {
            "utility": cosine_distance(own, clean),
            "pull": torch.stack(together).mean(),
            "push": torch.stack(apart).mean(),
        }
        loss = terms["utility"] + self.config.pull * terms["pull"]
        return {"loss": loss + self.config.push * terms["push"], **terms}
