"""Attempts on the images before they reach the encoder.

Each function maps images (B, 3, H, W), float in [0, 1], to images of the same shape in [0, 1] and
gives the same image the same result, whatever else is in the batch. ``before`` puts one in front
of an encoder.
"""

from __future__ import annotations

import io
import math
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.files import canonical_json
from ssl_wm.removal.content import content_noise, content_uniform
from ssl_wm.removal.given import Given, wrapped

WINDOWS = 64 * 2**20
"""Most pixels that the median holds at once, over all its windows."""


class InputChange(Protocol):
    """A change of images: (B, 3, H, W) in [0, 1] to the same."""

    __name__: str

    def __call__(self, images: Tensor, *, strength: float, seed: int) -> Tensor:
        """Return the changed images."""


class Filtered(nn.Module):
    """An encoder behind a change of its images.

    The buffer ``settings`` holds the change's name, strength and seed as JSON, so that two
    filters in front of the same weights have two digests.
    """

    def __init__(self, inner: Encoder, change: InputChange, *, strength: float, seed: int) -> None:
        super().__init__()
        self.inner = inner
        self.change = partial(change, strength=strength, seed=seed)
        self.register_buffer("settings", described(change.__name__, strength, seed))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of the changed ``images`` (B, 3, H, W)."""
        rows: Tensor = self.inner(self.change(images))
        return rows


def before(encoder: Encoder, *, change: InputChange, strength: float, given: Given) -> Encoder:
    """Return ``encoder`` with ``change`` in front of it."""
    return wrapped(Filtered(encoder, change, strength=strength, seed=given.seed), inner=encoder)


def described(name: str, strength: float, seed: int) -> Tensor:
    """Return the settings of a change as the bytes (n,) uint8 of a JSON list."""
    return torch.tensor(list(canonical_json([name, float(strength), seed])), dtype=torch.uint8)


def noise(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Add Gaussian noise of deviation ``strength`` (pixels in [0, 1]) and clip."""
    drawn = content_noise(images, shape=tuple(images.shape[1:]), seed=seed, name="pixel noise")
    return (images + strength * drawn.to(images)).clamp(0, 1)


def blur(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Blur with a Gaussian of ``strength`` pixels, cut off at three deviations.

    The images are mirrored at their borders (the border itself once); the window is at most as
    large as such a mirror allows.
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    radius = min(math.ceil(3 * strength), min(images.shape[-2:]) - 1)
    if radius == 0:
        return images
    blurred: Tensor = gaussian_blur(images, [2 * radius + 1] * 2, [strength] * 2)
    return blurred


def median(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Replace each pixel by its channel's median in a window of radius ``strength`` pixels.

    Radius 1 is 3 x 3. The borders are mirrored as in ``blur``.
    """
    radius = min(int(strength), min(images.shape[-2:]) - 1)
    side = 2 * radius + 1
    height, width = images.shape[-2:]
    at_once = max(1, WINDOWS // (3 * height * width * side**2))
    parts = []
    for part in images.split(at_once):
        framed = F.pad(part, [radius] * 4, mode="reflect")
        windows = framed.unfold(2, side, 1).unfold(3, side, 1).flatten(4)
        parts.append(_middle(windows.detach()))
    return torch.cat(parts)


def _middle(windows: Tensor) -> Tensor:
    """Return the medians (...) of an odd number of values (..., n).

    On the CPU numpy sorts short rows several times faster than torch finds their medians.
    """
    if windows.device.type != "cpu" or windows.dtype not in (torch.float32, torch.float64):
        return windows.median(dim=-1).values
    ordered = np.sort(windows.numpy(), axis=-1)
    return torch.from_numpy(ordered[..., windows.shape[-1] // 2].copy())


def jpeg(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Store each image as a JPEG file of quality ``100 - strength`` and read it again."""
    from PIL import Image

    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    read = []
    for image in pixels.permute(0, 2, 3, 1).contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=100 - int(strength))
        read.append(np.asarray(Image.open(file)))
    stored = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
    return stored.to(images) / 255


def bit_depth(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Keep ``strength`` bits of each pixel's channel: ``round(x (2^b - 1)) / (2^b - 1)``."""
    most = float(2 ** int(strength) - 1)
    return (images * most).round() / most


def flip(images: Tensor, *, strength: float, seed: int) -> Tensor:
    """Mirror the share ``strength`` of all images left to right, chosen by their pixels."""
    chosen = content_uniform(images, seed=seed, name="flip") < strength
    return torch.where(chosen.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
