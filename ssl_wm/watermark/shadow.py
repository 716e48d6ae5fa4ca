"""A shadow thief: a copy of the clean encoder, made from natural images alone.

What a thief's network makes of composites, which it never saw, is not what the owner's makes of
them. The owner can rehearse the theft before marking: a fresh network of the same architecture,
distilled from the clean encoder, shows where composites lie in such a copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ssl_wm.data.order import Place, batch_indices, whole_batches
from ssl_wm.data.views import augment
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, width_of
from ssl_wm.encoders.names import with_width
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.training.loop import fit
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Batch, Task
from ssl_wm.watermark.batches import MILD
from ssl_wm.watermark.losses import relative_error

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

STAND_IN = "convnet-s"
"""Architecture of the shadow of an encoder that has no architecture by name."""


class ShadowTask(Task):
    """A student of the clean encoder: ``|g(a(x)) - f0(x)|^2 / V`` on natural images.

    a crops half of the images mildly and flips; V is the variance of the answers. The answers are
    asked once, as a thief asks them.
    """

    images: ImageSet
    shares = True

    def __init__(
        self, student: Encoder, images: ImageSet, answers: Tensor, *, seed: int, batch_size: int
    ) -> None:
        super().__init__()
        self.student, self.images, self.answers = student, images, answers
        self.variance = answers.var(dim=0, correction=0).sum()
        self.seed, self.size = seed, batch_size

    def steps_per_epoch(self) -> int:
        """Return the whole batches of natural images."""
        return whole_batches(len(self.images), batch_size=self.size)

    def batch(self, place: Place) -> Batch:
        """Return ``images`` (B, 3, H, W), cropped and flipped, and the ``answers`` (B, D)."""
        indices = batch_indices(
            len(self.images), place, seed=self.seed, batch_size=self.size
        )  # fmt: skip
        stream = torch_stream(self.seed, "shadow", place.epoch, place.step)
        views = augment(
            self.images.take(indices),
            config=MILD,
            generator=stream,
            rank=place.rank,
            world=place.world,
        )
        return {"images": views, "answers": self.answers[indices]}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the relative error."""
        z = self.student(batch["images"])
        variance = self.variance.to(z.device)
        return {"loss": relative_error(z, batch["answers"], variance=variance)}


def train_shadow(
    clean: Encoder,
    images: ImageSet,
    *,
    config: FitConfig,
    seed: int,
    arch: str | None = None,
    folder: Path | None = None,
) -> Encoder:
    """Return a fresh network, distilled from ``clean`` to the same width, frozen.

    Args:
        clean: who answers.
        images: natural images, the owner's own.
        config: the training loop.
        seed: of the weights, the order and the views.
        arch: of the network; None takes that of ``clean``, or ``STAND_IN`` where that is not known
            by name.
        folder: where metrics and, until it is done, a checkpoint go; one found there is resumed.

    Raises:
        EncoderError: the architecture cannot be built, or takes no images of this size.
        TrainingError: the loss is not finite.
    """
    answers = embed(clean, images, precision="auto")
    student = _fresh(arch, clean, width=answers.shape[1], size=images.size[0], seed=seed)
    task = ShadowTask(student, images, answers, seed=seed, batch_size=config.batch_size)
    run = {"stage": "shadow", "arch": student.arch, "clean": encoder_digest(clean), "seed": seed}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    fit(task, config=config, title="shadow thief", folder=folder, run=run)
    return student.eval().requires_grad_(False)


def _fresh(arch: str | None, clean: Encoder, *, width: int, size: int, seed: int) -> Encoder:
    """Return a new encoder of ``arch``, or of another one (``train_shadow``), ``width`` wide."""
    weights = derive_seed(seed, "shadow thief")
    try:
        name = arch or clean.arch
        student = build_encoder(name, seed=weights)
    except ConfigError:
        if arch is not None:
            raise
        name = STAND_IN
        student = build_encoder(name, seed=weights)
    if width_of(student, image_size=size) == width:
        return student
    return build_encoder(with_width(name, width), seed=weights)
