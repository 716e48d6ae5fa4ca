"""Whatever a user gets wrong: one clear line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssl_wm.cli import main
from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.files import sha256_file

ROOT = Path(__file__).parents[2]
DIGITS = ("--images", "digits", "--limit", "100")
PRUNE = ("--encoder", "convnet-xs", "--attempt", "prune")


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., str]:
    """Return a function that runs a command in this process and returns its one line of error."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ssl-wm", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, err
        return one_line(out, err)

    return run


def one_line(out: str, err: str) -> str:
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("ssl-wm: error: ")
    assert "Traceback" not in err
    assert len(err) < 1000
    return err


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with an encoder ``clean`` and a key ``owner.key`` for some digits."""
    folder = tmp_path_factory.mktemp("made")
    save_encoder(build_encoder("convnet-xs", seed=1), folder / "clean")
    (folder / "steps.yaml").write_text("key: {autoencoder_steps: 0}")
    with pytest.raises(SystemExit) as ended:
        main(["keygen", *DIGITS, "--config", str(folder / "steps.yaml"),
              "--out", str(folder / "owner.key")])  # fmt: skip
    assert ended.value.code == 0
    return folder


def pictures(folder: Path, *, classes: int = 2, count: int = 4) -> Path:
    """Fill ``folder`` with small grey images, ``count`` in each class folder."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(count):
            grey = 20 * number + 90 * label
            Image.new("RGB", (8, 8), (grey, grey, 10 * number)).save(
                folder / f"class{label}" / f"{number}.png"
            )
    return folder


def probe(call, encoder: object, *images: object) -> str:
    return call("probe", "--encoder", encoder, *(images or DIGITS))


def verify(call, made: Path, *words: object, key: object = None, suspect: object = None) -> str:
    return call(
        "verify", "--key", key or made / "owner.key", "--suspect", suspect or made / "clean",
        "--null", made / "clean", *(words or DIGITS),
    )  # fmt: skip


# --- images -------------------------------------------------------------------------------


def test_a_missing_folder(call, made, tmp_path):
    told = probe(call, made / "clean", "--images", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in told


def test_a_folder_without_classes(call, made, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    told = probe(call, made / "clean", "--images", tmp_path)
    assert "no class folders" in told


def test_an_empty_folder(call, made, tmp_path):
    assert "is empty" in probe(call, made / "clean", "--images", tmp_path)


def test_a_corrupt_image_is_named(call, made, tmp_path):
    pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "class1" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    told = probe(call, made / "clean", "--images", tmp_path / "pictures")
    assert "class1/2.png" in told
    assert "1 of 8 images" in told


def test_one_class_cannot_be_probed(call, made, tmp_path):
    told = probe(call, made / "clean", "--images", pictures(tmp_path / "one", classes=1))
    assert "at least two classes" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "torchvision/CIFAR11"], "did you mean 'CIFAR10'?"),
        (["--images", "s3://bucket"], "unknown scheme 's3:'"),
        (["--images", "digits", "--limit", "0"], "images.limit"),
        (["--images", "digits", "--size", "1"], "images.size"),
        ([], "--images"),
    ],
)
def test_images_that_are_none(words, told, call, made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert told in call("probe", "--encoder", made / "clean", *words)


def test_a_data_set_that_is_not_there(call, made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = probe(call, made / "clean", "--images", "torchvision/CIFAR10")
    assert "torchvision/CIFAR10 is not in data" in told
    assert "download" in told


# --- encoders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("convnet-z", "did you mean 'convnet-"),
        ("timm/resnet18q?random", "unknown timm model 'resnet18q'"),
        ("torchvision/resnet81?random", "unknown torchvision model 'resnet81'"),
        ("./nothing/here", "no such file or folder"),
        ("convnet-s?sed=3", "did you mean 'seed'?"),
        ("http://user:secret@example.org/embed", "no user or password"),
        ("", "empty"),
    ],
)
def test_an_unknown_encoder(spec, told, call):
    assert told in probe(call, spec)


