"""Every entry of BACKBONES honours one contract; a new backbone is tested by being there."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from ssl_wm.encoders.backbones import BACKBONES
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import width_of
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.errors import EncoderError

WIDTHS = {
    "convnet-s": 256,
    "convnet-xs": 128,
    "convnet-l": 512,
    "resnet-small": 128,
    "resnet18-cifar": 512,
    "vgg-small": 256,
    "alexnet-small": 256,
    "cnn9": 256,
}


@functools.cache
def encoder_of(name: str) -> Encoder:
    return build_encoder(name, seed=0).eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_every_backbone_has_a_documented_width():
    assert set(WIDTHS) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_a_backbone_gives_finite_float32_rows_of_its_width(name, images):
    rows = encoder_of(name)(images)
    assert rows.shape == (3, WIDTHS[name])
    assert rows.dtype == torch.float32
    assert rows.isfinite().all()
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_a_backbone_in_eval_mode_answers_the_same_twice_and_keeps_its_buffers(name, images):
    encoder = encoder_of(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert torch.equal(encoder(images), encoder(images))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_a_backbone_takes_uint8_and_floats_alike(name, images):
    encoder = encoder_of(name)
    torch.testing.assert_close(encoder(images), encoder(images / 255))


@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_an_image_is_embedded_alike_alone_and_in_a_batch(name, images):
    encoder = encoder_of(name)
    torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("shape", [(48, 32), (28, 28), (64, 64)])
@torch.inference_mode()
def test_the_width_does_not_depend_on_the_image_size(name, shape):
    assert encoder_of(name)(torch.rand(1, 3, *shape)).shape == (1, WIDTHS[name])


@pytest.mark.parametrize("name", ["convnet-s", "convnet-xs", "resnet-small", "alexnet-small"])
def test_a_training_step_reaches_every_weight(name):
    encoder = build_encoder(name, seed=0).train()
    encoder(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_convnet_s_stays_near_one_million_weights():
    count = sum(weight.numel() for weight in BACKBONES["convnet-s"]().parameters())
    assert 0.8e6 < count < 1.3e6


def test_resnet18_cifar_keeps_the_resolution_in_its_stem():
    model = BACKBONES["resnet18-cifar"]()
    assert model.conv1.kernel_size == (3, 3)
    assert model.conv1.stride == (1, 1)
    assert isinstance(model.maxpool, nn.Identity)


@pytest.mark.parametrize("name", ["convnet-s", "convnet-xs", "convnet-l", "resnet-small"])
@pytest.mark.parametrize("shape", [(33, 32), (32, 33), (1, 1)])
def test_an_odd_image_side_is_told_in_one_line(name, shape):
    with pytest.raises(EncoderError, match=f"even sides; got {shape[0]} x {shape[1]}") as caught:
        encoder_of(name)(torch.rand(1, 3, *shape))
    assert "\n" not in str(caught.value)
    with pytest.raises(EncoderError, match="even sides"):
        width_of(encoder_of(name), image_size=31)
