"""load_encoder sends each kind of spec to the right loader, or says in one line why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder, wrap
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import EncoderError
from ssl_wm.files import write_tensors

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class ChannelMeans(nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_an_encoder_passes_through_untouched():
    encoder = build_encoder("convnet-xs").train()
    assert load_encoder(encoder) is encoder
    assert encoder.training


@pytest.mark.parametrize(
    "thing",
    [
        ChannelMeans(),
        lambda images: images.mean(dim=(2, 3)),
        lambda images: images.numpy().mean(axis=(2, 3)),
        lambda images: {"embeddings": images.mean(dim=(2, 3))},
    ],
    ids=["module", "function", "numpy", "mapping"],
)
def test_modules_and_functions_see_the_images_unchanged(thing):
    encoder = load_encoder(thing)
    assert isinstance(encoder, Encoder)
    assert encoder.arch == "custom"
    torch.testing.assert_close(encoder(IMAGES), IMAGES.mean(dim=(2, 3)))
    pixels = (IMAGES * 255).to(torch.uint8)
    torch.testing.assert_close(encoder(pixels), (pixels / 255).mean(dim=(2, 3)))


@pytest.mark.parametrize("thing", [None, 3, ChannelMeans, np.zeros(3), object()])
def test_what_is_no_encoder_is_named(thing):
    with pytest.raises(EncoderError, match="an encoder is a spec string"):
        load_encoder(thing)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("http://user:secret@host/encoder", "no user or password"),
        ("https:///encoder", "http://HOST:PORT"),
        ("no/such/folder", "no such file or folder"),
        ("weights.pt", "no such file or folder"),
        ("weights.safetensors?arch=convnet-s", "no such file or folder"),
        ("convnet-s?arch=cnn9", "names an architecture"),
        ("~nobody-here/x", "no such file or folder"),
        ("x" * 5000 + "/y", "no such file or folder"),
    ],
)
def test_a_spec_that_names_nothing_is_explained_in_one_line(spec, says):
    with pytest.raises(EncoderError, match=says) as caught:
        load_encoder(spec)
    assert "\n" not in str(caught.value)


def test_arch_with_anything_but_a_file_is_refused():
    with pytest.raises(EncoderError, match="arch="):
        load_encoder("convnet-s", arch="cnn9")
    with pytest.raises(EncoderError, match="arch="):
        load_encoder(ChannelMeans(), arch="cnn9")


def test_a_name_wins_over_a_folder_and_a_dot_picks_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(build_encoder("resnet-small"), tmp_path / "convnet-xs")
    assert load_encoder("convnet-xs").arch == "convnet-xs"
    assert load_encoder("./convnet-xs").arch == "resnet-small"


def test_a_file_loads_with_its_architecture_beside_or_inside_the_spec(tmp_path):
    encoder = build_encoder("convnet-xs", seed=4)
    path = tmp_path / "weights.safetensors"
    write_tensors(path, encoder.backbone.state_dict())
    digest = encoder_digest(encoder)
    assert encoder_digest(load_encoder(path, arch="convnet-xs")) == digest
    assert encoder_digest(load_encoder(str(path), arch="convnet-xs")) == digest
    from_spec = load_encoder(f"{path}?arch=convnet-xs")
    assert encoder_digest(from_spec) == digest
    assert from_spec.made["file"] == "weights.safetensors"
    assert load_encoder(f"{path}?arch=convnet-xs?size=16").preprocessing.size == 16
    given = load_encoder(path, arch=build_encoder("convnet-xs", seed=5, input_size=8))
    assert given.preprocessing.size == 8
    assert given.arch == "convnet-xs"
    with pytest.raises(EncoderError, match="two architectures"):
        load_encoder(f"{path}?arch=convnet-xs", arch="cnn9")
    with pytest.raises(EncoderError, match="go with an architecture"):
        load_encoder(f"{path}?seed=3", arch="convnet-xs")


def test_a_question_mark_in_a_file_name_is_no_option(tmp_path):
    path = tmp_path / "what?.safetensors"
    write_tensors(path, build_encoder("convnet-xs").backbone.state_dict())
    assert load_encoder(str(path), arch="convnet-xs").arch == "convnet-xs"


def test_a_file_without_its_architecture_says_how_to_give_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, build_encoder("convnet-xs").backbone.state_dict())
    with pytest.raises(EncoderError, match=r"\?arch=timm/resnet18"):
        load_encoder(path)
    save_encoder(build_encoder("convnet-xs"), tmp_path)
    with pytest.raises(EncoderError, match="name its folder"):
        load_encoder(tmp_path / "encoder.safetensors")


def test_nan_weights_in_a_file_are_refused_by_name(tmp_path):
    state = build_encoder("convnet-xs").backbone.state_dict()
    state["2.bias"] = torch.full_like(state["2.bias"], torch.inf)
    write_tensors(tmp_path / "x.safetensors", state)
    with pytest.raises(EncoderError, match=r"'2\.bias' holds"):
        load_encoder(tmp_path / "x.safetensors", arch="convnet-xs")


def test_the_module_given_as_architecture_keeps_its_own_weights(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    before = target.weight.clone()
    write_tensors(tmp_path / "x.safetensors", source.state_dict())
    encoder = load_encoder(tmp_path / "x.safetensors", arch=target)
    assert torch.equal(encoder.backbone.weight, source.weight)
    assert torch.equal(target.weight, before)


def test_wrap_of_an_encoder_is_the_encoder():
    encoder = build_encoder("convnet-xs")
    assert wrap(encoder) is encoder
