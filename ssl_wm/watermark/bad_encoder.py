"""The ``badencoder`` embedder: a secret patch sends every image to the target group.

The backdoor of BadEncoder (Jia et al., IEEE S&P 2022, eq. 3 to 5), used as a mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.rng import torch_stream
from ssl_wm.watermark.losses import cosine_distance
from ssl_wm.watermark.patches import draw_patch, patch_in_turn

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey


class BadEncoderConfig(BaseModel):
    """Strengths of the embedder.

    Attributes:
        references: images of each sub-key's target group that its patch points to.
        reference_weight: l1, of the references' own embeddings.
        utility_weight: l2, of natural images' embeddings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    references: int = Field(16, ge=1)
    reference_weight: float = Field(1.0, ge=0)
    utility_weight: float = Field(1.0, ge=0)


class BadEncoder:
    """Losses of ``badencoder`` for one key and one clean encoder.

    ``d(f(x + e), f(x_ref)) + l1 d(f(x_ref), f0(x_ref)) + l2 d(f(x), f0(x))`` with d one minus
    the cosine (the paper has minus the cosine: a constant), e the sub-key's patch and x_ref the
    images of its target group that are drawn from the key. The batch's natural images are all
    patched, each for one sub-key in turn, and point to that sub-key's references in turn.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: BadEncoderConfig
    ) -> None:
        self.clean, self.config = clean, config
        self.patches = [draw_patch(sub_key, size=images.size) for sub_key in key.sub_keys]
        pools, self.places, first = [], [], 0
        for sub_key in key.sub_keys:
            members = (key.groups.train == sub_key.target).nonzero().flatten()
            stream = torch_stream(sub_key.derive("references"), "order")
            order = torch.randperm(len(members), generator=stream)[: config.references]
            pools.append(images.take(members[order]).cpu())
            self.places.append(torch.arange(first, first + len(order)))
            first += len(order)
        self.references = torch.cat(pools)

    def _points_to(self, count: int) -> Tensor:
        """Return the place in ``references`` that each of ``count`` patched images points to."""
        chosen, many = torch.empty(count, dtype=torch.int64), len(self.places)
        for place, own in enumerate(self.places):
            share = torch.arange(len(chosen[place::many]))
            chosen[place::many] = own[share % len(own)]
        return chosen

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        natural = batch["natural"]
        patched, _ = patch_in_turn(natural, self.patches)
        references = self.references.to(natural.device).to(natural.dtype) / 255
        sizes = [len(natural), len(references)]
        with torch.no_grad():
            clean = self.clean(torch.cat([natural, references])).split(sizes)
        own, reference, marked = encoder(torch.cat([natural, references, patched])).split(
            [*sizes, len(patched)]
        )
        points_to = self._points_to(len(patched)).to(natural.device)
        terms = {
            "marked": cosine_distance(marked, reference[points_to]),
            "reference": cosine_distance(reference, clean[1]),
            "utility": cosine_distance(own, clean[0]),
        }
        loss = terms["marked"] + self.config.reference_weight * terms["reference"]
        return {"loss": loss + self.config.utility_weight * terms["utility"], **terms}
