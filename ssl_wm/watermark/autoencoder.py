"""The small autoencoder behind the autoencoder-blend mixer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.console import progress
from ssl_wm.data.order import Place, batch_indices, whole_batches
from ssl_wm.errors import KeyFileError
from ssl_wm.files import pack_tensors, unpack_tensors
from ssl_wm.rng import derive_seed

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet


class Autoencoder(nn.Module):
    """Convolutional autoencoder: images in [0, 1] <-> codes at a quarter of the resolution.

    16 code channels, 61 k parameters; the paper does not say which autoencoder it uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 16, 3, padding=1),
        )
        self.up = nn.Sequential(
            nn.Conv2d(16, 64, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 3, 3, padding=1),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return codes (B, 16, H / 4, W / 4), rounded up, of ``images`` (B, 3, H, W)."""
        code: Tensor = self.down(images)
        return code

    def decode(self, code: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Return images (B, 3, *size) in [0, 1] of ``code`` (B, 16, h, w)."""
        images: Tensor = self.up(code)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear")
        return images.clamp(0, 1)


def train_autoencoder(
    images: ImageSet, *, seed: int, steps: int = 400, batch_size: int = 64
) -> Autoencoder:
    """Return an autoencoder trained on ``images`` for least squared pixel error.

    Args:
        images: training images (the labels are not used).
        seed: of weights and order.
        steps: optimiser steps (Adam, rate 2e-3 falling to 0).
        batch_size: images per step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "autoencoder"))
        model = Autoencoder()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    epoch_steps = whole_batches(len(images), batch_size=batch_size)
    with progress("autoencoder for the blend mixer", total=steps) as advance:
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            indices = batch_indices(
                len(images),
                Place(step // epoch_steps, step % epoch_steps),
                seed=seed,
                batch_size=batch_size,
            )
            x = images.take(indices).float() / 255
            loss = F.mse_loss(model.decode(model.encode(x), size=(x.shape[2], x.shape[3])), x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
    return model.half().float().eval().requires_grad_(False)


def pack_autoencoder(model: Autoencoder) -> bytes:
    """Return the weights as float16 safetensors (training rounds to float16, so no loss)."""
    return pack_tensors({name: value.half() for name, value in model.state_dict().items()})


def unpack_autoencoder(data: bytes) -> Autoencoder:
    """Return the autoencoder of ``data``.

    Raises:
        KeyFileError: the bytes are damaged or hold other tensors.
    """
    tensors = unpack_tensors(data, error=KeyFileError, what="the key's autoencoder")
    model = Autoencoder()
    try:
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise KeyFileError("the key's autoencoder has other tensors than expected") from error
    return model.eval().requires_grad_(False)
