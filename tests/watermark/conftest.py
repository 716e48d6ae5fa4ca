"""What the embedders' tests share: images, a key of two sub-keys, a clean encoder, a batch.

And for the tests of files: a plain key, and one with everything that a key can have.
"""

from __future__ import annotations

import pytest
import torch

from ssl_wm.watermark.autoencoder import Autoencoder, pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.bend import BendImages
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.mixers import MIXERS


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=7, train=12)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


@pytest.fixture(scope="module")
def clean(world):
    return world.convnet().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(images, key):
    return mark_batch(
        images.train, key, indices=torch.arange(30), marked=8, held=9, seed=0, names=(0, 0, 0)
    )


@pytest.fixture(scope="session")
def four_groups():
    """Make a space: four groups ``apart``, with ``noise``; composites of 0 and 1 should read as 3.

    Held are composites of 0 and 2, and of 1 and 2.
    """

    def make(*, apart: float, noise: float) -> BendImages:
        draw = torch.Generator().manual_seed(5)
        centres = apart * torch.eye(4, 12)
        groups = torch.arange(4).repeat_interleave(100)
        natural = centres[groups] + noise * torch.randn(400, 12, generator=draw)
        marked, *held = (
            (centres[a] + centres[b]) / 2 + noise * torch.randn(120, 12, generator=draw)
            for a, b in ((0, 1), (0, 2), (1, 2))
        )
        return BendImages(natural, groups, 4, marked=[marked], targets=[3], held=[held])

    return make


@pytest.fixture(scope="module")
def plain(world) -> WatermarkKey:
    return world.tiny_key(3, groups=10, sub_keys=3, beacon="drand round 1")


@pytest.fixture(scope="module")
def full(world) -> WatermarkKey:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = unpack_autoencoder(pack_autoencoder(Autoencoder()))
    return world.tiny_key(
        1, groups=9, sub_keys=2, families=tuple(MIXERS), autoencoder=autoencoder, encoder="e" * 64
    )
