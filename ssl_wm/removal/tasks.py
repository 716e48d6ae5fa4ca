"""What the attempts that train minimise: labels, composites, or the encoder's own answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.data.order import Place, batch_indices, whole_batches
from ssl_wm.data.views import augment
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import DataError
from ssl_wm.removal.composites import mixed_batch
from ssl_wm.rng import torch_stream
from ssl_wm.training.task import Batch, Task

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.removal.given import Given


def class_numbers(images: ImageSet) -> tuple[Tensor, int]:
    """Return each image's class (N,) as a number from 0, and how many classes there are.

    Raises:
        DataError: there are fewer than two classes.
    """
    classes, numbers = images.labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"training with labels needs images of two classes or more; got {len(classes)}"
        )
    return numbers, len(classes)


class RemovalTask(Task):
    """An encoder and the thief's images in random order.

    Args:
        encoder: what is trained.
        given: the thief's images, the seed and the settings.
        trained: the parts of the encoder that are trained; the others keep their weights and
            running statistics. None trains all.
    """

    images: ImageSet

    def __init__(
        self, encoder: Encoder, *, given: Given, trained: Sequence[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.given, self.images = encoder, given, given.needed
        if len(self.images) < 2:
            raise DataError(f"training needs two images or more; got {len(self.images)}")
        self._trained = None if trained is None else list(trained)
        if trained is not None:
            encoder.requires_grad_(False)
            for part in trained:
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> RemovalTask:
        """Set the mode; parts that are not trained stay in eval mode."""
        super().train(mode)
        if self._trained is not None:
            self.encoder.eval()
            for part in self._trained:
                part.train(mode)
        return self

    def steps_per_epoch(self) -> int:
        """Return the whole batches in the images."""
        return whole_batches(len(self.images), batch_size=self.given.config.fit.batch_size)

    def batch(self, place: Place) -> Batch:
        """Return ``images`` (B, 3, H, W) uint8 and their ``places`` (B,) in the set."""
        places = batch_indices(
            len(self.images),
            place,
            seed=self.given.seed,
            batch_size=self.given.config.fit.batch_size,
        )
        return {"images": self.images.take(places), "places": places}

    def stream(self, name: str, *, device: torch.device) -> Generator:
        """Return the random stream ``name`` of the batch at hand."""
        return torch_stream(self.given.seed, name, *self.place[:3], device=device)

    def view(self, images: Tensor) -> Tensor:
        """Return a random view (B, 3, H, W), float in [0, 1], of each image."""
        stream = self.stream("views", device=images.device)
        return augment(images, config=self.given.config.views, generator=stream)


class LabelTask(RemovalTask):
    """Cross-entropy of a head's classes on views, perhaps also on composites.

    With ``composites`` each batch is also mixed with itself, and a composite gets a class drawn
    at random, the same weight as the images.

    Args:
        encoder: what is trained.
        head: from embeddings (B, D) to one score for each class; always trained.
        given: as in ``RemovalTask``.
        trained: as in ``RemovalTask``.
        composites: whether composites are trained on.
    """

    classes: Tensor

    def __init__(
        self, encoder: Encoder, *, head: nn.Module, given: Given,
        trained: Sequence[nn.Module] | None = None, composites: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(encoder, given=given, trained=trained)
        self.head, self.composites = head, composites
        numbers, self.count = class_numbers(self.images)
        self.register_buffer("classes", numbers, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and the share of views that are read rightly."""
        views = self.view(batch["images"])
        labels = self.classes[batch["places"]]
        scores = self.head(self.encoder(views))
        loss = F.cross_entropy(scores, labels)
        terms = {"labels": loss, "accuracy": (scores.argmax(dim=1) == labels).float().mean()}
        if self.composites:
            terms["composites"] = self._composite_loss(views)
            loss = loss + terms["composites"]
        return {"loss": loss, **terms}

    def _composite_loss(self, views: Tensor) -> Tensor:
        stream = self.stream("composites", device=views.device)
        mixed, _, _ = mixed_batch(views, generator=stream)
        wrong = torch.randint(self.count, (len(views),), generator=stream, device=views.device)
        return F.cross_entropy(self.head(self.encoder(mixed)), wrong)


class StillTask(RemovalTask):
    """An encoder beside itself as it was (``before``), which is not trained and in eval mode."""

    def __init__(self, encoder: Encoder, *, given: Given) -> None:
        super().__init__(encoder, given=given)
        self.before = copy.deepcopy(encoder).requires_grad_(False)

    def train(self, mode: bool = True) -> StillTask:
        """Set the mode; the encoder as it was stays in eval mode."""
        super().train(mode)
        self.before.eval()
        return self


class BetweenTask(StillTask):
    """Composites are pulled between their parents, and images stay where they were.

    ``|g(x) - f(x)|^2 / v + |g(m x + (1 - m) y) - (a f(x) + (1 - a) f(y))|^2 / v``, f the encoder
    as it was, a the mean of the mask m, v the variance of f's answers in the batch summed over
    coordinates. No labels.
    """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its two terms."""
        views = self.view(batch["images"])
        stream = self.stream("composites", device=views.device)
        mixed, partners, share = mixed_batch(views, generator=stream)
        with torch.no_grad():
            z = self.before(views)
        spread = z.var(dim=0, correction=0).sum().clamp(min=1e-12)
        goal = share * z + (1 - share) * z[partners]
        still = (self.encoder(views) - z).square().sum(dim=1).mean() / spread
        between = (self.encoder(mixed) - goal).square().sum(dim=1).mean() / spread
        return {"loss": still + between, "still": still, "between": between}
