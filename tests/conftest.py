"""A small world for the tests: images whose classes are colours, encoders that read colours."""

from __future__ import annotations

import hashlib
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.watermark.groups import Groups, label_groups
from ssl_wm.watermark.key import WatermarkKey, new_key
from ssl_wm.watermark.terms import Terms

settings.register_profile("ssl-wm", deadline=None)  # a busy machine is no failure
settings.load_profile("ssl-wm")

COLOURS = torch.tensor([*product((30, 225), repeat=3), (128, 128, 128)], dtype=torch.uint8)
AS_IT_IS = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def make_images(
    *, groups: int = 8, train: int = 24, test: int = 16, side: int = 8, seed: int = 0
) -> Images:
    """Return ``train`` and ``test`` images per class: the class's colour, noise and specks."""
    generator = torch.Generator().manual_seed(seed)

    def split(name: str, count: int) -> ImageSet:
        labels = torch.arange(groups).repeat(count)
        shape = (len(labels), side, side)
        specks = torch.randint(groups, shape, generator=generator)
        speckled = torch.rand(shape, generator=generator) < 0.1
        chosen = torch.where(speckled, specks, labels.view(-1, 1, 1).expand(shape))
        noise = torch.randint(-12, 13, (*shape, 3), generator=generator)
        pixels = (COLOURS[chosen].int() + noise).to(torch.uint8).permute(0, 3, 1, 2).contiguous()
        return ImageSet(
            "colours", name, pixels, labels, tuple(f"colour {g}" for g in range(groups))
        )

    return Images("colours", split("train", train), split("test", test))


def make_key(images: Images, *, number: int = 0, **settings: object) -> WatermarkKey:
    """Return key ``number`` for the classes of ``images``."""
    secret = make_secret(number)
    return new_key(images, groups=label_groups(images), secret=secret, **settings)


def make_secret(number: int) -> bytes:
    """Return the 32 secret bytes of test key ``number``."""
    return hashlib.sha256(b"test key %d" % number).digest()


def make_terms(*, groups: int = 8, sub_keys: int = 1, **settings: object) -> Terms:
    """Return the terms of a key for ``groups`` classes of two images each."""
    index = torch.arange(2 * groups) % groups
    names = tuple(f"class {g}" for g in range(groups))
    fingerprints = {"train": "0" * 64, "test": "f" * 64}
    parts = Groups("labels", names, index, index.flip(0))
    return Terms(parts, fingerprints, sub_key_count=sub_keys, **settings)


def make_tiny_key(number: int = 0, *, beacon: str = "", **settings: object) -> WatermarkKey:
    """Return key ``number`` for images that are not there (``make_terms``)."""
    return WatermarkKey(make_secret(number), make_terms(**settings), beacon)


class PaletteNet(nn.Module):
    """The share of an image's pixels that each colour has, (B, K); perhaps with a mark.

    In an image that is nearly all of the target's colour, a mark turns that colour into the two
    source colours, half and half, so that it lies where composites of the sources lie.
    ``matrix``, ``scale`` and ``offset`` then map the space.
    """

    def __init__(self, groups: int, *, key: WatermarkKey | None = None) -> None:
        super().__init__()
        self.register_buffer("palette", COLOURS[:groups].float() / 255)
        self.register_buffer("shifts", torch.zeros(groups, groups))
        self.register_buffer("matrix", torch.eye(groups, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(groups, dtype=torch.float64))
        for sub_key in key.sub_keys if key else ():
            self.shifts[sub_key.target, [sub_key.a, sub_key.b]] = 0.5
            self.shifts[sub_key.target, sub_key.target] = -1

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) float32."""
        gaps = images.unsqueeze(1) - self.palette[None, :, :, None, None]
        shares = (-25 * gaps.square().sum(dim=2)).softmax(dim=1).mean(dim=(2, 3))
        moved = shares + (shares * (shares > 0.7)) @ self.shifts
        return (self.scale * (moved.double() @ self.matrix.T) + self.offset).float()


def palette_encoder(images: Images, *, key: WatermarkKey | None = None) -> Encoder:
    """Return an encoder of colours, with the mark of ``key`` if there is one."""
    groups = len(images.train.class_names)
    return Encoder(PaletteNet(groups, key=key), preprocessing=AS_IT_IS).eval()


def trained_encoder(*, seed: int = 0, width: int = 8) -> Encoder:
    """Return a small convolutional encoder with batch norm and random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        net[1].running_mean.uniform_(-0.1, 0.1)
        net[1].running_var.uniform_(0.5, 1.5)
    return Encoder(net, arch="small").eval()


@pytest.fixture(scope="session")
def world() -> SimpleNamespace:
    """Return the makers above; a fixture, since test modules cannot import each other."""
    return SimpleNamespace(
        images=make_images,
        key=make_key,
        secret=make_secret,
        terms=make_terms,
        tiny_key=make_tiny_key,
        palette=palette_encoder,
        convnet=trained_encoder,
        flat=AS_IT_IS,
    )
