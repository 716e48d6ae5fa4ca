"""The one loop: schedule, decay, guard, and runs that are resumed bit for bit."""

from __future__ import annotations

import json
import math
from hashlib import sha256

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_wm.data.order import batch_indices
from ssl_wm.errors import TrainingError
from ssl_wm.rng import torch_stream
from ssl_wm.training import loop
from ssl_wm.training.checkpoint import NAME
from ssl_wm.training.loop import finish, fit
from ssl_wm.training.optimiser import build_optimiser, learning_rate
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Task

CONFIG = FitConfig(
    epochs=4, batch_size=8, learning_rate=0.05, warmup_steps=2, precision="bf16-mixed"
)
PRECISIONS = ("32-true", "bf16-mixed")


class Fold(Task):
    """A small network with every kind of state; ``breaks`` maps (epoch, step) to an accident."""

    def __init__(self, *, seed: int = 0, breaks: dict | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6))
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.rows = torch.randn(20, 6)
        self.breaks, self.steps, self.seen = breaks or {}, 2, []
        self.average = nn.Buffer(torch.zeros(()))

    def steps_per_epoch(self) -> int:
        return self.steps

    def batch(self, place):
        accident = self.breaks.get(place[:2])
        if isinstance(accident, BaseException):
            raise accident
        chosen = batch_indices(len(self.rows), place, seed=1, batch_size=8)
        noise = torch.randn(len(chosen), 6, generator=torch_stream(1, "noise", *place[:2]))
        return {"x": self.rows[chosen] + 0.1 * noise, "factor": torch.tensor(accident or 1.0)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        fit_term = (self.net(batch["x"]) - self.frozen(batch["x"])).square().mean()
        other = batch["factor"] * self.net[0].weight.square().mean()
        return {"loss": fit_term + other, "distance": fit_term, "penalty": other}

    def after_step(self, *, progress: float) -> None:
        self.seen.append(progress)
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * self.net[0].weight.mean())


