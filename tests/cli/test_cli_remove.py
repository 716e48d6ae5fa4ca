"""``ssl-wm remove``: an attempt to wash a mark off at the command line, and what is left of it."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_wm.cli import main
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.files import read_json
from ssl_wm.removal.given import RemovalConfig
from ssl_wm.removal.remove import remove
from ssl_wm.training.settings import FitConfig

CLEAN = "convnet-xs?seed=1"
ONE_EPOCH = FitConfig(epochs=1, batch_size=50, warmup_steps=0, precision="32-true")
CONFIG = """
images: {spec: digits, limit: 100}
removal: {sample: 50, fit: {epochs: 1, batch_size: 50, warmup_steps: 0, precision: 32-true}}
"""


@pytest.fixture
def call(tmp_path, capsys):
    """Return a function that runs ``remove`` into a folder and returns (code, answer, errors)."""
    config = tmp_path / "my.yaml"
    config.write_text(CONFIG)

    def run(*words: object, out: str = "washed", told: bool = True):
        told_words = ("--config", config) if told else ()
        line = ["remove", "--encoder", CLEAN, *words, *told_words, "--out", tmp_path / out]
        with pytest.raises(SystemExit) as ended:
            main([*(str(word) for word in line), "--json"])
        answer, errors = capsys.readouterr()
        return ended.value.code, json.loads(answer) if answer else {}, errors

    return run


@pytest.mark.parametrize(
    ("attempt", "strengths"), [("prune", [0.5]), ("ftal", [1e-3]), ("prune+ssl", [0.3, 1e-3])]
)
def test_the_command_gives_the_encoder_that_python_gives(attempt, strengths, call, tmp_path):
    flags = [word for strength in strengths for word in ("--strength", strength)]
    code, answer, errors = call("--attempt", attempt, *flags, "--seed", 3)
    assert code == 0, errors
    images = open_images("digits", limit=100).train
    same = remove(
        load_encoder(CLEAN), attempt=attempt, strength=strengths, images=images, seed=3,
        config=RemovalConfig(sample=50, fit=ONE_EPOCH),
    )  # fmt: skip
    saved = load_encoder(tmp_path / "washed")
    for name, value in same.backbone.state_dict().items():
        assert torch.equal(saved.backbone.state_dict()[name], value), name
    assert saved.made["attempt"] == answer["attempt"] == attempt
    assert saved.made["strength"] == answer["strength"] == strengths
    assert (saved.made["seed"], saved.made["from"]) == (3, encoder_digest(load_encoder(CLEAN)))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_attempt_that_looks_at_no_image_asks_for_none(call, tmp_path):
    code, _, errors = call("--attempt", "round-weights", "--strength", 4, told=False)
    assert code == 0, errors
    settings = read_json(tmp_path / "washed" / "settings.json", what="settings")
    assert settings["images"] is None
    code, _, errors = call("--attempt", "ftll", "--strength", 1e-3, told=False, out="other")
    assert (code, "needs labels of the thief" in errors) == (2, True)
    assert not list((tmp_path / "other").iterdir())


def test_a_finished_folder_is_kept_and_another_strength_is_no_continuation(call, tmp_path):
    call("--attempt", "prune", "--strength", 0.5)
    before = (tmp_path / "washed" / "encoder.safetensors").stat().st_mtime_ns
    code, answer, _ = call("--attempt", "prune", "--strength", 0.5, "--resume")
    assert (code, answer["strength"]) == (0, [0.5])
    code, _, errors = call("--attempt", "prune", "--strength", 0.6, "--resume")
    assert (code, "inputs.strength was [0.5], now [0.6]" in errors) == (2, True)
    assert (tmp_path / "washed" / "encoder.safetensors").stat().st_mtime_ns == before


def test_an_attempt_that_fails_leaves_the_folder_free_for_the_next(call, tmp_path):
    code, _, errors = call("--attempt", "pca-leading", "--strength", 500)
    assert (code, "take fewer" in errors) == (2, True)
    code, _, errors = call("--attempt", "pca-leading", "--strength", 5)
    assert code == 0, errors
    assert load_encoder(tmp_path / "washed").made["attempt"] == "pca-leading"
