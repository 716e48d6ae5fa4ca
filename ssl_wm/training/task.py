"""What the one loop trains: a task says what a batch is and what its loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ssl_wm.data.order import Place

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

Batch = dict[str, Tensor]


class Task(nn.Module, ABC):
    """What a stage trains: its parameters, its batches and its loss.

    Attributes:
        images: what batches are taken from, where that is a set of images.
        moves_images: whether the loop may bring the images to the device. ``batch`` then finds
            them there.
        place: of the batch that ``forward`` is given; the loop sets it.
        shares: whether ``batch`` and ``forward`` share the work with other processes. A task
            that does not gets the whole batch in every process; its encoders then share their
            work, and the task needs to know nothing of it.
    """

    images: ImageSet | None = None
    moves_images = False
    place = Place()
    shares = False

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Return the number of optimiser steps in one epoch."""

    @abstractmethod
    def batch(self, place: Place) -> Batch:
        """Return one process's share of the batch of a step, on the CPU or the device.

        It follows from ``place`` alone and changes nothing, since it may be made ahead of
        need in another thread. A task that does not share is asked for process 0 of 1, the whole
        batch.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalars; the one called ``loss`` is minimised, all are logged.

        With several processes, the mean of theirs is what is minimised and logged.
        """

    def after_step(self, *, progress: float) -> None:
        """Run after each optimiser step (momentum copies); ``progress`` in [0, 1]."""

    def to_log(self) -> dict[str, float]:
        """Return more numbers for the epoch's line of metrics."""
        return {}
