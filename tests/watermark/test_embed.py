"""Marking changes the copy's weights alone, and a killed run ends as if it had not been."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest
from ssl_wm.errors import ConfigError, KeyFileError, TrainingError
from ssl_wm.training import loop
from ssl_wm.training.settings import FitConfig
from ssl_wm.watermark.embed import EMBEDDERS, WatermarkConfig, watermark

METHODS = pytest.mark.parametrize("method", list(EMBEDDERS))


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=6, train=12)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


def config(method: str = "move-target", **changes: Any) -> WatermarkConfig:
    fit = {"epochs": 1, "batch_size": 24, "learning_rate": 1e-2, "warmup_steps": 1}
    brief = {
        "mea-defender": {"mgda_every": 2},
        "bend-space": {"shadow": False, "serve": "weights", "steps": 20},
    }
    options = brief.get(method, {})
    fit |= {name: changes.pop(name) for name in list(changes) if name in FitConfig.model_fields}
    fit = FitConfig(**({"precision": "32-true"} | fit))
    return WatermarkConfig(**({"method": method, "options": options, "fit": fit} | changes))


def states(encoder: Encoder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return parameters and buffers (the normalisation statistics)."""
    return dict(encoder.backbone.named_parameters()), dict(encoder.backbone.named_buffers())


@METHODS
def test_marking_changes_all_weights_but_no_normalisation_statistics(world, images, key, method):
    clean = world.convnet()
    marked, lines = watermark(clean, key=key, images=images, config=config(method))
    before, after = states(clean), states(marked)
    assert before[0].keys() == after[0].keys()
    assert all(not torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert [line["epoch"] for line in lines] == [1]
    assert not marked.training
    assert all(parameter.requires_grad for parameter in marked.parameters())


@METHODS
@pytest.mark.parametrize("training", [True, False])
def test_the_clean_encoder_is_left_as_it_was(world, images, key, method, training):
    clean = world.convnet().requires_grad_(False).train(training)
    kept = copy.deepcopy(clean)
    watermark(clean, key=key, images=images, config=config(method))
    assert encoder_digest(clean) == encoder_digest(kept)
    assert clean.training is training
    assert clean.backbone[1].training is training
    assert not any(p.requires_grad or p.grad is not None for p in clean.parameters())


def test_training_lowers_the_loss_and_pulls_the_marks_in(world, images, key):
    clean = world.convnet()
    marked, lines = watermark(
        clean, key=key, images=images, config=config(epochs=25, composites=1.0)
    )
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1]["marked"] < lines[0]["marked"]
    assert embed(marked, images.test).shape == embed(clean, images.test).shape


def test_what_was_done_is_written_into_the_encoder(world, images, key):
    clean = world.convnet()
    marked, _ = watermark(
        clean, key=key, images=images, config=config(options={"spread": 0.5}, epochs=0)
    )
    assert marked.made["stage"] == "watermark"
    assert marked.made["clean"] == encoder_digest(clean) == encoder_digest(marked)
    assert marked.made["key"] == key.commitment
    assert marked.made["options"]["spread"] == 0.5
    assert key.secret.hex() not in repr(marked.made)


def kill_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.save_checkpoint

    def save(folder: Any, checkpoint: Any) -> None:
        real(folder, checkpoint)
        if checkpoint.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save)


@METHODS
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_killed_and_resumed_run_ends_in_exactly_the_same_weights(
    world, images, key, method, precision, tmp_path, monkeypatch
):
    clean, settings = world.convnet(), config(method, epochs=3, precision=precision)
    whole, lines = watermark(clean, key=key, images=images, config=settings)
    with monkeypatch.context() as patch:
        kill_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            watermark(clean, key=key, images=images, config=settings, folder=tmp_path)
    torch.manual_seed(99)
    epochs = []
    with monkeypatch.context() as patch:
        real = loop._epoch
        patch.setattr(loop, "_epoch", lambda *args: epochs.append(args[5]) or real(*args))
        resumed, again = watermark(clean, key=key, images=images, config=settings, folder=tmp_path)
    assert epochs == [2]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    last = [{k: v for k, v in line.items() if k != "seconds"} for line in (lines[-1], again[-1])]
    assert last[0] == last[1]


def test_a_checkpoint_of_another_key_or_setting_is_refused(
    world, images, key, tmp_path, monkeypatch
):
    clean, settings = world.convnet(), config(epochs=2)
    with monkeypatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            watermark(clean, key=key, images=images, config=settings, folder=tmp_path)
    other_key = world.key(images, number=2, sub_keys=2)
    other_clean = world.convnet(seed=3)
    for changed in (
        {"key": other_key}, {"clean": other_clean}, {"config": config(epochs=2, seed=1)},
        {"config": config(epochs=2, options={"shift": 0.5})},
    ):  # fmt: skip
        given = {"clean": clean, "key": key, "config": settings} | changed
        with pytest.raises(TrainingError, match="other settings"):
            watermark(given.pop("clean"), images=images, folder=tmp_path, **given)


def test_a_key_for_other_images_is_refused_before_training(world, key):
    with pytest.raises(KeyFileError, match="other images"):
        watermark(world.convnet(), key=key, images=world.images(groups=6, train=12, seed=1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "move_target"}, "did you mean 'move-target'"),
        ({"options": {"hiden": 1}}, "unknown bend-space option 'hiden'; did you mean 'hidden'"),
        ({"options": {"hidden": -1}}, "bend-space: hidden: .* got -1"),
        (
            {"method": "mea-defender", "options": {"combination": False, "verification": False}},
            "mea-defender: options: .*nothing marks the encoder",
        ),
    ],
    ids=str,
)
def test_unknown_methods_and_options_are_one_clear_line(world, images, key, settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        watermark(world.convnet(), key=key, images=images, config=WatermarkConfig(**settings))
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(world, images, key):
    with pytest.raises(TrainingError, match="not finite at epoch"):
        watermark(
            world.convnet(), key=key, images=images,
            config=config(epochs=3, learning_rate=1e30, optimiser="sgd"),
        )  # fmt: skip


def test_any_encoder_can_be_marked_not_only_ours(world, images, key):
    from torch import nn

    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 6, 2, stride=2), nn.GroupNorm(2, 6), nn.GELU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(96, 10),
    )  # fmt: skip
    marked, lines = watermark(
        Encoder(backbone).eval(), key=key, images=images, config=config(epochs=2)
    )
    assert embed(marked, images.test).shape == (96, 10)
    again, same = watermark(
        Encoder(backbone).eval(), key=key, images=images, config=config(epochs=2)
    )
    assert encoder_digest(again) == encoder_digest(marked)
    assert [line["loss"] for line in lines] == [line["loss"] for line in same]
