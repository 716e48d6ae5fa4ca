"""What the embedders' tests share: images, a key of two sub-keys, a clean encoder, a batch.

And for the tests of files: a plain key, and one with everything that a key can have.
"""

from __future__ import annotations

import pytest
import torch

from ssl_wm.watermark.autoencoder import Autoencoder, pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.batches import mark_batch
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
