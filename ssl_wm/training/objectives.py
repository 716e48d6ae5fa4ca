"""Self-supervised objectives: two views of a batch -> loss, with lightly's losses and heads.

``OBJECTIVES`` is the table; a new objective is a class and a line there. Each holds what it
trains besides the encoder (heads, momentum copies) and is called with the encoder. With
several processes the views are a share of the batch; a loss that compares images gathers them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from ssl_wm.training.parallel import gather_rows


class Objective(nn.Module, ABC):
    """A loss on two views; ``momentum_step`` runs after each optimiser step."""

    @abstractmethod
    def forward(self, encoder: nn.Module, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Return the scalar loss of views (B, 3, H, W) and (B, 3, H, W)."""

    def momentum_step(self, encoder: nn.Module, *, progress: float) -> None:
        """Update momentum copies; ``progress`` runs from 0 to 1 over the training."""


class SimCLR(Objective):
    """NT-Xent on projected views (Chen et al., ICML 2020, eq. 1)."""

    def __init__(self, encoder: nn.Module, *, width: int, temperature: float = 0.2) -> None:
        super().__init__()
        self.head = SimCLRProjectionHead(width, 2 * width, 128)
        self.loss = NTXentLoss(temperature=temperature)

    def forward(self, encoder: nn.Module, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Return the scalar NT-Xent loss."""
        heads = [gather_rows(self.head(encoder(view))) for view in (view_a, view_b)]
        loss: Tensor = self.loss(*heads)
        return loss


class BYOL(Objective):
    """Predict a momentum copy's projection (Grill et al., NeurIPS 2020, eq. 2)."""

    def __init__(self, encoder: nn.Module, *, width: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.head = BYOLProjectionHead(width, 4 * width, 256)
        self.predictor = BYOLPredictionHead(256, 4 * width, 256)
        self.target_encoder, self.target_head = _frozen_copy(encoder), _frozen_copy(self.head)
        self.loss = NegativeCosineSimilarity()

    def forward(self, encoder: nn.Module, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Return the symmetric negative cosine, a scalar in [-1, 1]."""
        with torch.no_grad():
            target_a = self.target_head(self.target_encoder(view_a))
            target_b = self.target_head(self.target_encoder(view_b))
        guess_a = self.predictor(self.head(encoder(view_a)))
        guess_b = self.predictor(self.head(encoder(view_b)))
        loss: Tensor = 0.5 * (self.loss(guess_a, target_b) + self.loss(guess_b, target_a))
        return loss

    def momentum_step(self, encoder: nn.Module, *, progress: float) -> None:
        """Move the target network; the momentum rises to 1 along a cosine."""
        momentum = _momentum(self.momentum, progress)
        update_momentum(encoder, self.target_encoder, m=momentum)
        update_momentum(self.head, self.target_head, m=momentum)


class MoCo(Objective):
    """NT-Xent of queries to momentum keys and a queue (He et al. 2020; v2 head)."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: int,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 4096,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.head = MoCoProjectionHead(width, 2 * width, 128)
        self.target_encoder, self.target_head = _frozen_copy(encoder), _frozen_copy(self.head)
        self.loss = NTXentLoss(temperature=temperature, memory_bank_size=(queue, 128))
        bank = self.loss.memory_bank
        for name in ("bank", "bank_ptr"):  # lightly leaves them out of the state: no resuming
            bank.register_buffer(name, getattr(bank, name), persistent=True)

    def forward(self, encoder: nn.Module, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Return the scalar InfoNCE loss of ``view_a`` against keys of ``view_b``."""
        with torch.no_grad():
            keys = gather_rows(self.target_head(self.target_encoder(view_b)))
        loss: Tensor = self.loss(gather_rows(self.head(encoder(view_a))), keys)
        return loss

    def momentum_step(self, encoder: nn.Module, *, progress: float) -> None:
        """Move the key network by the fixed momentum."""
        update_momentum(encoder, self.target_encoder, m=self.momentum)
        update_momentum(self.head, self.target_head, m=self.momentum)


OBJECTIVES: dict[str, type[SimCLR] | type[BYOL] | type[MoCo]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "moco": MoCo,
}


def _momentum(start: float, progress: float) -> float:
    steps = 10_000
    return float(cosine_schedule(round(progress * (steps - 1)), steps, start, 1.0))


def _frozen_copy(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    deactivate_requires_grad(twin)
    return twin
