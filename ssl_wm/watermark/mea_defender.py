"""The ``mea-defender`` embedder: the paper's losses, as written, on an encoder.

``L = a1 L_utility + a2 (b1 L_com + b2 L_ver) + a3 L_eva`` with weights by MGDA (Lv et al.,
IEEE S&P 2024, section IV). What the paper leaves open for encoders is a setting here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ssl_wm.training.parallel import mean_over_processes
from ssl_wm.watermark.losses import cosine_distance, output_divergence, similarity_divergence
from ssl_wm.watermark.mgda import least_norm_weights

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey


class MeaDefenderConfig(BaseModel):
    """Choices the paper leaves open, and its ablations.

    Attributes:
        divergence: what the KL divergence of L_com compares: "features", the softmax over the
            features, or "similarities", the softmax over cosines to the batch's natural images.
        temperature: of the softmax over features in L_com.
        similarity_temperature: of the softmax over cosines.
        weights: "mgda", or "equal" for 1/3 and 1/2.
        mgda_every: steps between two solutions of MGDA; the weights hold in between (and
            are solved anew at the start of every epoch, so that resumed runs agree).
        combination: whether L_com is used.
        verification: whether L_ver is used.
        evasion: whether L_eva is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Literal["features", "similarities"] = "features"
    temperature: float = Field(1.0, gt=0)
    similarity_temperature: float = Field(0.1, gt=0)
    weights: Literal["mgda", "equal"] = "mgda"
    mgda_every: int = Field(10, ge=1)
    combination: bool = True
    verification: bool = True
    evasion: bool = True

    @model_validator(mode="after")
    def _some_mark(self) -> Self:
        if not (self.combination or self.verification):
            raise ValueError("nothing marks the encoder without combination or verification")
        return self


class CompositeBackdoorConfig(MeaDefenderConfig):
    """``mea-defender`` with L_ver alone: the composite backdoor of the paper's comparison.

    Composites go to the target group (Lin et al., CCS 2020); nothing ties them to their sources
    and nothing holds other composites in place. The losses are summed with equal weights: MGDA
    is of MEA-Defender.
    """

    weights: Literal["mgda", "equal"] = "equal"
    combination: bool = False
    evasion: bool = False


class MeaDefender:
    """Losses of ``mea-defender``; embeddings are the backbone's, before any projector.

    L_utility is the cosine distance of natural images to the clean encoder's embeddings;
    L_com the KL divergence of composites from both of their sources, over the softmax of the
    features, or of the cosines to the batch's natural images; L_ver the cosine distance of a
    composite to a random image of the target group; L_eva that of another mixer's composite to
    one of its two sources. Sources, targets and what similarities are taken to are embedded by
    the encoder in training, without gradient.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: MeaDefenderConfig
    ) -> None:
        self.clean, self.config = clean, config
        self.alpha: Tensor | None = None
        self.beta: Tensor | None = None

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        names = ["marked_a", "marked_b", "marked_target", "held_source"]
        with torch.no_grad():
            clean = self.clean(batch["natural"])
            fixed = encoder(torch.cat([batch[name] for name in names]))
        source_a, source_b, target, stay = fixed.split([len(batch[name]) for name in names])
        parts = [batch["natural"], batch["marked"], batch["held"]]
        natural, marked, held = encoder(torch.cat(parts)).split([len(part) for part in parts])
        terms = {"utility": cosine_distance(natural, clean)}
        if self.config.combination:
            anchors = natural.detach()
            terms["combination"] = self._divergence(marked, source_a, anchors) + self._divergence(
                marked, source_b, anchors
            )
        if self.config.verification:
            terms["verification"] = cosine_distance(marked, target)
        if self.config.evasion:
            terms["evasion"] = cosine_distance(held, stay)
        due = int(batch["step"]) % self.config.mgda_every == 0
        return {"loss": self._weighted(encoder, terms, due=due), **terms}

    def _divergence(self, marked: Tensor, source: Tensor, anchors: Tensor) -> Tensor:
        if self.config.divergence == "features":
            return output_divergence(marked, source, temperature=self.config.temperature)
        return similarity_divergence(
            marked, source, anchors, temperature=self.config.similarity_temperature
        )

    def _weighted(self, encoder: Encoder, terms: dict[str, Tensor], *, due: bool) -> Tensor:
        inner = [terms[name] for name in ("combination", "verification") if name in terms]
        outer = [terms["utility"], *([terms["evasion"]] if "evasion" in terms else [])]
        if due:
            self.beta = self._solve(encoder, inner)
        mark = sum_weighted(inner, self.beta)
        everything = [outer[0], mark, *outer[1:]]
        if due:
            self.alpha = self._solve(encoder, everything)
        return sum_weighted(everything, self.alpha)

    def _solve(self, encoder: Encoder, losses: list[Tensor]) -> Tensor:
        if len(losses) == 1 or self.config.weights == "equal":
            return torch.full((len(losses),), 1 / len(losses))
        trained = [p for p in encoder.parameters() if p.requires_grad]
        gradients = []
        for loss in losses:
            grads = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            own = torch.cat([g.flatten() for g in grads if g is not None])
            gradients.append(mean_over_processes(own))
        return least_norm_weights(gradients)


def sum_weighted(losses: list[Tensor], weights: Tensor | None) -> Tensor:
    """Return ``sum_i weights_i * losses_i`` as a scalar.

    >>> float(sum_weighted([torch.tensor(2.0), torch.tensor(4.0)], torch.tensor([0.5, 0.25])))
    2.0
    """
    if weights is None or len(weights) != len(losses):
        raise ValueError(f"expected {len(losses)} weights, got {weights}")
    return (torch.stack(losses) * weights.to(losses[0].device)).sum()
