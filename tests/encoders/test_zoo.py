"""Architectures by name: options, seeds, libraries, and what happens without a network."""

from __future__ import annotations

import urllib.error

import pytest
import timm
import torch
from torch import nn

from ssl_wm.encoders.encoder import Preprocessing
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.encoders.names import Spec, is_architecture, parse_spec, with_width
from ssl_wm.encoders.properties import encoder_digest, width_of
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.errors import ConfigError, EncoderError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("convnet-s", Spec("convnet-s")),
        ("timm/x?random", Spec("timm/x", random=True)),
        ("timm/x?seed=0", Spec("timm/x", random=True, seed=0)),
        ("timm/x?random&size=64", Spec("timm/x", random=True, size=64)),
        ("a b.pt?arch=torchvision/resnet18", Spec("a b.pt", arch="torchvision/resnet18")),
        ("x.pt?arch=", Spec("x.pt")),
        ("timm/x+64?seed=1", Spec("timm/x+64", random=True, seed=1)),
        ("x.pt?arch=convnet-xs+64?size=8", Spec("x.pt", arch="convnet-xs+64?size=8")),
    ],
)
def test_a_spec_comes_apart_into_its_options(text, spec):
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("convnet-s?sed=1", "did you mean 'seed'"),
        ("convnet-s?seed=-1", "whole number from 0"),
        ("convnet-s?seed=one", "whole number"),
        ("convnet-s?size=0", "whole number from 1"),
        ("convnet-s?random=3", "\\?seed=3"),
    ],
)
def test_a_wrong_option_is_explained(text, says):
    with pytest.raises((ConfigError, EncoderError), match=says):
        load_encoder(text)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("convnet-z", "did you mean 'convnet-s'"),
        ("timm/resnet10x", "'resnet10t'"),
        ("torchvision/resnet81", "'resnet18'"),
        ("torchvision/fasterrcnn_resnet50_fpn", "unknown torchvision model"),
        ("timm/resnet18.no_such_tag", "no_such_tag"),
    ],
)
def test_an_unknown_architecture_names_the_nearest_in_one_line(name, says):
    with pytest.raises((ConfigError, EncoderError), match=says) as caught:
        build_encoder(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("arch", ["convnet-xs", "timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(arch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = encoder_digest(build_encoder(arch, seed=1))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert encoder_digest(build_encoder(arch, seed=1)) == one
    assert encoder_digest(build_encoder(arch, seed=2)) != one


def test_the_spec_and_the_function_agree_on_a_seed():
    from_spec = load_encoder("convnet-xs?seed=7")
    assert encoder_digest(from_spec) == encoder_digest(build_encoder("convnet-xs", seed=7))
    assert encoder_digest(load_encoder("convnet-xs")) == encoder_digest(
        load_encoder("convnet-xs?random")
    )
    assert from_spec.made == {"stage": "random weights", "seed": 7}


@pytest.mark.parametrize(
    ("spec", "width", "size"),
    [
        ("timm/test_resnet?random&size=32", 96, 32),
        ("timm/test_vit?random", 64, 160),
        ("timm/test_vit?random&size=32", 64, 32),
        ("torchvision/squeezenet1_1?random&size=64", 512, 64),
        ("torchvision/resnet18?random&size=32", 512, 32),
        ("torchvision/mobilenet_v3_small?random&size=32", 1024, 32),
        ("torchvision/mnasnet0_5?random", 1280, 224),
        ("torchvision/shufflenet_v2_x0_5?seed=2&size=32", 1024, 32),
    ],
)
def test_library_encoders_give_features_and_not_class_scores(spec, width, size):
    encoder = load_encoder(spec)
    assert width_of(encoder) == width
    assert encoder.preprocessing.size == size
    assert encoder.arch == spec.partition("?")[0]
    assert not encoder.training


def test_preprocessing_comes_from_the_library():
    assert load_encoder("timm/test_vit?random").preprocessing == Preprocessing(
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=160
    )
    assert load_encoder("torchvision/squeezenet1_1?random").preprocessing == Preprocessing(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224
    )


def test_the_callers_preprocessing_and_input_size_win():
    own = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=40)
    assert build_encoder("timm/test_resnet", preprocessing=own).preprocessing == own
    assert build_encoder("convnet-xs", input_size=16).preprocessing.size == 16
    resized = build_encoder("convnet-xs", preprocessing=own, input_size=16).preprocessing
    assert resized == Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=16)


def test_a_seed_in_the_name_of_an_architecture_is_refused():
    with pytest.raises(EncoderError, match="seed="):
        build_encoder("convnet-s?seed=3", seed=1)


def no_network(*_args: object, **_settings: object) -> None:
    raise urllib.error.URLError("Name or service not known\nsecond line")


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18", "hf-hub:some/model"])
def test_a_failed_download_names_three_ways_out(name, monkeypatch):
    monkeypatch.setattr(timm, "create_model", no_network)
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(EncoderError, match="cannot get the weights") as caught:
        load_encoder(name)
    message = str(caught.value)
    assert all(way in message for way in ("?random", "HF_HOME", "TORCH_HOME", f"?arch={name}"))
    assert "\n" not in message


def test_random_weights_never_ask_the_network(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("socket.socket.connect", no_network)
    load_encoder("torchvision/squeezenet1_1?random")
    load_encoder("timm/test_resnet?random")


def test_published_torchvision_weights_pass_the_safe_reader_first(monkeypatch):
    from torchvision import models

    scores = models.squeezenet1_1()
    asked = []

    def cached(_url: str, **settings: object) -> dict[str, torch.Tensor]:
        asked.append(settings)
        return scores.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", cached)
    encoder = load_encoder("torchvision/squeezenet1_1")
    assert asked[0]["weights_only"] is True
    assert torch.equal(encoder.backbone.features[0].weight, scores.features[0].weight)
    assert encoder.made["stage"] == "published weights"


def test_published_timm_weights_are_asked_for_without_a_classifier(monkeypatch):
    asked = []
    real = timm.create_model

    def fetched(name: str, *, pretrained: bool, **settings: object) -> nn.Module:
        asked.append((name, pretrained, settings))
        return real(name.removeprefix("hf-hub:owner/"), **settings)

    config = ({}, "test_resnet", {})
    monkeypatch.setattr(timm, "create_model", fetched)
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda _name: config)
    assert load_encoder("timm/test_resnet").arch == "timm/test_resnet"
    assert load_encoder("hf-hub:owner/test_resnet").arch == "timm/test_resnet"
    assert [pretrained for _, pretrained, _ in asked] == [True, True]
    assert all(settings == {"num_classes": 0} for *_, settings in asked)


PROJECTED = ["convnet-xs+7", "timm/test_resnet+40", "torchvision/squeezenet1_1+600"]


@pytest.mark.parametrize("arch", PROJECTED)
def test_a_projection_is_a_linear_map_of_the_plain_architecture(arch):
    plain, _, width = arch.partition("+")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    below = build_encoder(plain, seed=4, input_size=64).eval()
    encoder = build_encoder(arch, seed=4, input_size=64).eval()
    layer = encoder.backbone.projection
    assert (encoder.arch, width_of(encoder)) == (arch, int(width))
    with torch.no_grad():
        expected = below(images) @ layer.weight.T + layer.bias
        torch.testing.assert_close(encoder(images), expected)
    encoder.train()(images).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("arch", [*PROJECTED, "convnet-xs+16+9"])
def test_a_projected_encoder_comes_back_from_its_folder_and_its_file(arch, tmp_path):
    encoder = build_encoder(arch, seed=2, input_size=32).eval()
    facts = save_encoder(encoder, tmp_path / "x")
    assert (facts.arch, facts.width) == (arch, int(arch.rpartition("+")[2]))
    again = load_encoder(tmp_path / "x")
    file = tmp_path / "x" / "encoder.safetensors"
    bare = load_encoder(f"{file}?arch={with_width(arch.rpartition('+')[0], facts.width)}?size=32")
    assert again.arch == bare.arch == arch
    assert encoder_digest(again) == encoder_digest(bare) == encoder_digest(encoder)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), encoder(images))


