"""A saved encoder comes back bit by bit, or not at all."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_wm.encoders.encoder import Encoder, EncoderFacts, Preprocessing
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.encoders.saved import read_facts, save_encoder
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.errors import EncoderError, OutputError
from ssl_wm.files import sha256_file

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@functools.cache
def saved() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ssl-wm-test-")) / "encoder"
    save_encoder(build_encoder("convnet-xs", seed=3), folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _tidy():
    yield
    if saved.cache_info().currsize:
        shutil.rmtree(saved().parent)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(saved(), tmp_path / "encoder"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "encoder.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item != "gone"}))


@pytest.mark.parametrize(
    "spec",
    ["convnet-xs", "timm/test_resnet?random&size=32", "timm/test_vit?random&size=32",
     "torchvision/squeezenet1_1?random&size=64", "torchvision/mnasnet0_5?random&size=32"],
)  # fmt: skip
@torch.inference_mode()
def test_an_encoder_comes_back_with_the_same_embeddings(spec, tmp_path):
    encoder = load_encoder(spec)
    encoder.made = {"stage": "pretrain", "epochs": 3}
    facts = save_encoder(encoder, tmp_path / "out")
    again = load_encoder(str(tmp_path / "out"))
    assert torch.equal(again(IMAGES), encoder(IMAGES))
    assert encoder_digest(again) == encoder_digest(encoder)
    assert (again.arch, again.preprocessing, again.made) == (
        encoder.arch, encoder.preprocessing, encoder.made,
    )  # fmt: skip
    assert not again.training
    assert facts == read_facts(tmp_path / "out")
    assert facts.sha256 == sha256_file(tmp_path / "out" / "encoder.safetensors")


def test_saving_leaves_the_encoder_and_its_mode_alone(tmp_path):
    encoder = build_encoder("convnet-xs").train()
    before = encoder_digest(encoder)
    assert isinstance(save_encoder(encoder, tmp_path), EncoderFacts)
    assert encoder.training
    assert encoder_digest(encoder) == before


def test_saving_again_replaces_the_encoder(folder):
    save_encoder(build_encoder("resnet-small", seed=1), folder)
    assert load_encoder(folder).arch == "resnet-small"


def test_a_save_cut_off_before_the_description_does_not_load(folder, monkeypatch):
    def crash(*_args: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr("ssl_wm.encoders.saved.write_json", crash)
    with pytest.raises(OutputError):
        save_encoder(build_encoder("convnet-xs", seed=9), folder)
    with pytest.raises(EncoderError, match="SHA-256"):
        load_encoder(folder)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_truncated_weights_never_load(data):
    content = (saved() / "encoder.safetensors").read_bytes()
    edges = st.sampled_from([0, 1, 7, 8, 9, 100, len(content) - 1])
    cut = data.draw(edges | st.integers(0, len(content) - 1))
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(saved(), Path(name) / "x"))
        (copy / "encoder.safetensors").write_bytes(content[:cut])
        with pytest.raises(EncoderError, match="truncated"):
            load_encoder(copy)
        bare = Path(name) / "bare.safetensors"
        bare.write_bytes(content[:cut])
        with pytest.raises(EncoderError, match="not a whole safetensors"):
            load_encoder(bare, arch="convnet-xs")


@settings(max_examples=20, deadline=None)
@given(st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_never_loads(position, bit):
    content = bytearray((saved() / "encoder.safetensors").read_bytes())
    content[position % len(content)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(saved(), Path(name) / "x"))
        (copy / "encoder.safetensors").write_bytes(content)
        with pytest.raises(EncoderError, match="SHA-256"):
            load_encoder(copy)


def test_nan_weights_are_neither_saved_nor_loaded(folder, tmp_path, monkeypatch):
    encoder = build_encoder("convnet-xs")
    with torch.no_grad():
        encoder.backbone[2].weight[3] = torch.nan
    with pytest.raises(EncoderError, match=r"'2\.weight' holds 1 NaN"):
        save_encoder(encoder, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    monkeypatch.setattr("ssl_wm.encoders.saved.check_finite", lambda *_args, **_settings: None)
    save_encoder(encoder, folder)
    monkeypatch.undo()
    with pytest.raises(EncoderError, match=r"'2\.weight' holds 1 NaN"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 64}, "promises embeddings of width 64 and gives 128"),
        ({"width": "128"}, "damaged"),
        ({"width": "gone"}, "damaged: KeyError 'width'"),
        ({"format": "other"}, "format 'ssl-wm encoder'"),
        ({"version": 2}, "upgrade ssl-wm"),
        ({"arch": "convnet-l"}, "of another shape"),
        ({"arch": "cnn9"}, "does not fit the architecture 'cnn9'"),
        ({"made": None}, "damaged"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 0], "size": None}}, "above 0"),
        ({"preprocessing": {"mean": [0, 0], "std": [1, 1, 1], "size": None}}, "three finite"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "size": 0}}, "at least 1"),
        ({"preprocessing": [1]}, "damaged"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_an_error(folder, changes, says):
    edit(folder, **changes)
    with pytest.raises(EncoderError, match=says) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_description_is_an_error(folder, content):
    (folder / "encoder.json").write_bytes(content)
    with pytest.raises(EncoderError, match=r"encoder\.json"):
        load_encoder(folder)


def test_missing_files_are_named(folder):
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"encoder\.safetensors"):
        load_encoder(folder)
    (folder / "encoder.json").unlink()
    with pytest.raises(EncoderError, match=r"no encoder\.json"):
        load_encoder(folder)


def test_the_folder_above_a_saved_encoder_names_it(folder):
    with pytest.raises(EncoderError, match=r"did you mean .*encoder"):
        load_encoder(folder.parent)


def test_the_wrong_width_for_the_caller_is_an_error(folder):
    assert load_encoder(folder, width=128).arch == "convnet-xs"
    with pytest.raises(EncoderError, match="has width 128; width 256 was expected"):
        load_encoder(folder, width=256)


def test_another_architecture_than_the_saved_one_is_refused(folder):
    assert load_encoder(folder, arch="convnet-xs").arch == "convnet-xs"
    with pytest.raises(EncoderError, match="not 'cnn9'"):
        load_encoder(folder, arch="cnn9")


def test_a_custom_network_with_tied_weights_comes_back_through_a_module(tmp_path):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.Linear(3, 3))
    module[3].weight = module[2].weight
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=8)
    encoder = Encoder(module, preprocessing=preprocessing)
    save_encoder(encoder, tmp_path)
    with pytest.raises(EncoderError, match="custom architecture"):
        load_encoder(tmp_path)
    empty = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.Linear(3, 3))
    again = load_encoder(tmp_path, arch=empty)
    assert torch.equal(again(IMAGES), encoder(IMAGES))
    assert not torch.equal(empty[2].weight, module[2].weight)


def test_a_function_cannot_be_saved(tmp_path):
    with pytest.raises(EncoderError, match="without weights"):
        save_encoder(load_encoder(lambda images: images.mean((2, 3))), tmp_path)
