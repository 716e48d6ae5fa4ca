"""Batches made ahead of need are the batches of need; pixels go where they fit."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image

from ssl_wm.data import sources
from ssl_wm.data.sources import open_images
from ssl_wm.errors import DataError
from ssl_wm.training import feeding
from ssl_wm.training.feeding import in_turn, on_its_way, resident
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, pretrain
from ssl_wm.training.settings import FitConfig

CPU = torch.device("cpu")


def made(step: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(step)}


@pytest.fixture
def folder(tmp_path):
    stream = torch.Generator().manual_seed(0)
    for number in range(16):
        place = tmp_path / "images" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (16, 16, 3), generator=stream, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number:02d}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_every_batch_comes_once_and_in_order(steps, ahead):
    found = [int(batch["step"]) for batch in in_turn(made, steps=steps, ahead=ahead)]
    assert found == list(range(steps))


def test_the_next_batch_is_made_while_one_is_worked_on():
    asked, next_one = [], threading.Event()

    def make(step):
        asked.append((step, threading.current_thread().name))
        if step == 1:
            next_one.set()
        return made(step)

    batches = in_turn(make, steps=3, ahead=True)
    next(batches)
    assert next_one.wait(timeout=20)  # nobody has asked for it yet
    assert [int(batch["step"]) for batch in batches] == [1, 2]
    assert [step for step, _ in asked] == [0, 1, 2]
    assert [name.startswith("batches") for _, name in asked] == [False, True, True]


def test_what_fails_ahead_is_raised_when_its_batch_is_due():
    def make(step):
        if step == 1:
            raise DataError("gone")
        return made(step)

    batches = in_turn(make, steps=3, ahead=True)
    assert int(next(batches)["step"]) == 0
    with pytest.raises(DataError, match="gone"):
        next(batches)


def test_a_run_that_stops_early_leaves_no_thread_behind():
    batches = in_turn(made, steps=9, ahead=True)
    next(batches)
    batches.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("batches")]


def test_a_run_on_streamed_images_is_that_on_images_in_memory(folder, monkeypatch):
    config = PretrainConfig(arch="convnet-xs", fit=FitConfig(epochs=2, batch_size=4))
    held = open_images(str(folder)).train
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    streamed = open_images(str(folder)).train
    assert (held.streamed, streamed.streamed) == (False, True)
    names = []
    real = feeding.in_turn

    def noted(make, *, steps, ahead):
        names.append(ahead)
        return real(make, steps=steps, ahead=ahead)

    monkeypatch.setattr("ssl_wm.training.loop.in_turn", noted)
    first, second = (pretrain(images, config=config)[0] for images in (held, streamed))
    assert names == [False, False, True, True]
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_file_that_is_gone_in_the_middle_of_a_run_is_named(folder, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    images = open_images(str(folder)).train
    config = PretrainConfig(arch="convnet-xs", fit=FitConfig(epochs=1, batch_size=4))
    real = PretrainTask.after_step

    def then_lose(self, *, progress):
        real(self, progress=progress)
        for path in folder.rglob("*.png"):
            path.unlink()

    monkeypatch.setattr(PretrainTask, "after_step", then_lose)
    with pytest.raises(DataError, match=r"\.png: "):
        pretrain(images, config=config)


def test_on_a_cpu_images_and_batches_stay_what_they_are(folder):
    images, batch = open_images(str(folder)).train, made(3)
    assert resident(images, device=CPU) is images
    assert on_its_way(batch, device=CPU) is batch


class Gpu:
    """What ``resident`` asks of a set of images, with a note of where they went."""

    def __init__(self, *, streamed: bool = False) -> None:
        self.pixels, self.streamed, self.went = torch.zeros(10, 3, 4, 4), streamed, []

    def to(self, device):
        self.went.append(str(device))
        return self


@pytest.mark.parametrize(
    ("free", "streamed", "goes"), [(960, False, True), (959, False, False), (960, True, False)]
)
def test_images_go_to_a_gpu_where_they_take_at_most_half_of_what_is_free(
    free, streamed, goes, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    images = Gpu(streamed=streamed)
    assert resident(images, device=torch.device("cuda:0")) is images
    assert images.went == (["cuda:0"] if goes else [])


@pytest.mark.gpu
def test_no_step_of_pretraining_waits_for_the_gpu(folder):
    images = open_images(str(folder)).train
    config = PretrainConfig(arch="convnet-xs", fit=FitConfig(epochs=2, batch_size=4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pretrain(images, config=config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
