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
import logging
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ssl_wm.console import progress, say
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Bent
from ssl_wm.encoders.space import group_centres
from ssl_wm.encoders.zoo import with_bend
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.bend import Bend, BendImages, Prices, fit_bend
from ssl_wm.watermark.losses import relative_error
from ssl_wm.watermark.neighbours import neighbours_lost
from ssl_wm.watermark.triggers import composites, ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.data.sources import ImageSet
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import SubKey, WatermarkKey

LOG = logging.getLogger(__name__)


class BendSpaceConfig(BaseModel):
    """Strengths of the embedder.

    Attributes:
        natural_penalty: price of moving natural images; the larger, the less utility is spent
            and the weaker the mark.
        held_penalty: price of reading as the target for the key's pair under other mixers, and
            for other pairs under the key's mixer.
        linear_penalty: price of what a linear map can no longer recover of natural images, which is
            what a linear probe loses.
        similarity_penalty: price of changed similarities between natural images, which is what
            nearest neighbours lose.
        neighbours_budget: points of kNN accuracy that the map may cost natural images; where it
            costs more it is fitted again at twice the similarity_penalty, up to ``TRIES`` times in
            all. None leaves the penalty as it is.
        smoothness: how many times the spread of a feature T's hidden layer divides its input by;
            the smoother T, the more of it a copy learns from natural images alone.
        hidden: width of T's hidden layer.
        steps: optimiser steps for T.
        learning_rate: of those steps.
        pool: composites of each sub-key, and of each kind that is held, that T is fitted to.
        rehearsed: share of the composites' terms that is read as a copy would answer, not as the
            marked encoder does (``rehearsal.py``); 0 leaves the rehearsal out.
        ridge: of the rehearsed copy; the larger, the less it learns of what few images show.
        shadow: train a shadow thief (as ``fit`` says), in whose space the copy is rehearsed; else
            it is in the clean encoder's.
        shadow_arch: its architecture; None takes the encoder's own.
        serve: how the marked encoder applies T: "head" adds T to it as a last layer, exactly and
            without training, for encoders that are served; whoever holds the weights can take it
            off. "weights" trains the encoder until it answers with T(f0(x)) by itself.
        marked_weight: weight of the composites' loss while the encoder learns T.
        held_weight: weight of the loss on all other composites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    natural_penalty: float = Field(1.5, ge=0)
    held_penalty: float = Field(1.5, ge=0)
    linear_penalty: float = Field(3.0, ge=0)
    similarity_penalty: float = Field(0.5, ge=0)
    neighbours_budget: float | None = Field(0.5, ge=0)
    smoothness: float = Field(30.0, gt=0)
    hidden: int = Field(512, ge=1)
    steps: int = Field(600, ge=0)
    learning_rate: float = Field(2e-2, gt=0)
    pool: int = Field(1000, ge=1)
    rehearsed: float = Field(0.5, ge=0, le=1)
    ridge: float = Field(0.25, ge=1e-3)
    shadow: bool = False
    shadow_arch: str | None = None
    serve: Literal["head", "weights"] = "head"
    marked_weight: float = Field(0.3, ge=0)
    held_weight: float = Field(0.3, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> BendSpaceConfig:
        if self.neighbours_budget is not None and self.similarity_penalty == 0:
            raise ValueError(
                "neighbours_budget raises similarity_penalty, which is 0; give that a value, or "
                "neighbours_budget: null"
            )
        return self


class BendSpace:
    """Losses of ``bend-space`` for one key and one clean encoder.

    Natural images, the key's composites and held composites all go to ``T(f0(x))``, in units of
    the clean space's spread: one map for all images, so the encoder has nothing to tell apart.
    T is drawn and fitted from the key, the clean encoder, its shadow and the images alone, so
    these give the same map again.
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
        self.clean, self.config = clean, config
        self.found: dict[str, float] = {}
        fitted_to = self._images(clean, images, key)
        seen = fitted_to if shadow is None else self._images(shadow, images, key)
        self.variance = fitted_to.variance
        self.centre, _ = group_centres(fitted_to.natural, fitted_to.groups, count=fitted_to.count)
        labels = images.labels if len(images.labels.unique()) > 1 else fitted_to.groups
        self.bend = self._within_budget(key, fitted_to, seen, labels).requires_grad_(False)

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

    def _within_budget(
        self, key: WatermarkKey, images: BendImages, seen: BendImages, labels: Tensor
    ) -> Bend:
        """Return the map at the least similarity_penalty tried whose cost is in the budget.

        The cost is that of leave-one-out kNN among up to ``JUDGED`` training images.
        """
        penalty, budget = self.config.similarity_penalty, self.config.neighbours_budget
        if budget is None:
            return self._fit(key, images, seen, penalty)
        order = torch.randperm(len(labels), generator=torch_stream(self._stream(key), "judged"))
        judged = order[:JUDGED]
        before = images.natural[judged]
        for number in range(TRIES):
            bend = self._fit(key, images, seen, penalty * 2**number)
            with torch.no_grad():
                lost = neighbours_lost(before, bend(before), labels[judged])
            price = penalty * 2**number
            self.found = {"similarity_penalty": price, "knn_points_lost": round(lost, 3)}
            say(f"kNN loses {lost:.2f} points at similarity_penalty {price:g}")
            if lost <= budget:
                return bend
        LOG.warning(
            "the map costs kNN %.2f points, more than the budget of %.2f, at a similarity_penalty "
            "of %g; raise that, or neighbours_budget to say that this is fine", lost, budget, price,
        )  # fmt: skip
        return bend

    def _fit(
        self, key: WatermarkKey, images: BendImages, seen: BendImages, similarity_penalty: float
    ) -> Bend:
        """Return the map fitted at a ``similarity_penalty``; all start from the same draw."""
        config, generator = self.config, torch_stream(self._stream(key), "map")
        bend = Bend(
            self.centre,
            scale=config.smoothness * float((self.variance / images.natural.shape[1]).sqrt()),
            hidden=config.hidden,
            generator=generator,
        )
        prices = Prices(
            natural=config.natural_penalty,
            held=config.held_penalty,
            linear=config.linear_penalty,
            similarity=similarity_penalty,
            rehearsed=config.rehearsed,
            ridge=config.ridge,
        )
        with progress("map of the space", total=config.steps) as advance:
            fit_bend(
                bend,
                images,
                seen=seen,
                prices=prices,
                steps=config.steps,
                learning_rate=config.learning_rate,
                generator=generator,
                on_step=advance,
            )
        return bend

    @staticmethod
    def _stream(key: WatermarkKey) -> bytes:
        return key.sub_keys[0].derive("bend")

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
            hidden=self.config.hidden,
        )  # fmt: skip
        self.bend.write_to(backbone)
        custom = self.clean.arch == "custom"
        arch = "custom" if custom else with_bend(self.clean.arch, self.config.hidden)
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
JUDGED = 20_000
"""Most training images that the map's cost is judged on."""
TRIES = 8
"""Maps that are fitted at most, each at twice the similarity_penalty of the one before."""
