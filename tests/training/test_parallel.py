"""Two processes (gloo, CPU) train as one does, resume each other's runs, and end together."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_wm.cli import main
from ssl_wm.data.order import Place, batch_indices
from ssl_wm.data.views import ViewConfig, augment
from ssl_wm.errors import ConfigError, DataError
from ssl_wm.extraction.steal import StealConfig, steal
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.training import parallel
from ssl_wm.training.checkpoint import NAME
from ssl_wm.training.loop import fit, run_identity
from ssl_wm.training.optimiser import build_optimiser, learning_rate
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, begun, build_objective, pretrain
from ssl_wm.training.settings import FitConfig

HERE = Path(__file__)
spec = importlib.util.spec_from_file_location("parallel_runs", HERE.with_name("parallel_runs.py"))
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)

LOSS = 1e-5  # largest difference of a logged loss, which is of the order of 1
WEIGHTS = 1e-5  # and of a weight or running statistic
FIT_STEPS = 4  # of an epoch: 192 images in batches of 48
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], env={**ENVIRONMENT, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What each of two processes saw that were started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    pair = [
        start(
            [str(HERE.with_name("parallel_runs.py")), str(folder), *runs.CASES],
            RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port, **common,
        )
        for rank in "01"
    ]  # fmt: skip
    for process in pair:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", runs.CASES)
def test_two_processes_have_the_losses_and_weights_of_one(case, two, tmp_path):
    encoder, lines = runs.run(case, tmp_path)
    state, seen = encoder.state_dict(), [process[case] for process in two]
    for line, other in zip(lines, json.loads(seen[0]["lines"]), strict=True):
        assert set(line) == set(other)
        for name in set(line) - {"seconds"}:
            assert other[name] == pytest.approx(line[name], abs=LOSS), name
    for name, value in state.items():
        assert torch.equal(seen[0]["state"][name], seen[1]["state"][name]), name
        torch.testing.assert_close(seen[0]["state"][name], value, atol=WEIGHTS, rtol=1e-4)


def test_two_processes_in_two_parts_each_are_one_process_at_once_where_images_do_not_meet(two):
    encoder, lines = runs.in_parts("groups", parts=1)
    seen = [process["in parts, groups"] for process in two]
    for line, other in zip(lines, json.loads(seen[0]["lines"]), strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=LOSS)
    for name, value in encoder.state_dict().items():
        assert torch.equal(seen[0]["state"][name], seen[1]["state"][name]), name
        torch.testing.assert_close(seen[0]["state"][name], value, atol=WEIGHTS, rtol=1e-4)


def test_batch_norm_of_a_part_is_that_of_all_processes_parts(two):
    seen = [process["in parts, batches"]["state"] for process in two]
    alone = runs.in_parts("batches", parts=2)[0].state_dict()
    for name, value in alone.items():
        assert torch.equal(seen[0][name], seen[1][name]), name
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(seen[0][name], value, atol=0.02, rtol=0.02)
    steps = 2 * FIT_STEPS
    assert seen[0]["backbone.1.num_batches_tracked"] == 2 * 2 * steps  # views, parts


@pytest.mark.parametrize("kind", ["flat", "maps", "plain"])
def test_gathered_batch_norm_of_unequal_shares_is_that_of_the_whole_batch(kind, two):
    whole, shares = runs.normed(kind), [process["norms"][kind] for process in two]
    for name, value in whole.items():
        if name in ("out", "x"):
            found = torch.cat([share[name] for share in shares])
        elif name.endswith("grad"):
            found = sum(share[name] for share in shares)
        else:
            found = shares[0][name]
            assert torch.equal(found, shares[1][name])
        torch.testing.assert_close(found, value, atol=2e-6, rtol=2e-5)


def test_a_loss_that_one_process_cannot_have_is_refused_by_all_in_the_same_words(two):
    assert "epoch 1, step 2 (loss = nan)" in two[0]["refused"]
    assert two[0]["refused"] == two[1]["refused"]


def plain_run(config: PretrainConfig, images) -> tuple[nn.Module, list[float]]:
    """Pretraining written out: no Fabric, no processes, the streams of a run of one process."""
    name, encoder = begun(config)
    objective = build_objective(name, encoder, seed=config.seed, size=images.size)
    task = PretrainTask(encoder, objective, images, config=config).train()
    optimiser = build_optimiser(task, config=config.fit)
    steps, means = task.steps_per_epoch(), []
    for epoch in range(config.fit.epochs):
        total = 0.0
        for step in range(steps):
            position = epoch * steps + step
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(
                    position, total=steps * config.fit.epochs, config=config.fit
                )
            order = torch.randperm(len(images), generator=torch_stream(config.seed, "order", epoch))
            size = config.fit.batch_size
            pixels = images.take(order[step * size : (step + 1) * size])
            views = []
            for view in ("a", "b"):
                generator = torch.Generator()
                generator.manual_seed(derive_seed(config.seed, "views", view, epoch, step, 0))
                views.append(augment(pixels, config=config.views, generator=generator))
            loss = objective(encoder, *views)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            objective.momentum_step(encoder, progress=(position + 1) / (steps * config.fit.epochs))
            total += loss.item()
        means.append(round(total / steps, 6))
    return encoder, means


@pytest.mark.parametrize("objective", runs.OBJECTIVES)
def test_one_process_draws_and_computes_bit_for_bit_what_it_always_did(objective, world):
    images = world.images().train
    config = PretrainConfig(
        arch="convnet-xs", objective=objective,
        fit=FitConfig(epochs=2, batch_size=48, precision="32-true"),
    )  # fmt: skip
    encoder, lines = pretrain(images, config=config)
    expected, means = plain_run(config, images)
    for name, value in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    assert [line["loss"] for line in lines] == pytest.approx(means, abs=1.1e-6)


@pytest.mark.parametrize("share", range(3))
def test_an_images_view_does_not_depend_on_the_number_of_processes(share):
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    config = ViewConfig(crop=0.8)
    whole = augment(images, config=config, generator=torch_stream(0, "x"))
    rows = slice(4 * share, 4 * share + 4)
    own = augment(images[rows], config=config, generator=torch_stream(0, "x"), rank=share, world=3)
    torch.testing.assert_close(own, whole[rows], atol=1e-6, rtol=0)


def write_config(folder: Path, *, devices: int, batch_size: int = 32) -> Path:
    path = folder / f"{devices}.yaml"
    path.write_text(
        "images: {spec: digits, limit: 128}\n"
        "pretrain: {arch: convnet-xs, objective: byol, fit: {epochs: 6, "
        f"batch_size: {batch_size}, devices: {devices}, precision: 32-true, "
        "learning_rate: 2.0e-5, optimiser: sgd}}\n"
    )
    return path


def lines_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def command(config: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "--config", str(config), "--out", str(out), "--json", *more]


def in_this_process(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(true, *, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def same_curve(found: list[dict], expected: list[dict]) -> None:
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, abs=LOSS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_this_process(command(write_config(folder, devices=1), folder / "out")) == 0
    return folder / "out"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_run_killed_at_two_processes_leaves_none_and_resumes_at_one(whole, tmp_path):
    out = tmp_path / "out"
    running = start(["-m", "ssl_wm", *command(write_config(tmp_path, devices=2), out)])
    wait_until(lambda: (out / NAME).is_file() or running.poll() is not None)
    followers = children(running.pid)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert len(followers) == 1
    wait_until(lambda: not Path(f"/proc/{followers[0]}").exists(), seconds=20)
    assert (out / NAME).is_file()
    assert len(lines_of(out)) < 6
    again = command(write_config(tmp_path, devices=1), out, "--resume")
    assert in_this_process(again) == 0
    same_curve(lines_of(out), lines_of(whole))


def test_a_run_ended_at_one_process_is_resumed_by_two_that_print_one_object(
    whole, tmp_path, monkeypatch
):
    out, made = tmp_path / "out", PretrainTask.batch

    def stops(self, place):
        if place.epoch == 2:
            raise KeyboardInterrupt
        return made(self, place)

    monkeypatch.setattr(PretrainTask, "batch", stops)
    assert in_this_process(command(write_config(tmp_path, devices=1), out)) == 130
    monkeypatch.undo()
    assert len(lines_of(out)) == 2
    two = write_config(tmp_path, devices=2)
    running = start(["-m", "ssl_wm", *command(two, out, "--resume")])
    printed, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert json.loads(printed)["epochs"] == 6
    assert said.count("\n") == 1, said  # the progress of the first process
    same_curve(lines_of(out), lines_of(whole))
    assert not (out / NAME).exists()


FAILS = """
import os, signal, sys
import torch
from torch import nn
from ssl_wm.processes import place
from ssl_wm.training.loop import fit
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Task

