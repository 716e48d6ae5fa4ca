"""Steal an encoder: query once, then fit a surrogate to the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.data.order import batch_indices, whole_batches
from ssl_wm.data.views import ViewConfig, augment
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, width_of
from ssl_wm.encoders.properties import tensor_bytes
from ssl_wm.encoders.zoo import with_width
from ssl_wm.errors import choose
from ssl_wm.extraction.losses import cont_steal, cosine, mse, normalised_distance
from ssl_wm.extraction.queries import TransferSet, query, save_transfer_set
from ssl_wm.extraction.selection import select_random
from ssl_wm.files import sha256_bytes
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.training.loop import Batch, FitConfig, Task, fit

if TYPE_CHECKING:
    from ssl_wm.data.sources import ImageSet

MILD = ViewConfig(crop=0.5, min_scale=0.6, jitter=0.0, grey=0.0)
COLOUR = ViewConfig(min_scale=1.0)
STRONG = ViewConfig()


@dataclass(frozen=True)
class Attack:
    """One published attack: ``plain * loss(g(x), f(x)) + viewed * loss(g(a(x)), f(x))``.

    Only the surrogate sees the augmented view a(x), so each image is queried once.

    Attributes:
        loss: of the surrogate's embeddings and the answers.
        views: the augmentation a.
        plain: weight of the loss on the image itself.
        viewed: weight of the loss on its view.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    views: ViewConfig = MILD
    plain: float = 0.0
    viewed: float = 1.0


ATTACKS: dict[str, Attack] = {
    "mse": Attack(mse),
    "cosine": Attack(cosine),
    "stolen-encoder": Attack(normalised_distance, views=COLOUR, plain=1.0, viewed=20.0),
    "cont-steal": Attack(cont_steal, views=STRONG),
}


class StealConfig(BaseModel):
    """How an encoder is stolen.

    Attributes:
        attack: a name in ``ATTACKS``.
        arch: the surrogate's architecture; the victim's is unknown to a thief, so it is his
            own choice. Another width is fitted through a linear projection, kept in the
            surrogate.
        budget: images to query; None sends the whole pool.
        held_out: share of the transfer set that is not trained on and measures fidelity.
        seed: of the selection, the weights and the views.
        fit: the training loop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str = "cosine"
    arch: str = "convnet-s"
    budget: int | None = Field(None, ge=1)
    held_out: float = Field(0.02, ge=0, lt=0.5)
    seed: int = 0
    fit: FitConfig = Field(default_factory=lambda: FitConfig(epochs=8, learning_rate=2e-3))


@dataclass(frozen=True)
class Theft:
    """A surrogate with what it was made from and its metrics, one line per epoch."""

    surrogate: Encoder
    transfer: TransferSet
    metrics: list[dict[str, float]]


class StealTask(Task):
    """A surrogate and the transfer set that it is fitted to."""

    def __init__(
        self, surrogate: Encoder, pool: ImageSet, transfer: TransferSet, *, config: StealConfig
    ) -> None:
        super().__init__()
        self.surrogate, self.config = surrogate, config
        self.pool, self.transfer = pool, transfer
        self.attack = ATTACKS[config.attack]
        held = int(len(transfer.indices) * config.held_out)
        self.held, self.used = held, len(transfer.indices) - held
        self._names = (0, 0, 0)

    def steps_per_epoch(self) -> int:
        """Return the whole batches of the part of the transfer set that is trained on."""
        return whole_batches(self.used, batch_size=self.config.fit.batch_size)

    def batch(self, *, epoch: int, step: int, rank: int, world: int) -> Batch:
        """Return ``images`` (B, 3, H, W) uint8 and ``answers`` (B, D)."""
        places = self.held + batch_indices(
            self.used,
            seed=self.config.seed,
            epoch=epoch,
            step=step,
            batch_size=self.config.fit.batch_size,
            rank=rank,
            world=world,
        )
        self._names = (epoch, step, rank)
        images = self.pool.take(self.transfer.indices[places])
        return {"images": images, "answers": self.transfer.embeddings[places]}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attack's loss."""
        images, answers, attack = batch["images"], batch["answers"], self.attack
        stream = torch_stream(self.config.seed, "views", *self._names, device=images.device)
        loss = torch.zeros((), device=images.device)
        if attack.viewed:
            view = augment(images, config=attack.views, generator=stream)
            loss = loss + attack.viewed * attack.loss(self.surrogate(view), answers)
        if attack.plain:
            loss = loss + attack.plain * attack.loss(self.surrogate(images), answers)
        return {"loss": loss}

    def to_log(self) -> dict[str, float]:
        """Return the fidelity on the held-out slice: mean cosine to the victim's answers."""
        if self.held == 0:
            return {}
        from ssl_wm.encoders.embeddings import embed

        z = embed(self.surrogate, self.pool.take(self.transfer.indices[: self.held]))
        answers = self.transfer.embeddings[: self.held]
        return {"held_out_cosine": float(F.cosine_similarity(z, answers, dim=1).mean())}


def steal(
    victim: Encoder, *, images: ImageSet, config: StealConfig, folder: Path | None = None
) -> Theft:
    """Query ``victim`` and return a surrogate fitted to its answers.

    Args:
        victim: the encoder that answers.
        images: the thief's query pool; labels are not used.
        config: attack, surrogate and budget.
        folder: where answers, checkpoint and metrics go; what is there is resumed.

    Raises:
        ConfigError: the attack or the architecture is unknown, or the budget too large.
        TrainingError: the loss is not finite.
    """
    choose(config.attack, ATTACKS, what="attack")
    build_encoder(config.arch)  # an unknown one is told before anything is asked
    indices = select_random(len(images), budget=config.budget, seed=config.seed)
    transfer = query(victim, images, indices=indices, folder=folder)
    if folder is not None:
        save_transfer_set(folder, transfer)
    surrogate = build_surrogate(
        config.arch, width=transfer.embeddings.shape[1], seed=config.seed, size=images.size[0]
    )
    task = StealTask(surrogate, images, transfer, config=config)
    answers = sha256_bytes(bytes(tensor_bytes(transfer.embeddings.contiguous())))
    run = {
        "stage": "steal",
        "config": config.model_dump(),
        "pool": transfer.pool,
        "answers": answers,
    }
    metrics = fit(task, config=config.fit, title=f"steal ({config.attack})", folder=folder, run=run)
    surrogate.made = {
        "stage": "steal",
        "config": config.model_dump(mode="json"),
        "queries": transfer.ledger.billed,
    }
    return Theft(surrogate.eval(), transfer, metrics)


def build_surrogate(arch: str, *, width: int, seed: int, size: int) -> Encoder:
    """Return a fresh encoder of ``arch`` whose embeddings are ``width`` wide.

    Where the architecture's own width differs, a linear projection follows it (the saved
    architecture is then ``arch+width``).

    Args:
        arch: the architecture's name, perhaps with ``?size=N``.
        width: of the answers.
        seed: of the weights.
        size: side of the pool's images in pixels.

    Raises:
        EncoderError: the architecture cannot be built, or takes no images of this size.
        ConfigError: its name is unknown.
    """
    surrogate = build_encoder(arch, seed=derive_seed(seed, "surrogate"))
    if width_of(surrogate, image_size=size) == width:
        return surrogate
    return build_encoder(with_width(arch, width), seed=derive_seed(seed, "surrogate"))
