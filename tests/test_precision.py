"""Networks compute in bfloat16 only where the device does that in hardware."""

from __future__ import annotations

import pytest
import torch

from ssl_wm import precision
from ssl_wm.detection.settings import InversionConfig
from ssl_wm.encoders.embeddings import EmbeddingCache, embed
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.precision import fast_bfloat16, lowered, settled, settled_fit
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.settings import ReadConfig

PIXELS = torch.arange(4 * 3 * 16 * 16).remainder(255).to(torch.uint8).view(4, 3, 16, 16)


@pytest.fixture(params=[True, False], ids=["hardware", "imitated"])
def fast(request, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has", lambda name: request.param)
    monkeypatch.setattr(precision, "main_device", lambda: torch.device("cpu"))
    return request.param


def test_auto_is_bfloat16_only_where_hardware_multiplies_it(fast):
    assert fast_bfloat16("cpu") == fast
    assert settled("auto") == ("bfloat16" if fast else "float32")
    assert settled_fit("auto") == ("bf16-mixed" if fast else "32-true")


def test_a_named_precision_is_never_changed(fast):
    assert [settled(name) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert [settled_fit(name) for name in ("32-true", "bf16-mixed")] == ["32-true", "bf16-mixed"]


def test_settings_record_which_precision_was_used(fast):
    assert FitConfig().precision == ("bf16-mixed" if fast else "32-true")
    assert FitConfig(precision="auto") == FitConfig()
    assert ReadConfig(precision="auto").precision == ("bfloat16" if fast else "float32")
    assert ReadConfig.model_validate({"precision": "bfloat16"}).precision == "bfloat16"


def test_readings_are_in_float32_unless_asked_for():
    assert ReadConfig().precision == "float32"


def test_a_detector_seeks_triggers_in_the_fast_precision_of_its_device(fast):
    with lowered(InversionConfig().precision, device="cpu"):
        assert torch.is_autocast_enabled("cpu") == fast


def test_a_block_in_float32_switches_autocast_off():
    with torch.autocast("cpu", dtype=torch.bfloat16), lowered("float32", device="cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_auto_embeddings_are_those_of_the_precision_it_stands_for(fast, tmp_path):
    encoder, cache = build_encoder("convnet-xs", seed=0), EmbeddingCache(tmp_path)
    chosen = "bfloat16" if fast else "float32"
    assert torch.equal(
        embed(encoder, PIXELS, precision="auto"), embed(encoder, PIXELS, precision=chosen)
    )
    paths = [cache.path(encoder, PIXELS, precision=name) for name in ("auto", chosen)]
    assert paths[0] == paths[1]


def test_the_processor_is_asked_without_an_error():
    assert fast_bfloat16() in (True, False)


@pytest.mark.parametrize("unit", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_either_unit_of_a_processor_is_enough(unit, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has", lambda name: name == unit)
    assert fast_bfloat16("cpu")


@pytest.mark.gpu
def test_a_gpu_of_today_multiplies_bfloat16():
    assert fast_bfloat16("cuda")