def digest(module: nn.Module) -> str:
    state = module.state_dict()
    return sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def lines_in(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(lines) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@given(st.integers(1, 300), st.integers(0, 60), st.floats(1e-5, 1.0))
def test_the_rate_follows_the_formula(total, warmup_steps, peak):
    config = FitConfig(learning_rate=peak, warmup_steps=warmup_steps)
    warmup = min(warmup_steps, total // 5)
    for step in {0, warmup - 1, warmup, total // 2, total - 2, total - 1} & set(range(total)):
        turn = (step - warmup) / max(total - warmup - 1, 1)
        expected = (
            peak * (step + 1) / warmup
            if step < warmup
            else peak * 0.5 * (1 + math.cos(math.pi * turn))
        )
        rate = learning_rate(step, total=total, config=config)
        assert type(rate) is float
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert 0 <= rate <= peak * (1 + 1e-12)


def test_the_optimiser_gets_the_scheduled_rate_at_every_step(monkeypatch):
    rates = []
    real = torch.optim.AdamW.step

    def step(self, *args, **settings):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *args, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    lines = fit(Fold(), config=CONFIG, title="x")
    expected = [learning_rate(step, total=8, config=CONFIG) for step in range(8)]
    assert rates == [[rate, rate] for rate in expected]
    assert [line["lr"] for line in lines] == expected[1::2]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_biases_and_frozen_weights_are_not_decayed(name):
    task = Fold()
    config = FitConfig(optimiser=name, weight_decay=0.3)
    optimiser = build_optimiser(task, config=config)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    net = task.net
    assert {decay[id(layer.weight)] for layer in (net[0], net[3])} == {0.3}
    assert {decay[id(p)] for p in (net[0].bias, net[3].bias, *net[1].parameters())} == {0.0}
    assert len(decay) == len(list(net.parameters()))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_every_precision_and_optimiser_brings_the_loss_down(precision, optimiser):
    config = CONFIG.model_copy(
        update={"precision": precision, "optimiser": optimiser, "epochs": 10}
    )
    task = Fold()
    before = task.frozen.weight.clone()
    lines = fit(task, config=config, title="x")
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert torch.equal(task.frozen.weight, before)
    assert all(parameter.dtype == torch.float32 for parameter in task.parameters())
    assert not task.training


def test_the_mean_losses_of_an_epoch_and_the_tasks_own_numbers_are_logged(tmp_path):
    task = Fold()
    seen, forward = [], task.forward
    task.forward = lambda batch: seen.append(forward(batch)) or seen[-1]
    task.to_log = lambda: {"own": 7.0}
    lines = fit(task, config=CONFIG, title="x", folder=tmp_path)
    assert lines_in(tmp_path) == lines
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for number, line in enumerate(lines):
        assert set(line) == {"epoch", "seconds", "lr", "loss", "distance", "penalty", "own"}
        for name in ("loss", "distance", "penalty"):
            values = [losses[name].item() for losses in seen[2 * number : 2 * number + 2]]
            assert line[name] == pytest.approx(sum(values) / 2, abs=2e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_precision_rounds_the_numbers_of_a_batch(precision):
    task, fine = Fold(), torch.tensor([1 + 2**-20, 1e-8])
    made, forward, seen = task.batch, task.forward, []
    task.batch = lambda place: made(place) | {"answers": fine}
    task.forward = lambda batch: seen.append(batch) or forward(batch)
    fit(task, config=CONFIG.model_copy(update={"precision": precision}), title="x")
    assert len(seen) == 8
    assert all(torch.equal(batch["answers"], fine) for batch in seen)
    assert all(batch["x"].dtype == torch.float32 for batch in seen)


def test_progress_rises_evenly_to_one():
    task = Fold()
    fit(task, config=CONFIG, title="x")
    assert task.seen == [(step + 1) / 8 for step in range(8)]


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(Fold(), config=CONFIG, title="x")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("accident", [(1, 0), (1, 1), (3, 1)])
def test_an_interrupted_and_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    precision, optimiser, accident, tmp_path
):
    config = CONFIG.model_copy(update={"precision": precision, "optimiser": optimiser})
    whole = Fold()
    expected = fit(whole, config=config, title="x")
    with pytest.raises(KeyboardInterrupt):
        fit(Fold(breaks={accident: KeyboardInterrupt()}), config=config, title="x", folder=tmp_path)
    assert len(lines_in(tmp_path)) == accident[0]
    again = Fold(seed=9)  # its weights come from the checkpoint
    again.frozen.load_state_dict(whole.frozen.state_dict())
    again.rows = whole.rows
    lines = fit(again, config=config, title="x", folder=tmp_path)
    assert digest(again) == digest(whole)
    assert without_time(lines) == without_time(expected)
    assert lines_in(tmp_path) == lines
    assert len(again.seen) == 8 - 2 * accident[0]


@pytest.mark.parametrize("write", ["save_checkpoint", "write_text"])
def test_a_kill_between_the_two_writes_of_an_epoch_loses_no_line(write, tmp_path, monkeypatch):
    whole = Fold()
    expected = fit(whole, config=CONFIG, title="x")
    real, calls = getattr(loop, write), []

    def killed(*args: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(loop, write, killed)
    with pytest.raises(KeyboardInterrupt):
        fit(Fold(), config=CONFIG, title="x", folder=tmp_path)
    monkeypatch.undo()
    again = Fold()
    fit(again, config=CONFIG, title="x", folder=tmp_path)
    assert without_time(lines_in(tmp_path)) == without_time(expected)
    assert digest(again) == digest(whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second = Fold(), Fold(seed=4)
    lines = fit(first, config=CONFIG, title="x", folder=tmp_path)
    assert fit(second, config=CONFIG, title="x", folder=tmp_path) == lines
    assert second.seen == []
    assert digest(second) == digest(first)
    finish(tmp_path)
    finish(None)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_does_not_keep_the_lines_of_an_old_one(tmp_path):
    fit(Fold(), config=CONFIG, title="x", folder=tmp_path)
    finish(tmp_path)
    fit(Fold(), config=CONFIG.model_copy(update={"epochs": 2}), title="x", folder=tmp_path)
    assert [line["epoch"] for line in lines_in(tmp_path)] == [1, 2]


def test_no_epochs_change_nothing():
    task = Fold()
    before = digest(task)
    assert fit(task, config=CONFIG.model_copy(update={"epochs": 0}), title="x") == []
    assert digest(task) == before


@pytest.mark.parametrize(
    ("changes", "run"),
    [
        ({"learning_rate": 0.04}, {"seed": 1}),
        ({"epochs": 5}, {"seed": 1}),
        ({"precision": "32-true"}, {"seed": 1}),
        ({}, {"seed": 2}),
        ({}, None),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_not_resumed(changes, run, tmp_path):
    fit(Fold(), config=CONFIG, title="x", folder=tmp_path, run={"seed": 1})
    kept = (tmp_path / NAME).read_bytes()
    task = Fold()
    with pytest.raises(TrainingError, match="other settings"):
        fit(task, config=CONFIG.model_copy(update=changes), title="x", folder=tmp_path, run=run)
    assert task.seen == []
    assert (tmp_path / NAME).read_bytes() == kept


def test_a_checkpoint_that_does_not_fit_the_network_is_told_in_one_line(tmp_path):
    fit(Fold(), config=CONFIG, title="x", folder=tmp_path)
    other = Fold()
    other.more = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="does not fit this Fold") as caught:
        fit(other, config=CONFIG, title="x", folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_terms(bad, tmp_path):
    good = Fold()
    with pytest.raises(KeyboardInterrupt):
        fit(Fold(breaks={(2, 1): KeyboardInterrupt()}), config=CONFIG, title="x", folder=tmp_path)
    kept = (tmp_path / NAME).read_bytes(), (tmp_path / "metrics.jsonl").read_text()
    task = Fold(breaks={(2, 1): bad})
    with pytest.raises(TrainingError) as caught:
        fit(task, config=CONFIG, title="x", folder=tmp_path)
    message = str(caught.value)
    assert "epoch 3, step 2" in message
    assert f"penalty = {bad}" in message
    assert "distance = 0." in message or "distance = 1." in message
    assert "\n" not in message
    assert len(task.seen) == 1
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert kept == ((tmp_path / NAME).read_bytes(), (tmp_path / "metrics.jsonl").read_text())
    mended = Fold()
    fit(mended, config=CONFIG, title="x", folder=tmp_path)
    fit(good, config=CONFIG, title="x")
    assert digest(mended) == digest(good)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_in_one_kernel_makes_the_same_steps(name):
    config = FitConfig(optimiser=name, weight_decay=0.3)
    tasks = Fold(), Fold()
    pair = [
        build_optimiser(task, config=config, fused=fused)
        for task, fused in zip(tasks, (False, True), strict=True)
    ]
    stream = torch.Generator().manual_seed(3)
    for _ in range(5):
        for ours, theirs in zip(*(task.net.parameters() for task in tasks), strict=True):
            ours.grad = torch.randn(ours.shape, generator=stream)
            theirs.grad = ours.grad.clone()
        for optimiser in pair:
            optimiser.step()
    for ours, theirs in zip(*(task.net.parameters() for task in tasks), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
