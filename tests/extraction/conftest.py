"""A pool of digits, a victim that counts what it is sent, and a small theft."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import build_encoder, load_encoder
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.extraction.steal import steal
from ssl_wm.training.settings import FitConfig

WIDTH, SIDE = 24, 16


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_images("digits", size=SIDE).train.subset(torch.arange(260))


class Victim:
    """Counts what it is sent, keeps each image's bytes, and fails after ``patience`` images."""

    def __init__(self, *, patience: int = 10**9, width: int = WIDTH, noise: float = 0.0) -> None:
        self.encoder = build_encoder(f"convnet-xs+{width}", seed=7).eval()
        self.patience, self.noise = patience, noise
        self.sent: list[bytes] = []
        self.stream = torch.Generator().manual_seed(1)

    def __call__(self, images):
        if len(self.sent) + len(images) > self.patience:
            raise ConnectionError("the service is gone")
        pixels = (images * 255).round().to(torch.uint8)
        assert torch.equal(pixels / 255, images)  # nothing but 8-bit images can be sent
        self.sent += [image.numpy().tobytes() for image in pixels]
        z = self.encoder(images)
        return z + self.noise * torch.randn(z.shape, generator=self.stream)


def config(attack: str = "cosine", **changes: object) -> StealConfig:
    fit = FitConfig(epochs=changes.pop("epochs", 4), batch_size=32, learning_rate=2e-3)
    settings = {"arch": "convnet-xs", "held_out": 0.1, "budget": 200, "fit": fit} | changes
    return StealConfig(attack=attack, **{k: v for k, v in settings.items() if v is not None})


def rob(victim: Victim, pool: ImageSet, settings: StealConfig, folder=None):
    return steal(load_encoder(victim), images=pool, config=settings, folder=folder)


@pytest.fixture(scope="session")
def thief() -> SimpleNamespace:
    """Return the makers above; a fixture, since test modules cannot import each other."""
    return SimpleNamespace(Victim=Victim, config=config, rob=rob)
