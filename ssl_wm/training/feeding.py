"""Batches on their way to the device: pixels that lie there already, batches made ahead of need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ssl_wm.data.image_set import ImageSet

ROOM = 0.5
"""Share of a device's free memory that pixels may take."""


def resident(images: ImageSet, *, device: torch.device) -> ImageSet:
    """Return the images with their pixels on ``device``, where they are held and fit there."""
    if device.type != "cuda" or images.streamed:
        return images
    count, *shape = images.pixels.shape
    free, _ = torch.cuda.mem_get_info(device)
    return images.to(device) if count * torch.Size(shape).numel() <= ROOM * free else images


def in_turn(
    make: Callable[[int], dict[str, Tensor]], *, steps: int, ahead: bool
) -> Iterator[dict[str, Tensor]]:
    """Yield ``make(0)``, ``make(1)``, ...; the batches are the same either way.

    Args:
        make: the batch of a step.
        steps: how many.
        ahead: make each batch but the first in another thread, while the one before it is worked
            on. What fails there is raised when its batch is due.
    """
    if not ahead or steps == 0:
        yield from map(make, range(steps))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as maker:
        batch = make(0)
        for step in range(1, steps):
            due = maker.submit(make, step)
            yield batch
            batch = due.result()
        yield batch


def on_its_way(batch: dict[str, Tensor], *, device: torch.device) -> dict[str, Tensor]:
    """Return the batch in memory from which ``device`` can fetch it while it works."""
    if device.type != "cuda":
        return batch
    return {name: value if value.is_cuda else value.pin_memory() for name, value in batch.items()}
