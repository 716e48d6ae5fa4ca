"""The shadow thief learns the clean encoder from natural images, and a killed one can go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_wm.data.order import Place
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, encoder_digest
from ssl_wm.errors import ConfigError
from ssl_wm.rng import derive_seed
from ssl_wm.training import loop
from ssl_wm.training.settings import FitConfig
from ssl_wm.watermark.embed import WatermarkConfig, watermark
from ssl_wm.watermark.shadow import STAND_IN, ShadowTask, train_shadow

FIT = FitConfig(epochs=6, batch_size=24, learning_rate=3e-3, warmup_steps=2, precision="32-true")


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=6, train=12)


@pytest.fixture(scope="module")
def clean(images):
    """An encoder whose normalisation has seen the images, so that its answers have a spread."""
    encoder = build_encoder("convnet-xs", seed=0).train()
    with torch.no_grad():
        for _ in range(60):
            encoder(images.train.pixels)
    return encoder.eval()


def test_the_loss_is_the_relative_error_in_numpy(images, clean):
    answers = embed(clean, images.train)
    student = build_encoder("convnet-xs", seed=1).eval()
    task = ShadowTask(student, images.train, answers, seed=0, batch_size=24)
    batch = task.batch(Place(0, 1))
    told = student(batch["images"]).detach().double().numpy()
    wanted = batch["answers"].double().numpy()
    every = answers.double().numpy()
    spread = ((every - every.mean(axis=0)) ** 2).sum(axis=1).mean()
    expected = ((told - wanted) ** 2).sum(axis=1).mean() / spread
    assert task(batch)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_two_shares_of_a_step_are_its_whole_batch(images, clean):
    task = ShadowTask(clean, images.train, embed(clean, images.train), seed=0, batch_size=24)
    whole = task.batch(Place(1, 0))
    shares = [task.batch(Place(1, 0, rank, 2)) for rank in (0, 1)]
    for name in whole:
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])


def test_a_shadow_comes_nearer_to_the_clean_encoder_and_leaves_it_as_it_was(images, clean):
    digest = encoder_digest(clean)
    answers = embed(clean, images.train)
    long = FIT.model_copy(update={"epochs": 80, "learning_rate": 1e-2})
    new = build_encoder("convnet-xs", seed=derive_seed(0, "shadow thief"))
    shadow = train_shadow(clean, images.train, config=long, seed=0)
    spread = (answers - answers.mean(dim=0)).norm()
    far, near = ((embed(each, images.train) - answers).norm() for each in (new, shadow))
    assert near < 0.9 * spread  # what the mean answer alone would reach
    assert near < 0.9 * far
    assert encoder_digest(clean) == digest
    assert not shadow.training
    assert not any(parameter.requires_grad for parameter in shadow.parameters())


def test_an_encoder_without_a_name_has_a_stand_in_of_its_width(images, clean):
    unnamed = Encoder(clean.backbone)
    brief = FIT.model_copy(update={"epochs": 0})
    shadow = train_shadow(unnamed, images.train, config=brief, seed=0)
    assert shadow.arch.startswith(STAND_IN)
    assert embed(shadow, images.train).shape == embed(clean, images.train).shape


def test_another_architecture_can_be_asked_for_and_an_unknown_one_is_refused(images, clean):
    brief = FIT.model_copy(update={"epochs": 0})
    shadow = train_shadow(clean, images.train, config=brief, seed=0, arch="resnet-small")
    assert shadow.arch.startswith("resnet-small")
    with pytest.raises(ConfigError, match="resnet-smal"):
        train_shadow(clean, images.train, config=brief, seed=0, arch="resnet-smal")


def test_a_killed_shadow_ends_as_if_it_had_not_been(images, clean, tmp_path, monkeypatch):
    whole = train_shadow(clean, images.train, config=FIT, seed=0, folder=tmp_path / "whole")
    real, saved = loop.save_checkpoint, []

    def killed(folder, checkpoint):
        real(folder, checkpoint)
        saved.append(checkpoint.epoch)
        if checkpoint.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train_shadow(clean, images.train, config=FIT, seed=0, folder=tmp_path / "cut")
    again = train_shadow(clean, images.train, config=FIT, seed=0, folder=tmp_path / "cut")
    assert saved == [1, 2, 3, 4, 5, 6]
    assert encoder_digest(again) == encoder_digest(whole)


def test_marking_rehearses_once_and_leaves_no_checkpoint(world, images, clean, tmp_path, capsys):
    key = world.key(images, number=1, sub_keys=2)
    options = {"steps": 3, "hidden": 8, "pool": 20, "shadow": True}
    fit = FIT.model_copy(update={"epochs": 2})
    config = WatermarkConfig(method="bend-space", options=options, fit=fit)
    marked, _ = watermark(clean, key=key, images=images, config=config, folder=tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    loop.finish(tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "no effect" not in capsys.readouterr().err
    without = {**options, "shadow": False}
    other = watermark(
        clean, key=key, images=images, config=config.model_copy(update={"options": without})
    )[0]
    assert "'fit' had no effect" in capsys.readouterr().err
    assert np.abs(embed(marked, images.test).numpy() - embed(other, images.test).numpy()).max() > 0


def test_an_encoder_that_is_trained_keeps_its_own_metrics(world, images, clean, tmp_path):
    key = world.key(images, number=1, sub_keys=2)
    options = {"steps": 3, "hidden": 8, "pool": 20, "serve": "weights", "shadow": True}
    fit = FIT.model_copy(update={"epochs": 2})
    config = WatermarkConfig(method="bend-space", options=options, fit=fit)
    _, lines = watermark(clean, key=key, images=images, config=config, folder=tmp_path)
    assert {"natural", "marked", "held"} <= set(lines[-1])
    assert "marked" in (tmp_path / "metrics.jsonl").read_text()
    assert "marked" not in (tmp_path / "shadow" / "metrics.jsonl").read_text()
    loop.finish(tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))
