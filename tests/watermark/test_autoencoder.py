"""The blend mixer's autoencoder learns, repeats, and fits into a key file without loss."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.errors import KeyFileError
from ssl_wm.files import pack_tensors
from ssl_wm.watermark.autoencoder import (
    Autoencoder,
    pack_autoencoder,
    train_autoencoder,
    unpack_autoencoder,
)


@functools.cache
def packed() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pack_autoencoder(Autoencoder())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13))
def test_images_of_any_size_have_a_code_and_come_back(height, width):
    model = unpack_autoencoder(packed())
    images = torch.rand(2, 3, height, width)
    code = model.encode(images)
    assert code.shape == (2, 16, -(-height // 4), -(-width // 4))
    again = model.decode(100 * code, size=(height, width))
    assert again.shape == images.shape
    assert 0 <= float(again.min()) <= float(again.max()) <= 1


def test_training_reconstructs_better_than_the_mean_image_and_repeats(world):
    images = world.images(groups=4, train=32).train
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = train_autoencoder(images, seed=3, steps=120, batch_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    x = images.pixels.float() / 255
    error = (model.decode(model.encode(x), size=(8, 8)) - x).square().mean()
    assert error < 0.4 * x.var(dim=0, correction=0).mean()
    torch.manual_seed(2)
    again = train_autoencoder(images, seed=3, steps=120, batch_size=32)
    assert pack_autoencoder(again) == pack_autoencoder(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_trained_autoencoder_is_packed_without_loss(world):
    model = train_autoencoder(world.images(groups=3).train, seed=0, steps=3)
    again = unpack_autoencoder(pack_autoencoder(model))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert pack_autoencoder(again) == pack_autoencoder(model)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_truncated_weights_are_a_key_file_error(data):
    cut = data.draw(st.integers(0, len(packed()) - 1))
    with pytest.raises(KeyFileError, match="autoencoder"):
        unpack_autoencoder(packed()[:cut])


def test_other_tensors_are_a_key_file_error():
    state = unpack_autoencoder(packed()).state_dict()
    missing = {name: value for name, value in state.items() if name != "down.0.bias"}
    wrong = state | {"down.0.bias": torch.zeros(31)}
    for tensors in (missing, wrong, state | {"extra": torch.zeros(1)}):
        with pytest.raises(KeyFileError, match="other tensors than expected"):
            unpack_autoencoder(pack_tensors(tensors))
