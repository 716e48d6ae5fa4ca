"""WRK: samples near the class boundaries get wrong classes, and a new head turns from the old."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import eval_mode
from ssl_wm.removal.given import Given
from ssl_wm.removal.tasks import LabelTask
from ssl_wm.rng import torch_stream
from ssl_wm.training.task import Batch

SHARE = 0.05
"""Part of the thief's images that boundary samples are made of."""
STEP = 8 / 255
"""Size of the one step of sign gradient, pixels in [0, 1]."""
TURN = 1.0
"""Weight of the cosine between the new head and the old."""


class TurnedHead(nn.Module):
    """A random linear map (D -> classes) that keeps the length of ``old`` and can turn from it.

    Args:
        old: the head as it was; it is not trained.
    """

    origin: Tensor

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.linear = nn.Linear(old.in_features, old.out_features)
        self.register_buffer("origin", old.weight.detach().clone(), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the scores (B, classes) of ``embeddings`` (B, D)."""
        weight = F.normalize(self.linear.weight.flatten(), dim=0).view_as(self.origin)
        return F.linear(embeddings, weight * self.origin.norm(), self.linear.bias)

    def likeness(self) -> Tensor:
        """Return the cosine between the weights and those of the old head."""
        return F.cosine_similarity(self.linear.weight.flatten(), self.origin.flatten(), dim=0)


class BoundaryTask(LabelTask):
    """``CE(views) + CE(boundary samples, wrong classes) + TURN cos(W, W_old)``.

    The head W is new and of the old one's length, so the encoder's features must shift where it
    turns away. Boundary samples are made once, of a random ``SHARE`` of the images.

    Args:
        encoder: what is trained.
        head: the new head.
        old: a linear probe of the encoder as it is, from which the samples are made.
        given: as in ``RemovalTask``.
    """

    head: TurnedHead
    samples: Tensor
    wrong: Tensor

    def __init__(self, encoder: Encoder, *, head: TurnedHead, old: nn.Linear, given: Given) -> None:
        super().__init__(encoder, head=head, given=given)
        count = max(2, round(SHARE * len(self.images)))
        stream = torch_stream(given.seed, "boundary")
        places = torch.randperm(len(self.images), generator=stream)[:count]
        step = torch.randint(1, self.count, (count,), generator=stream)
        samples = boundary_samples(
            encoder, old, self.images.take(places), labels=self.classes[places]
        )
        self.register_buffer("samples", samples, persistent=False)
        wrong = (self.classes[places] + step) % self.count
        self.register_buffer("wrong", wrong, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, its terms and the share of views that are read rightly."""
        terms = super().forward(batch)
        device = self.samples.device
        stream = self.stream("boundary", device=device)
        size = min(len(self.samples), len(batch["places"]))
        chosen = torch.randperm(len(self.samples), generator=stream, device=device)[:size]
        scores = self.head(self.encoder(self.samples[chosen]))
        terms["boundary"] = F.cross_entropy(scores, self.wrong[chosen])
        terms["likeness"] = self.head.likeness()
        loss = terms["labels"] + terms["boundary"] + TURN * terms["likeness"]
        return {**terms, "loss": loss}


def boundary_samples(
    encoder: Encoder, head: nn.Module, images: Tensor, *, labels: Tensor, batch_size: int = 256
) -> Tensor:
    """Return ``images`` moved one step of sign gradient up the loss of their classes.

    ``clip(x + STEP sign(d CE(head(f(x)), y) / d x))``: the fast gradient sign method
    (Goodfellow et al., ICLR 2015).

    Args:
        encoder: f, in eval mode for the while.
        head: from embeddings (B, D) to scores.
        images: (N, 3, H, W) uint8.
        labels: y (N,).
        batch_size: images a pass.

    Returns:
        (N, 3, H, W) floats in [0, 1], on the encoder's device.
    """
    device, parts = encoder.mean.device, []
    with eval_mode(encoder):
        for pixels, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            x = (pixels.to(device).float() / 255).requires_grad_()
            loss = F.cross_entropy(head(encoder(x)), y.to(device), reduction="sum")
            (slope,) = torch.autograd.grad(loss, x)
            parts.append((x + STEP * slope.sign()).clamp(0, 1).detach())
    return torch.cat(parts)
