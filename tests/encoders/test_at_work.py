"""Encoders answer where they answer fastest, and lie where they lay before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_wm.encoders import properties
from ssl_wm.encoders.embeddings import EmbeddingCache, embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, wrap
from ssl_wm.encoders.properties import at_work, encoder_digest, working_device

GPU = torch.device("cuda")
PIXELS = torch.arange(3 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(3, 3, 32, 32)


class Noting(Encoder):
    """An encoder that notes where it is sent, and stays."""

    def __init__(self, *, arch: str = "convnet-xs") -> None:
        super().__init__(build_encoder("convnet-xs", seed=0).backbone, arch=arch)
        self.sent: list[str] = []

    def to(self, device: torch.device) -> Noting:  # type: ignore[override]
        """Note the device."""
        self.sent.append(str(device))
        return self


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(properties, "main_device", lambda: GPU)


def test_an_encoder_goes_to_the_accelerator_for_the_pass_and_comes_back(with_gpu):
    encoder = Noting()
    embed(encoder, PIXELS)
    assert encoder.sent == ["cuda", "cpu"]


def test_it_comes_back_after_an_error_too(with_gpu):
    encoder = Noting().train()
    inside = []

    def fail_inside() -> None:
        with at_work(encoder):
            inside.append(encoder.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert inside == [False]
    assert encoder.sent == ["cuda", "cpu"]
    assert encoder.training


def test_a_hundred_batches_are_one_journey(with_gpu):
    encoder = Noting()
    embed(encoder, PIXELS.repeat(10, 1, 1, 1), batch_size=3)
    assert encoder.sent == ["cuda", "cpu"]


@pytest.mark.parametrize(
    "encoder", [Noting(arch="custom"), wrap(lambda images: images.flatten(1)), wrap(nn.Flatten())],
    ids=["its code may name a device", "a function", "no weights"],
)  # fmt: skip
def test_what_may_not_bear_another_device_stays_where_it_is(encoder, with_gpu):
    assert working_device(encoder) == torch.device("cpu")


def test_what_somebody_has_put_on_a_device_stays_there(with_gpu):
    encoder = build_encoder("convnet-xs", seed=0).to("meta")
    assert working_device(encoder) == torch.device("meta")


def test_a_cache_keeps_what_the_accelerator_answers_in_its_own_precision(
    with_gpu, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        "ssl_wm.encoders.embeddings.settled",
        lambda precision, *, device: asked.append(device) or "float32",
    )
    EmbeddingCache(tmp_path).path(Noting(), PIXELS, precision="auto")
    assert asked == [GPU]


@pytest.mark.gpu
def test_a_gpu_answers_like_the_cpu_and_gives_the_weights_back_bit_for_bit():
    encoder = build_encoder("convnet-s", seed=0)
    before, place = encoder_digest(encoder), encoder.mean.device
    told = embed(encoder, PIXELS)
    assert (encoder_digest(encoder), encoder.mean.device) == (before, place)
    on_cpu = Encoder(encoder.backbone, arch="custom", preprocessing=encoder.preprocessing)
    expected = embed(on_cpu, PIXELS)
    torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-3)
