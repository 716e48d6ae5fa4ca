"""Answers that do not depend on which images share a pass through the encoder.

A library may compute an image's last bits otherwise in a batch of 3 than in a batch of 64: it
picks its kernels by shape. Passes of one fixed size avoid that: smaller ones are filled up with
black images. Measured for every family of backbone here, at one size neither the place in the
batch nor the other images change a bit of an embedding; sizes that are multiples of 8 mostly
agree with each other too. So a smaller pass is used where a measurement on random images, made
once for each image shape, shows it to agree with the full one in every bit.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import EncoderError
from ssl_wm.rng import torch_stream

SHAPES = 8
"""Image shapes that are measured; later ones always run full passes."""
PIXELS = 16 * 2**20
"""Most pixels a pass: large images get smaller passes, always the same for the same shape."""


class SteadyEncoder(Encoder):
    """``inner`` with answers that are the same, bit for bit, however images are batched.

    It shares the weights of ``inner`` and has its digest. The service runs on it; a local
    ``embed`` of it gives the same bits on the same machine and number of threads.

    Args:
        inner: the encoder; it is put into eval mode.
        batch: images a pass.
    """

    def __init__(self, inner: Encoder, *, batch: int = 64) -> None:
        if batch < 1:
            raise EncoderError(f"a pass takes at least one image; got {batch}")
        super().__init__(
            inner.backbone, arch=inner.arch, preprocessing=inner.preprocessing, made=inner.made
        )
        self.batch = batch
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self.to(inner.mean.device)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (N, D) of ``images`` (N, 3, H, W), uint8 or float in [0, 1].

        Raises:
            EncoderError: as in ``Encoder``, or the encoder is in training mode, where
                embeddings depend on the batch by design.
        """
        if self.training:
            raise EncoderError("a steady encoder answers in eval mode only; call .eval()")
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            return super().forward(images)
        sizes = self.sizes(images[:1])
        rows, start = [], 0
        while start < len(images):
            taken, size = next_pass(len(images) - start, sizes)
            rows.append(self._pass(images[start : start + taken], size))
            start += taken
        return torch.cat(rows)

    def sizes(self, example: Tensor) -> tuple[int, ...]:
        """Return the sizes of pass, rising, that agree for images shaped as ``example``."""
        shape = tuple(example.shape[1:])
        full = min(self.batch, max(1, PIXELS // (shape[1] * shape[2])))
        with self._lock:
            if shape not in self._sizes:
                if len(self._sizes) >= SHAPES:
                    return (full,)
                self._sizes[shape] = self._measure(full, shape, device=example.device)
            return self._sizes[shape]

    def _measure(
        self, full: int, shape: tuple[int, ...], *, device: torch.device
    ) -> tuple[int, ...]:
        stream = torch_stream(0, "steady", *shape)
        count = (full, *shape)
        images = torch.randint(0, 256, count, generator=stream, dtype=torch.uint8).to(device)
        with torch.inference_mode():
            whole = super().forward(images)
            good = [full]
            size = full // 2
            while size and full % size == 0:
                rows = torch.cat(
                    [super(SteadyEncoder, self).forward(p) for p in images.split(size)]
                )
                if not torch.equal(rows, whole):
                    break
                good.append(size)
                size //= 2
        return tuple(reversed(good))

    def _pass(self, images: Tensor, size: int) -> Tensor:
        count = len(images)
        if size > count:
            images = torch.cat([images, images.new_zeros(size - count, *images.shape[1:])])
        return super().forward(images)[:count]


def next_pass(count: int, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return how many of ``count`` images the next pass takes, and its size from ``sizes``.

    A pass is filled up where at most a quarter of it is empty, or where it is the smallest.

    >>> next_pass(60, (8, 16, 32, 64)), next_pass(40, (8, 16, 32, 64)), next_pass(3, (8, 16))
    ((60, 64), (32, 32), (3, 8))
    """
    if count >= sizes[-1]:
        return sizes[-1], sizes[-1]
    above = next(size for size in sizes if size >= count)
    below = [size for size in sizes if size <= count]
    if not below or 4 * count >= 3 * above:
        return count, above
    return below[-1], below[-1]
