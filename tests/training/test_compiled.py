"""A compiled run is the run that is not compiled, and where compiling fails it goes on without."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from ssl_wm.data.order import Place
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.training import compiled
from ssl_wm.training.compiled import compiled_encoders, running
from ssl_wm.training.loop import fit, run_identity
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Batch, Task

FIT = FitConfig(epochs=2, batch_size=8, learning_rate=0.05, warmup_steps=0, precision="32-true")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler",
)


class Regress(Task):
    """A small network fitted to fixed answers; a frozen one stands beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.clean = small(0), small(1).requires_grad_(False)

    def steps_per_epoch(self) -> int:
        return 3

    def batch(self, place: Place) -> Batch:
        stream = torch.Generator().manual_seed(10 * place.epoch + place.step)
        return {"images": torch.rand(8, 3, 8, 8, generator=stream)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            answers = self.clean(batch["images"])
        return {"loss": (self.encoder(batch["images"]) - answers).square().mean()}


def small(seed: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        layers = (*norm, nn.Flatten(), nn.Linear(144, 5))
        return Encoder(nn.Sequential(*layers))


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_has_the_losses_and_weights_of_one_that_is_not(monkeypatch):
    tasks, lines, called = [], [], []
    real = compiled._with_way_back

    def counted(plain, *, graphs):
        fast = real(plain, graphs=graphs)
        return lambda x: called.append(len(x)) or fast(x)

    monkeypatch.setattr(compiled, "_with_way_back", counted)
    for switch in (False, True):
        tasks.append(Regress())
        config = FIT.model_copy(update={"compile": switch})
        lines.append([line["loss"] for line in fit(tasks[-1], config=config, title="test")])
    assert called == [8] * 6
    assert lines[1] == pytest.approx(lines[0], rel=1e-4, abs=2e-6)
    for mine, other in zip(tasks[1].parameters(), tasks[0].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    assert "forward" not in vars(tasks[1].encoder.backbone)


@pytest.mark.parametrize(("switch", "mode"), [(True, None), ("graphs", "reduce-overhead")])
def test_graphs_are_recorded_where_they_are_asked_for_and_change_no_number(
    switch, mode, monkeypatch
):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda plain, *, mode: modes.append(mode) or plain)
    config = FitConfig.model_validate(FIT.model_dump() | {"compile": switch})
    lines = [fit(Regress(), config=each, title="test") for each in (FIT, config)]
    assert modes == [mode]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_where_compiling_fails_the_run_goes_on_without_it(monkeypatch, caplog):
    def broken(plain, *, mode):
        def raises(_x: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nat all")

        return raises

    monkeypatch.setattr(torch, "compile", broken)
    plain = fit(Regress(), config=FIT, title="test")
    task = Regress()
    lines = fit(task, config=FIT.model_copy(update={"compile": True}), title="test")
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]
    assert caplog.text.count("torch.compile does not work here (no compiler)") == 1


def test_an_error_of_the_network_itself_is_not_taken_for_the_compilers(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda plain, *, mode: plain)
    task = Regress()
    with running(compiled_encoders(task)), pytest.raises(RuntimeError, match="expected input"):
        task.encoder.backbone(torch.rand(2, 5, 8, 8))


def test_only_trained_encoders_are_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda plain, *, mode: plain)
    task = Regress()
    assert list(compiled_encoders(task)) == [task.encoder.backbone]


def test_several_processes_are_not_compiled(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "world_size", lambda: 2)
    assert compiled_encoders(Regress()) == {}
    assert "several processes" in caplog.text


def test_compiling_is_no_part_of_a_runs_identity_and_not_written_down_when_off():
    compiling = FIT.model_copy(update={"compile": True})
    assert run_identity(FIT, {}) == run_identity(compiling, {})
    assert "compile" not in FIT.model_dump()
    assert compiling.model_dump()["compile"] is True