def test_an_encoder_of_the_wrong_width(call, made, tmp_path):
    save_encoder(build_encoder("convnet-xs"), tmp_path / "wide")
    path = tmp_path / "wide" / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 256}))
    told = verify(call, made, suspect=tmp_path / "wide")
    assert "width 256" in told
    assert "128" in told


def test_weights_of_another_width_than_the_architecture(call, tmp_path):
    save_file(build_encoder("convnet-xs").backbone.state_dict(), tmp_path / "narrow.safetensors")
    told = probe(call, f"{tmp_path / 'narrow.safetensors'}?arch=convnet-s")
    assert "does not fit the architecture 'convnet-s'" in told


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_that_are_not_a_number(kind, call, tmp_path):
    save_encoder(build_encoder("convnet-xs"), tmp_path / "sick")
    weights = tmp_path / "sick" / "encoder.safetensors"
    state = load_file(weights)
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[3] = float("nan")
    save_file(state, weights)
    spec = f"{weights}?arch=convnet-xs"
    if kind == "folder":
        path = tmp_path / "sick" / "encoder.json"
        facts = json.loads(path.read_text()) | {"sha256": sha256_file(weights)}
        path.write_text(json.dumps(facts))
        spec = str(tmp_path / "sick")
    told = probe(call, spec)
    assert f"'{name}' holds 1 NaN or infinite values" in told


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_truncated_safetensors_file(kind, call, tmp_path):
    save_encoder(build_encoder("convnet-xs"), tmp_path / "cut")
    weights = tmp_path / "cut" / "encoder.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    told = probe(call, tmp_path / "cut" if kind == "folder" else f"{weights}?arch=convnet-xs")
    assert str(weights) in told
    assert re.search("truncated|not a whole safetensors file", told)


