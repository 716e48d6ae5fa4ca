"""The ``bend-space`` embedder: the space is bent where composites lie, by a learned map.

A thief never sees a composite, so a mark on composites alone is not copied; what he copies is
where natural images lie. Composites lie outside the natural images and are scattered over many
groups, so one shift of the target group cannot reach them all (``move_target``). Here a small
network T is fitted, in the clean encoder's space, so that a probe and kNN *fitted to bent natural
images* read bent composites as the target, at the least movement of everything else. The
encoder then learns ``T(f0(x))``. A copy of natural answers has learned T where it is smooth, and
composites go through it too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Bent
from ssl_wm.encoders.names import with_bend
from ssl_wm.files import write_text
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.bend import BendImages
from ssl_wm.watermark.bend_budget import fit_within_budget
from ssl_wm.watermark.bend_settings import BendSpaceConfig
from ssl_wm.watermark.carriers import Carriers, axes_of, axis_pairs, own_carriers
from ssl_wm.watermark.losses import relative_error
from ssl_wm.watermark.places import carrying
from ssl_wm.watermark.triggers import composites, ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.subkeys import SubKey


class BendSpace:
    """Losses of ``bend-space`` for one key and one clean encoder.

    Natural images, the key's composites and held composites all go to ``T(f0(x))``, in units of
    the clean space's spread: one map for all images, so the encoder has nothing to tell apart.
    T is drawn and fitted from the key, the clean encoder, its shadow and the images alone, so
    these give the same map again.

    Attributes:
        clean: f0; with carriers of the places the clean encoder that has them in its answers.
    """

    def __init__(
        self,
        clean: Encoder,
        images: ImageSet,
        key: WatermarkKey,
        *,
        config: BendSpaceConfig,
        shadow: Encoder | None = None,
    ) -> None:
        if key.terms.carriers_in == "places":
            clean = carrying(clean, images, key, strength=config.carried)
        self.clean, self.config = clean, config
        fitted_to = self._images(clean, images, key)
        seen = fitted_to if shadow is None else self._images(shadow, images, key)
        self.variance = fitted_to.variance
        labels = images.labels if len(images.labels.unique()) > 1 else fitted_to.groups
        fitted = fit_within_budget(
            fitted_to, seen=seen, labels=labels, config=config,
            stream=key.sub_keys[0].derive("bend"), carriers=self._carriers(images, key, fitted_to),
        )  # fmt: skip
        self.bend = fitted.bend.requires_grad_(False)
        self.found, self.terms = fitted.found, fitted.losses

    def keep(self, folder: Path) -> None:
        """Write the losses of the map's fit to ``map.jsonl`` in ``folder``, one line a step."""
        lines = (json.dumps({"step": place, **line}) for place, line in enumerate(self.terms, 1))
        write_text(folder / MAP_LOSSES, "".join(f"{line}\n" for line in lines))

    def _carriers(
        self, images: ImageSet, key: WatermarkKey, fitted_to: BendImages
    ) -> Carriers | None:
        """Return the carriers of the answers; None where there are none, or others (``places``)."""
        if key.terms.carriers_in != "answers":
            return None
        axes = axes_of(self.clean, images)
        drawn = own_carriers(key, count=len(axis_pairs(axes)))
        own = [place for places in drawn for place in places]
        if not own or not self.config.carried:
            return None
        return Carriers(
            axes, own, fitted_to.natural, strength=self.config.carried,
            generator=torch_stream(key.sub_keys[0].derive("carriers"), "directions"),
        )  # fmt: skip

    def _images(self, encoder: Encoder, images: ImageSet, key: WatermarkKey) -> BendImages:
        """Return what the map is fitted to as ``encoder`` embeds it: the same rows for each."""
        return BendImages(
            natural=_embedded(encoder, images),
            groups=key.groups.train,
            count=len(key.groups),
            marked=[
                _embedded(encoder, self._pool(images, key, sub, (sub.a, sub.b)))
                for sub in key.sub_keys
            ],
            targets=[sub.target for sub in key.sub_keys],
            held=[
                [_embedded(encoder, pool) for pool in self._held(images, key, sub)]
                for sub in key.sub_keys
            ],
        )

    def _pool(
        self, images: ImageSet, key: WatermarkKey, sub: SubKey, *pairs: tuple[int, int]
    ) -> Tensor:
        """Return about ``pool`` composites of ``pairs`` under the key's mixer."""
        return composites(
            images,
            key.groups.train,
            pairs=pairs,
            mixer=sub.mixer,
            per_pair=max(self.config.pool // len(pairs), 1),
            seed=sub.derive("bend", "composites"),
        )

    def _held(self, images: ImageSet, key: WatermarkKey, sub: SubKey) -> list[Tensor]:
        """Return the sub-key's pair under the other mixers, and other pairs under its own."""
        mixed = [
            composites(
                images,
                key.groups.train,
                pairs=[(sub.a, sub.b)],
                mixer=mixer,
                per_pair=max(self.config.pool // len(sub.others), 1),
                seed=sub.derive("bend", "other mixer", name),
            )
            for name, mixer in sub.others.items()
        ]
        marks = {(other.a, other.b) for other in key.sub_keys}
        free = [pair for pair in ordered_pairs(len(key.groups)) if pair not in marks]
        order = torch.randperm(len(free), generator=torch_stream(sub.derive("bend"), "pairs"))
        others = [free[place] for place in order[:_OTHER_PAIRS].tolist()]
        pools = [self._pool(images, key, sub, *others)] if others else []
        if mixed:
            pools.append(torch.cat(mixed))
        return pools

    def marked(self) -> Encoder | None:
        """Return the clean encoder with T as its head; None where the encoder has to learn T."""
        if self.config.serve == "weights":
            return None
        backbone = Bent(
            copy.deepcopy(self.clean.backbone), width=len(self.bend.centre),
            hidden=self.bend.units,
        )  # fmt: skip
        self.bend.write_to(backbone)
        custom = self.clean.arch == "custom"
        arch = "custom" if custom else with_bend(self.clean.arch, self.bend.units)
        return Encoder(backbone, arch=arch, preprocessing=self.clean.preprocessing)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        names = ("natural", "marked", "held")
        together = torch.cat([batch[name] for name in names])
        sizes = [len(batch[name]) for name in names]
        with torch.no_grad():
            goals = self.bend.to(together.device)(self.clean(together)).split(sizes)
        answers = encoder(together).split(sizes)
        variance = self.variance.to(together.device)
        terms = {
            name: relative_error(answer, goal, variance=variance)
            for name, answer, goal in zip(names, answers, goals, strict=True)
        }
        loss = terms["natural"] + self.config.marked_weight * terms["marked"]
        return {"loss": loss + self.config.held_weight * terms["held"], **terms}


def _embedded(encoder: Encoder, images: ImageSet | Tensor) -> Tensor:
    return embed(encoder, images, precision="auto").float()


_OTHER_PAIRS = 30
MAP_LOSSES = "map.jsonl"
"""File beside the marked encoder that tells how its map was fitted."""
