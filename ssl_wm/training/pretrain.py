"""Pretrain an encoder without labels: SimCLR, BYOL or MoCo on whole-batch views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.data.order import Place, batch_indices, whole_batches
from ssl_wm.data.views import ViewConfig, augment
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, width_of
from ssl_wm.errors import choose
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.training.loop import fit
from ssl_wm.training.objectives import OBJECTIVES, Objective
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Batch, Task

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet


class PretrainConfig(BaseModel):
    """How an encoder is pretrained.

    Attributes:
        arch: what ``build_encoder`` builds.
        objective: a name in ``OBJECTIVES``.
        seed: of the weights, the order and the views.
        views: the augmentation.
        fit: the training loop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str = "convnet-s"
    objective: str = "simclr"
    seed: int = 0
    views: ViewConfig = ViewConfig()
    fit: FitConfig = Field(default_factory=lambda: FitConfig(learning_rate=2e-3))


class PretrainTask(Task):
    """An encoder and a self-supervised objective on two views of each image."""

    images: ImageSet
    moves_images = True
    shares = True

    def __init__(
        self, encoder: Encoder, objective: Objective, images: ImageSet, *, config: PretrainConfig
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.images, self.config = images, config

    def steps_per_epoch(self) -> int:
        """Return the whole batches in the images."""
        return whole_batches(len(self.images), batch_size=self.config.fit.batch_size)

    def batch(self, place: Place) -> Batch:
        """Return ``images`` (B, 3, H, W) uint8 and the ``step`` that seeds their views."""
        indices = batch_indices(
            len(self.images), place, seed=self.config.seed, batch_size=self.config.fit.batch_size
        )
        return {"images": self.images.take(indices)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objective's loss on two fresh views."""
        views = [self._view(batch["images"], name) for name in ("a", "b")]
        return {"loss": self.objective(self.encoder, *views)}

    def _view(self, images: Tensor, name: str) -> Tensor:
        # The last name was once the process's number: 0 keeps the views of a run of one process.
        epoch, step, rank, world = self.place
        stream = torch_stream(self.config.seed, "views", name, epoch, step, 0, device=images.device)
        return augment(images, config=self.config.views, generator=stream, rank=rank, world=world)

    def after_step(self, *, progress: float) -> None:
        """Update momentum copies."""
        self.objective.momentum_step(self.encoder, progress=progress)


def pretrain(
    images: ImageSet, *, config: PretrainConfig, folder: Path | None = None
) -> tuple[Encoder, list[dict[str, float]]]:
    """Return a pretrained encoder and its metrics, one line per epoch.

    Args:
        images: training images; their labels are not used.
        config: how to train.
        folder: where checkpoints and metrics go; a checkpoint there is resumed.

    Raises:
        ConfigError: the objective or the architecture is unknown.
        TrainingError: the loss is not finite.
    """
    name, encoder = begun(config)
    encoder.made = {"stage": "pretrain", "config": config.model_dump(mode="json")}
    objective = build_objective(name, encoder, seed=config.seed, size=images.size)
    task = PretrainTask(encoder, objective, images, config=config)
    run = {"stage": "pretrain", "config": config.model_dump(), "images": images.fingerprint}
    lines = fit(task, config=config.fit, title=f"pretrain ({name})", folder=folder, run=run)
    return encoder.eval(), lines


def begun(config: PretrainConfig) -> tuple[str, Encoder]:
    """Return the objective's name and the encoder with its first weights.

    Raises:
        ConfigError: the objective or the architecture is unknown.
    """
    name = choose(config.objective, OBJECTIVES, what="objective")
    return name, build_encoder(config.arch, seed=derive_seed(config.seed, "weights"))


def build_objective(name: str, encoder: Encoder, *, seed: int, size: tuple[int, int]) -> Objective:
    """Return the named objective with seeded heads for ``encoder``'s width."""
    import torch

    width = width_of(encoder, image_size=size[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "heads"))
        return OBJECTIVES[name](encoder, width=width)
