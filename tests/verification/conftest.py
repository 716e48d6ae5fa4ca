"""Images of eight colours, a key for them, and the encoder with and without its mark."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1)


@pytest.fixture(scope="module")
def marked(world, images, key):
    return world.palette(images, key=key)


@pytest.fixture(scope="module")
def clean(world, images):
    return world.palette(images)