def test_a_projected_name_is_a_spec_like_any_other():
    digest = encoder_digest(load_encoder("convnet-xs+12?seed=3"))
    assert digest == encoder_digest(build_encoder("convnet-xs+12", seed=3))
    assert digest != encoder_digest(load_encoder("convnet-xs+12"))
    one, two = (build_encoder("convnet-xs+12", seed=seed).backbone.projection for seed in (0, 3))
    assert not torch.equal(one.weight, two.weight)
    assert load_encoder("timm/test_resnet+12?random&size=32").preprocessing.size == 32
    assert is_architecture("convnet-xs+12")
    assert not is_architecture("convnet-z+12")
    assert not is_architecture("convnet-xs+x")


def test_an_options_mark_stays_behind_the_width():
    assert with_width("timm/test_resnet?size=32", 12) == "timm/test_resnet+12?size=32"
    assert width_of(build_encoder(with_width("timm/test_resnet?size=32", 12))) == 12


def test_published_weights_lie_below_a_projection(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: real(name, **more))
    encoder = load_encoder("timm/test_resnet+12")
    assert encoder.arch == "timm/test_resnet+12"
    assert encoder.made == {"stage": "published weights", "spec": "timm/test_resnet+12"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("convnet-xs+0", "1 to 65536"),
        ("convnet-xs+65537", "1 to 65536"),
        ("convnet-z+64", "did you mean 'convnet-"),
        ("convnet-xs+", "did you mean 'convnet-xs'"),
        ("convnet-xs+wide", "did you mean 'convnet-"),
        ("timm/resnet10x+64", "'resnet10t'"),
    ],
)
def test_a_wrong_projection_is_explained_in_one_line(name, says):
    for build in (build_encoder, load_encoder):
        with pytest.raises((ConfigError, EncoderError), match=says) as caught:
            build(name)
        assert "\n" not in str(caught.value)