class Hostile:
    """A pickle of this runs a program that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
def test_a_hostile_pickle_is_refused_and_not_run(suffix, call, tmp_path):
    path, trace = tmp_path / f"weights.{suffix}", tmp_path / "trace"
    torch.save({"state_dict": {"w": torch.zeros(2), "x": Hostile(trace)}}, path)
    told = probe(call, f"{path}?arch=convnet-xs")
    assert "was refused, and nothing in it was run" in told
    assert "system" in told
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Hostile(trace)))
    probe(call, f"{path}?arch=convnet-xs")
    assert not trace.exists()


# --- keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--limit", "90"), ("--limit", "100", "--size", "16")])
def test_a_key_for_other_data(words, call, made, tmp_path):
    told = verify(call, made, "--images", "digits", *words)
    assert "this key was made for other images" in told
    told = call("watermark", "--encoder", made / "clean", "--key", made / "owner.key",
                "--images", "digits", *words, "--out", tmp_path / "x")  # fmt: skip
    assert "this key was made for other images" in told


def damage(text: str) -> str:
    return text[: len(text) // 2]


def by_hand(text: str) -> str:
    value = json.loads(text)
    last = value["secret"][-1]
    return json.dumps(value | {"secret": value["secret"][:-1] + ("0" if last != "0" else "1")})


def newer(text: str) -> str:
    return json.dumps(json.loads(text) | {"version": 99})


def short(text: str) -> str:
    return json.dumps(json.loads(text) | {"secret": "abcd"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damage, "is not JSON"), (by_hand, "was changed after it was made"),
        (newer, "version 99"), (short, "is damaged"), (lambda _: "[]", "is not a watermark key"),
        (lambda _: '{"format": "ssl-wm-key", "version": 2}', "is damaged"),
    ],
)  # fmt: skip
def test_a_key_that_was_damaged_or_edited(change, told, call, made, tmp_path):
    key = tmp_path / "bad.key"
    key.write_text(change((made / "owner.key").read_text()))
    assert told in verify(call, made, key=key)


def test_a_key_that_is_missing_or_a_folder(call, made, tmp_path):
    assert "does not exist" in verify(call, made, key=tmp_path / "none.key")
    assert "is a folder" in verify(call, made, key=tmp_path)


def test_more_sub_keys_than_the_groups_allow(call, made, tmp_path):
    words = ("--config", made / "steps.yaml", "--out", tmp_path / "k")
    told = call("keygen", *DIGITS, "--sub-keys", "4", *words)
    assert "4 sub-keys need 12 groups" in told
    assert not (tmp_path / "k").exists()


# --- settings -----------------------------------------------------------------------------


def test_an_unknown_setting_names_the_nearest(call, made, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("steal: {atack: mse}")
    told = probe(call, made / "clean", *DIGITS, "--config", path)
    assert f"{path}: unknown setting 'steal.atack'; did you mean 'attack'?" in told


def test_a_config_that_is_missing(call, made, tmp_path):
    told = probe(call, made / "clean", *DIGITS, "--config", tmp_path / "none.yaml")
    assert "none.yaml does not exist" in told


@pytest.mark.parametrize("alpha", ["0", "1", "-0.1", "2", "nan"])
def test_an_alpha_out_of_range(alpha, call, made):
    assert "verify.alpha" in verify(call, made, *DIGITS, "--alpha", alpha)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["steal", "--victim", "convnet-xs", "--attack", "cosin"],
         "unknown attack 'cosin'; did you mean 'cosine'? Known: mse"),
        (["steal", "--victim", "convnet-xs", "--arch", "convnt-s"], "did you mean 'convnet-s'?"),
        (["steal", "--victim", "convnet-xs", "--budget", "5000"], "5000"),
        (["steal", "--victim", "convnet-xs", "--epochs", "-1"], "steal.fit.epochs"),
        (["remove", *PRUNE, "--strength", "2"], "a number from 0 to 0.999"),
        (["remove", *PRUNE, "--strength", "0.1", "--strength", "0.2"], "as many strengths; got 2"),
        (["remove", "--encoder", "convnet-xs", "--attempt", "prun", "--strength", "0.1"],
         "did you mean 'prune'?"),
        (["remove", "--encoder", "convnet-xs", "--attempt", "prune+blur", "--strength", "0.1",
          "--strength", "1"], "'blur' leaves the weights as they are"),
        (["pretrain"], "--arch"),
        (["pretrain", "--arch", "cnn9", "--objective", "simcrl"], "did you mean 'simclr'?"),
        (["pretrain", "--arch", "cnn8"], "did you mean 'cnn9'?"),
    ],
)  # fmt: skip
def test_a_name_or_number_that_is_none(words, told, call, tmp_path):
    assert told in call(*words, *DIGITS, "--out", tmp_path / "x")
    assert not list(tmp_path.glob("x/*")), "the corrected call finds --out not empty"


def test_an_unknown_method_and_an_unknown_option_of_a_method(call, made, tmp_path):
    words = ("watermark", "--encoder", made / "clean", "--key", made / "owner.key", *DIGITS)
    told = call(*words, "--method", "move-targt", "--out", tmp_path / "x")
    assert "did you mean 'move-target'?" in told
    path = tmp_path / "my.yaml"
    path.write_text("watermark: {method: move-target, options: {shfit: 2}}")
    told = call(*words, "--config", path, "--out", tmp_path / "x")
    assert "shfit" in told
    assert "shift" in told


def test_a_story_with_an_unknown_setting(call, tmp_path):
    path = tmp_path / "story.yaml"
    path.write_text("keys: {owner: {}}\nencoders: {clean: {pretrain: {}}}\nsed: 3\n")
    told = call("bench", "--config", path, "--out", tmp_path / "x")
    assert "unknown setting 'sed'; did you mean 'seed'?" in told
    told = call("demo", "--config", tmp_path / "none.yaml", "--out", tmp_path / "x")
    assert "none.yaml does not exist" in told


# --- as a program -------------------------------------------------------------------------


def test_the_program_itself_refuses_a_hostile_pickle(tmp_path):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    torch.save({"w": Hostile(trace)}, path)
    ran = subprocess.run(
        [sys.executable, "-m", "ssl_wm", "probe", "--encoder", f"{path}?arch=convnet-xs", *DIGITS],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 2
    assert "was refused" in one_line(ran.stdout, ran.stderr)
    assert not trace.exists()
