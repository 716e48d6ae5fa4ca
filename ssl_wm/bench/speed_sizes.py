"""How much work the speed measurements do, and on what: sizes, device, synthetic inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.bench.rivals import images_needed, steps_before
from ssl_wm.precision import FitPrecision
from ssl_wm.rng import torch_stream

BLOCK = 4096  # rows of synthetic embeddings that are drawn together
APART = 6.0  # half the squared distance of two classes, in deviations of their noise


class Sizes(BaseModel):
    """Sizes of the measurements; the defaults are those that the project reports on a CPU.

    Attributes:
        arch: architecture of training, augmentation, embedding and reads.
        batch_size: images per training step.
        warmup: training steps before the clock starts.
        steps: timed training steps.
        augmented: two-view augmentations of a batch that are timed together.
        embedded: images whose features are extracted.
        embed_batch: images per forward pass.
        bank: rows of the kNN bank; ``width`` wide, ``classes`` classes.
        queries: kNN queries.
        neighbours: k.
        probed: training rows of the probe; half as many are held out.
        width: of bank, queries and the probe's features.
        classes: of bank, probe and the images that are read.
        memory_images: images of the memory of embedding and of verification, per split.
        read_per_pair: composites of each ordered pair of groups in the verification reads.
        read_recipes: decoy recipes in them.
        read_reference: reference images of each group in them.
        large_bank: rows of the bank that is searched within a limit of memory.
        large_width: their width.
        large_queries: queries of that search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str = "resnet18-cifar"
    batch_size: int = Field(128, ge=2)
    warmup: int = Field(1, ge=1)
    steps: int = Field(4, ge=1)
    augmented: int = Field(20, ge=1)
    embedded: int = Field(512, ge=2)
    embed_batch: int = Field(256, ge=1)
    bank: int = Field(50_000, ge=2)
    queries: int = Field(10_000, ge=1)
    neighbours: int = Field(20, ge=1)
    probed: int = Field(20_000, ge=20)
    width: int = Field(512, ge=2)
    classes: int = Field(10, ge=3)
    memory_images: int = Field(2048, ge=48)
    read_per_pair: int = Field(64, ge=8)
    read_recipes: int = Field(99, ge=0)
    read_reference: int = Field(500, ge=8)
    large_bank: int = Field(1_000_000, ge=2)
    large_width: int = Field(768, ge=2)
    large_queries: int = Field(1_000, ge=1)


QUICK: Mapping[str, Any] = {
    "batch_size": 32, "warmup": 1, "steps": 2, "augmented": 5, "embedded": 128, "embed_batch": 64,
    "bank": 10_000, "queries": 1_000, "probed": 2_000, "width": 128, "memory_images": 200,
    "read_per_pair": 8, "read_recipes": 2, "read_reference": 8, "large_bank": 20_000,
    "large_width": 128, "large_queries": 100,
}  # fmt: skip
"""Sizes that show that everything runs; their ratios are no results."""

GPU: Mapping[str, Any] = {
    "batch_size": 512, "warmup": 20, "steps": 60, "augmented": 200, "embedded": 20_000,
    "embed_batch": 1024,
}  # fmt: skip
"""Sizes that keep a GPU busy for seconds."""


@dataclass(frozen=True)
class Setup:
    """What all cases share.

    Attributes:
        sizes: how much work.
        device: where networks run.
        precision: as in ``fit``, of our training.
        compile: as in ``fit``, of our training.
        workers: processes of lightly's loader.
        seed: of weights and synthetic inputs.
    """

    sizes: Sizes
    device: torch.device
    precision: FitPrecision
    compile: bool | Literal["graphs"]
    workers: int
    seed: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU, which has other bars."""
        return self.device.type == "cuda"

    @property
    def rival_warmup(self) -> int:
        """Steps of lightly's side before the clock starts."""
        return steps_before(self.sizes.warmup, workers=self.workers, drain=self.on_gpu)

    @cached_property
    def pixels(self) -> Tensor:
        """Random images for training, augmentation and embedding, uint8 (N, 3, 32, 32)."""
        sizes = self.sizes
        trained = images_needed(
            batch_size=sizes.batch_size, batches=self.rival_warmup + sizes.steps,
            workers=self.workers,
        )  # fmt: skip
        return synthetic_pixels(max(trained, sizes.embedded), seed=self.seed)

    def wait(self) -> None:
        """Return when the device has finished."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def synthetic_pixels(count: int, *, seed: int, side: int = 32) -> Tensor:
    """Return random bytes as images, uint8 (count, 3, side, side)."""
    stream = torch_stream(seed, "speed", "pixels")
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=stream)


def synthetic_embeddings(
    count: int, *, width: int, classes: int, seed: int, split: str
) -> tuple[Tensor, Tensor]:
    """Return rows (count, width), float32, shaped like an encoder's embeddings, and labels.

    Overlapping classes around random centres; coordinate i of noise and centres has a deviation
    in proportion to (1 + i)^-1/2, and both are rotated at random, so that few directions hold most
    of the variance. Whatever the width, the expected squared Mahalanobis distance of two centres is
    2 ``APART``, so a linear reader can tell most rows apart and not all. ``split`` names another
    draw of the same classes. Rows are drawn in blocks, so that no more memory is used than they
    take.
    """
    world = torch_stream(seed, "speed", "classes")
    turn = torch.linalg.qr(torch.randn(width, width, generator=world))[0]
    turn *= torch.arange(1, width + 1).rsqrt().unsqueeze(1)
    centres = math.sqrt(APART / width) * torch.randn(classes, width, generator=world) @ turn
    stream = torch_stream(seed, "speed", split)
    labels = torch.randint(classes, (count,), generator=stream)
    rows = torch.empty(count, width)
    for part, of in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
        torch.mm(torch.randn(len(part), width, generator=stream), turn, out=part)
        part += centres[of]
    return rows, labels
