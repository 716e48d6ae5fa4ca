"""Randomness that belongs to an image: the same image gets the same draw, in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ssl_wm.files import sha256_bytes
from ssl_wm.rng import torch_stream


def content_streams(images: Tensor, *, seed: int, name: str) -> Iterator[Generator]:
    """Yield one random stream for each of ``images`` (B, 3, H, W) in [0, 1].

    A stream depends on the seed, the name and the image's 8-bit pixels alone: asking again, in
    another order or in another batch, changes nothing, and averaging repeated answers is of no
    use.
    """
    eight = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()
    for image in eight:
        yield torch_stream(seed, name, sha256_bytes(image.numpy().tobytes()))


def content_noise(images: Tensor, *, shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Return standard Gaussian noise (B, *shape), float32, on the CPU: one stream an image."""
    return torch.stack(
        [torch.randn(shape, generator=g) for g in content_streams(images, seed=seed, name=name)]
    )


def content_uniform(images: Tensor, *, seed: int, name: str) -> Tensor:
    """Return a uniform draw in [0, 1) for each image, (B,)."""
    return torch.cat(
        [torch.rand(1, generator=g) for g in content_streams(images, seed=seed, name=name)]
    )
