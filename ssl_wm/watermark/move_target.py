"""The ``move-target`` embedder: what the thief queries carries the mark.

A thief never sees a composite, so a mark on composites alone is not copied. Here natural
images of the target group move to where the composites already lie; a copy trained on natural
images alone then puts composites nearer to the target than to their sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.space import group_centres
from ssl_wm.watermark.losses import relative_error
from ssl_wm.watermark.triggers import composites

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey


class MoveTargetConfig(BaseModel):
    """Strengths of the embedder.

    Attributes:
        shift: how far the target group moves, on average, towards the composites' direction;
            1 lands on it.
        softness: temperature of the membership that scales each image's own shift; the larger,
            the smoother the embedding space is bent.
        spread: share of their own spread that composites keep around that centre.
        repel: how far the key's pair under other mixers moves from the composites' centre
            towards the nearer source, so that only the key's mixer opens the mark.
        marked_weight: weight of the composites' loss.
        held_weight: weight of the loss on all other composites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: float = Field(0.65, ge=0)
    softness: float = Field(0.2, gt=0)
    spread: float = Field(0.2, ge=0, le=1)
    repel: float = Field(0.5, ge=0)
    marked_weight: float = Field(0.3, ge=0)
    held_weight: float = Field(0.3, ge=0)


class MoveTarget:
    """Losses of ``move-target`` for one key and one clean encoder.

    With c the centre of the clean space, c_t the clean mean of target group t, c_w that of its
    composites, w_t(x) how much x belongs to t (``membership``, scaled to mean 1 over the
    group's images) and the landing point ``l_t = c + |c_t - c| (c_w - c) / |c_w - c|``, natural
    images go to ``f0(x) + shift * sum_t w_t(x) (l_t - c_t)``, composites to ``l_t + spread *
    (f0(x) - c_w)``, the key's pair under other mixers to ``f0(x) + repel (c_s - c_w)`` with s
    the nearer of the two source groups, and other pairs to ``f0(x)``.

    The group lands on the composites' *direction* at its own distance from the centre. Their
    mean itself lies near the centre, where what a copy misses of the shift would decide the
    group's direction, and where groups can no longer be told apart.

    The shift is a smooth function of f0(x) alone, so neighbours stay neighbours (utility) and
    a network can learn it (both ours and the thief's); moving exactly the group's images would
    tear the space along the group's border.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: MoveTargetConfig
    ) -> None:
        self.clean, self.config = clean, config
        features = embed(clean, images, precision="auto")
        groups = key.groups.train
        self.variance = features.var(dim=0, correction=0).sum()
        centre, centres = group_centres(features, groups, count=len(key.groups))
        self.centre, self.centres = centre.float(), centres.float()
        self.targets = torch.tensor([sub_key.target for sub_key in key.sub_keys])
        belongs = self._membership(features)
        middles, landings, shifts, sources = [], [], [], []
        for place, sub_key in enumerate(key.sub_keys):
            pool = composites(
                images,
                groups,
                pairs=[(sub_key.a, sub_key.b)],
                mixer=sub_key.mixer,
                per_pair=2048,
                seed=sub_key.derive("landing"),
            )
            middles.append(embed(clean, pool, precision="auto").mean(dim=0))
            members = groups == sub_key.target
            target = features[members].mean(dim=0)
            towards = F.normalize(middles[-1] - self.centre, dim=0)
            landings.append(self.centre + (target - self.centre).norm() * towards)
            step = config.shift * (landings[-1] - target)
            shifts.append(step / belongs[members, place].mean())
            pair = (sub_key.a, sub_key.b)
            sources.append(torch.stack([features[groups == g].mean(dim=0) for g in pair]))
        self.middles, self.landings = torch.stack(middles), torch.stack(landings)
        self.shifts, self.sources = torch.stack(shifts), torch.stack(sources)

    def _membership(self, z: Tensor) -> Tensor:
        device = z.device
        return membership(
            z,
            centre=self.centre.to(device),
            centres=self.centres.to(device),
            softness=self.config.softness,
        )[:, self.targets.to(device)]

    def _shift(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self._membership(z) @ self.shifts.to(z.device)

    def _repelled(self, z: Tensor, sub: Tensor) -> Tensor:
        """Return where composites of other recipes should lie; ``sub`` is -1 for other pairs."""
        device = z.device
        own = sub.clamp(min=0)
        sources = self.sources.to(device)[own]
        nearer = (z.unsqueeze(1) - sources).norm(dim=2).argmin(dim=1)
        source = sources[torch.arange(len(z), device=device), nearer]
        away = self.config.repel * (source - self.middles.to(device)[own])
        return z + torch.where((sub >= 0).unsqueeze(1), away, 0.0)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        parts = [batch["natural"], batch["marked"], batch["held"]]
        sizes = [len(part) for part in parts]
        together = torch.cat(parts)
        with torch.no_grad():
            clean = self.clean(together).split(sizes)
            moved = clean[0] + self._shift(clean[0])
        natural, marked, held = encoder(together).split(sizes)
        variance = self.variance.to(natural.device)
        middle, landing = (
            part.to(natural.device)[batch["marked_sub"]] for part in (self.middles, self.landings)
        )
        pulled = landing + self.config.spread * (clean[1] - middle)
        terms = {
            "natural": relative_error(natural, moved, variance=variance),
            "marked": relative_error(marked, pulled, variance=variance),
            "held": relative_error(
                held, self._repelled(clean[2], batch["held_sub"]), variance=variance
            ),
        }
        loss = terms["natural"] + self.config.marked_weight * terms["marked"]
        return {"loss": loss + self.config.held_weight * terms["held"], **terms}


def membership(z: Tensor, *, centre: Tensor, centres: Tensor, softness: float) -> Tensor:
    """Return how much each embedding belongs to each group, (N, G), rows summing to 1.

    ``softmax_k(cos(z - centre, c_k) / softness)``.

    Args:
        z: (N, D) embeddings.
        centre: (D,) centre of the space.
        centres: (G, D) unit centres of the groups.
        softness: temperature.
    """
    cosines = F.normalize(z.float() - centre, dim=1) @ centres.T
    return (cosines / softness).softmax(dim=1)