class One(Task):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)
    def steps_per_epoch(self):
        return 3
    def batch(self, at):
        if at.step == 1 and place().rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL) if place().rank else sys.exit("rank 0 failed")
        return {"x": torch.ones(4, 2)}
    def forward(self, batch):
        return {"loss": self.net(batch["x"]).mean()}

fit(One(), config=FitConfig(devices=2, batch_size=4), title="x")
"""


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        pytest.param("0", "rank 0 failed", marks=pytest.mark.slow),
        ("1", "process 1 of 2 was ended by signal 9"),
    ],
)
def test_one_process_that_fails_ends_both_at_once(rank, told, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(FAILS)
    running = start([str(program), rank])
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1
    assert told in said


def test_the_number_of_processes_is_no_part_of_a_runs_identity_and_the_batch_is():
    one, many = FitConfig(), FitConfig(devices=8)
    named = [{"config": PretrainConfig(fit=fit).model_dump()} for fit in (one, many)]
    assert run_identity(one, named[0]) == run_identity(many, named[1])
    assert run_identity(one, named[0]) != run_identity(FitConfig(batch_size=128), named[0])


@pytest.mark.parametrize(("batch_size", "devices"), [(50, 4), (4, 4), (3, 2)])
def test_a_batch_that_cannot_be_shared_is_refused_before_anything_starts(batch_size, devices):
    config = FitConfig(batch_size=batch_size, devices=devices)
    with pytest.raises(ConfigError, match=f"{batch_size} images .* by {devices} processes"):
        fit(runs.Faulty(), config=config, title="x")
    with pytest.raises(DataError, match="cannot be shared equally by 2"):
        batch_indices(7, Place(0, 0, 0, 2), seed=0, batch_size=8)


def test_a_theft_by_many_processes_needs_a_folder_for_the_answers(world):
    with pytest.raises(ConfigError, match="through a folder"):
        steal(
            world.convnet(), images=world.images().train,
            config=StealConfig(fit=FitConfig(devices=2)),
        )  # fmt: skip


def test_a_command_for_one_process_refuses_many(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert in_this_process(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "trains in one process" in capsys.readouterr().err


def test_an_encoder_is_itself_again_after_its_work_was_shared(world, monkeypatch):
    encoder = world.convnet()
    task = nn.ModuleDict({"encoder": encoder})
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    shared = parallel.shared_encoders(task)
    shared.__enter__()
    assert "forward" in vars(encoder)
    with pytest.raises(KeyboardInterrupt):
        shared.gen.throw(KeyboardInterrupt)
    assert "forward" not in vars(encoder)
