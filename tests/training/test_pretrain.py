"""Pretraining end to end on a few images: it learns, repeats itself, and survives a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.order import Place
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError, EncoderError, TrainingError
from ssl_wm.training.objectives import OBJECTIVES, Objective
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, build_objective, pretrain
from ssl_wm.training.settings import FitConfig

EPOCHS = 5


def image_set(count: int = 48, size: int = 16) -> ImageSet:
    """Blobs of a few colours, so that there is something to tell apart."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    pixels = colours.repeat_interleave(size // 4, dim=2).repeat_interleave(size // 4, dim=3)
    return ImageSet("x", "train", pixels.contiguous(), torch.arange(count) % 2, ("a", "b"))


def config(objective: str = "simclr", **changes: object) -> PretrainConfig:
    settings = {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 2e-3} | changes
    return PretrainConfig(arch="convnet-xs", objective=objective, fit=FitConfig(**settings))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_objective_trains_in_every_precision(objective, precision):
    trained = config(objective, precision=precision, epochs=40, warmup_steps=2)
    encoder, lines = pretrain(image_set(), config=trained)
    assert len(lines) == 40
    last = sum(line["loss"] for line in lines[-10:]) / 10  # one epoch's loss of 48 images is noise
    assert last < lines[0]["loss"] - 0.1 or objective == "moco"  # its queue grows harder
    assert not encoder.training
    assert encoder(torch.rand(2, 3, 16, 16)).isfinite().all()
    assert encoder.arch == "convnet-xs"
    assert encoder.made["stage"] == "pretrain"
    assert encoder.made["config"]["objective"] == objective


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    short = config().model_copy(update={"fit": FitConfig(epochs=1, batch_size=16)})
    first, _ = pretrain(image_set(), config=short)
    torch.manual_seed(99)
    again, _ = pretrain(image_set(), config=short, folder=tmp_path)
    other, _ = pretrain(image_set(), config=short.model_copy(update={"seed": 1}))
    assert encoder_digest(first) == encoder_digest(again)
    assert encoder_digest(first) != encoder_digest(other)


def test_a_pretrained_encoder_is_saved_and_loaded_whole(tmp_path):
    encoder, _ = pretrain(image_set(), config=config(epochs=1))
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(images), encoder(images))
    assert loaded.made["config"]["fit"]["batch_size"] == 16


class Accident(Exception):
    pass


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_resumes_bit_for_bit(objective, tmp_path, monkeypatch):
    expected, lines = pretrain(image_set(), config=config(objective))
    real = PretrainTask.batch

    def breaks(self, place):
        if place.epoch == 2:
            raise Accident
        return real(self, place)

    monkeypatch.setattr(PretrainTask, "batch", breaks)
    with pytest.raises(Accident):
        pretrain(image_set(), config=config(objective), folder=tmp_path)
    monkeypatch.undo()
    resumed, again = pretrain(image_set(), config=config(objective), folder=tmp_path)
    assert encoder_digest(resumed) == encoder_digest(expected)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


def test_a_checkpoint_of_other_images_is_not_resumed(tmp_path):
    pretrain(image_set(), config=config(epochs=1), folder=tmp_path)
    with pytest.raises(TrainingError, match="other settings"):
        pretrain(image_set(32), config=config(epochs=1), folder=tmp_path)


CHILD = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import test_pretrain as here
torch.set_num_threads(int(sys.argv[2]))
quick = here.PretrainTask.after_step
def slow(self, **settings):
    time.sleep(0.3)
    quick(self, **settings)
here.PretrainTask.after_step = slow
here.pretrain(here.image_set(), config=here.config("moco"), folder=Path(sys.argv[3]))
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path):
    folder, here = tmp_path / "run", Path(__file__)
    command = [sys.executable, "-c", CHILD, here.parent, str(torch.get_num_threads()), folder]
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
    with subprocess.Popen([*map(str, command)], env=environment) as child:
        deadline = time.monotonic() + 60
        while not (folder / "training.ckpt").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        delay = random.uniform(0, 1.5)  # of 3.6 s that are left
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    resumed, lines = pretrain(image_set(), config=config("moco"), folder=folder)
    expected, whole = pretrain(image_set(), config=config("moco"))
    assert encoder_digest(resumed) == encoder_digest(expected), f"killed after {delay} s"
    assert [line["loss"] for line in lines] == [line["loss"] for line in whole]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


class Watching(Objective):
    """Keeps the views and the momentum steps that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.views, self.moves = [], []

    def forward(self, encoder, view_a, view_b):
        self.views += [view_a, view_b]
        return view_a.mean()

    def momentum_step(self, encoder, *, progress):
        self.moves.append((encoder, progress))


def test_every_epoch_step_process_and_side_has_views_of_its_own():
    watching, images = Watching(), image_set()
    task = PretrainTask(load_encoder("convnet-xs"), watching, images, config=config())
    same = {"images": images.take(torch.arange(8))}
    for epoch, step, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        task.place = Place(epoch, step, rank, 2)
        task(same)
    *first, last_a, last_b = watching.views
    assert torch.equal(first[0], last_a)
    assert torch.equal(first[1], last_b)
    assert len(torch.stack(first).flatten(1).unique(dim=0)) == 8


def test_momentum_copies_are_moved_after_every_step():
    watching = Watching()
    task = PretrainTask(load_encoder("convnet-xs"), watching, image_set(), config=config())
    task.after_step(progress=0.25)
    assert watching.moves == [(task.encoder, 0.25)]


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'simclr'"):
        pretrain(image_set(), config=config("simclear"))


@pytest.mark.parametrize("wrong", [{"epoch": 3}, {"batch_size": 1}, {"precision": "16"}])
def test_a_wrong_setting_of_the_loop_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


def test_images_of_odd_sides_are_told_before_training():
    images = image_set()
    odd = ImageSet("x", "train", images.pixels[:, :, :15, :15], images.labels, ("a", "b"))
    with pytest.raises(EncoderError, match="even sides"):
        pretrain(odd, config=config())


def test_the_heads_depend_on_the_seed_alone():
    encoder = load_encoder("convnet-xs")
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        objective = build_objective("simclr", encoder, seed=seed, size=(16, 16))
        states.append(objective.head.layers[0].weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
