"""What is read off an encoder leaves it as it was and tells encoders apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.properties import check_finite, encoder_digest, eval_mode, width_of
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.errors import EncoderError


def tiny(size: int | None = None) -> Encoder:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    return Encoder(backbone, preprocessing=Preprocessing(size=size))


def test_eval_mode_gives_every_submodule_its_own_mode_back():
    encoder = tiny().train()
    encoder.backbone[1].eval()
    inside = []

    def fail_inside() -> None:
        with eval_mode(encoder):
            inside.extend(part.training for part in encoder.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not any(inside)
    assert encoder.training
    assert encoder.backbone[2].training
    assert not encoder.backbone[1].training


def test_width_of_changes_neither_mode_nor_batch_statistics():
    encoder = tiny().train()
    before = encoder_digest(encoder)
    assert width_of(encoder) == 4
    assert encoder.training
    assert encoder_digest(encoder) == before


def test_width_of_finds_the_size_that_a_rigid_network_takes():
    rigid = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)))
    assert width_of(rigid) == 2
    assert width_of(Encoder(nn.Sequential(nn.Flatten(), nn.Linear(48, 2))), 4) == 2
    with pytest.raises(EncoderError, match="32 and of 224 pixels"):
        width_of(Encoder(nn.Sequential(nn.Flatten(), nn.Linear(48, 2))))


def test_the_digest_sees_every_bit_of_the_weights_and_the_preprocessing():
    encoder = tiny()
    digest = encoder_digest(encoder)
    assert encoder_digest(tiny()) == digest
    assert encoder_digest(tiny(size=8)) != digest
    with torch.no_grad():
        encoder.backbone[0].bias[0] = torch.nextafter(
            encoder.backbone[0].bias[0], torch.tensor(torch.inf)
        )
    assert encoder_digest(encoder) != digest


def test_the_digest_tells_shapes_and_names_apart_that_share_bytes():
    def of(**weights: torch.Tensor) -> str:
        module = nn.Module()
        for name, value in weights.items():
            module.register_buffer(name, value)
        return encoder_digest(Encoder(module))

    zeros = torch.zeros
    digests = [of(a=zeros(4)), of(b=zeros(4)), of(a=zeros(2, 2)), of(a=zeros(2), b=zeros(2))]
    digests += [of(a=zeros(4, dtype=torch.int32)), of(a=zeros(2, dtype=torch.float64))]
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_the_memory_format():
    encoder = tiny()
    digest = encoder_digest(encoder)
    assert encoder_digest(encoder.to(memory_format=torch.channels_last)) == digest


def test_a_function_has_no_digest():
    with pytest.raises(EncoderError, match="no weights"):
        encoder_digest(Encoder(nn.Flatten()))


def test_check_finite_names_the_tensor_and_counts():
    good = build_encoder("convnet-xs").state_dict()
    check_finite(good, what="x")
    name = next(iter(good))
    bad = {**good, name: good[name].clone().index_fill_(0, torch.tensor([1]), torch.nan)}
    with pytest.raises(EncoderError, match=rf"weights.pt: tensor '{name}' holds \d+ NaN"):
        check_finite(bad, what="weights.pt")


def test_preprocessing_is_compared_by_value():
    assert replace(Preprocessing(), size=8) == Preprocessing(size=8)
