"""A loss that is not finite ends a run: at once on a CPU, else before the epoch is written."""

from __future__ import annotations

import pytest
import torch

from ssl_wm.errors import TrainingError
from ssl_wm.training.guard import FiniteGuard

GOOD = {"loss": torch.tensor(1.5), "other": torch.tensor(0.5)}
BAD = {"loss": torch.tensor(float("nan")), "other": torch.tensor(2.0)}
ODD = {"loss": torch.tensor(1.0), "other": torch.tensor(float("inf"))}
TOLD = r"epoch 3, step 5 \(loss = nan, other = 2\); the last checkpoint is kept"


class Slow:
    """Numbers that come when the test says so."""

    sent: list[Slow]

    def __init__(self, values):
        self.values, self.came = values, False
        self.sent.append(self)

    def here(self):
        return self.came

    def wait(self):
        self.came = True
        return torch.full(self.values.shape, float("nan")) if self.bad else torch.ones(2)

    bad = False


def on_a_device(losses):
    return {name: value.to("meta") for name, value in losses.items()}


@pytest.fixture
def guard():
    Slow.sent = []
    return FiniteGuard(Slow)


def test_on_a_cpu_the_bad_step_itself_is_refused():
    guard = FiniteGuard()
    guard.see(GOOD, epoch=2, step=3)
    with pytest.raises(TrainingError, match=TOLD):
        guard.see(BAD, epoch=2, step=4)


def test_only_the_loss_itself_counts():
    guard = FiniteGuard()
    guard.see(ODD, epoch=0, step=0)
    guard.finish()


def test_nobody_waits_for_numbers_that_are_on_their_way(guard):
    for step in range(5):
        guard.see(on_a_device(GOOD), epoch=0, step=step)
    assert [each.came for each in guard.send.sent] == [False] * 5
    guard.finish()
    assert [each.came for each in guard.send.sent] == [True] * 5
    assert not guard.seen


def test_a_bad_loss_is_refused_when_it_has_come_and_its_own_step_is_named(guard):
    for step in range(4):
        guard.see(on_a_device(GOOD), epoch=2, step=step)
    sent = guard.send.sent
    sent[1].bad = sent[0].came = sent[1].came = True
    with pytest.raises(TrainingError, match=r"epoch 3, step 2 \(loss = nan, other = nan\)"):
        guard.see(on_a_device(GOOD), epoch=2, step=4)


def test_an_epoch_does_not_end_with_a_bad_loss_on_its_way(guard):
    guard.see(on_a_device(GOOD), epoch=0, step=0)
    guard.send.sent[0].bad = True
    with pytest.raises(TrainingError, match="epoch 1, step 1"):
        guard.finish()


@pytest.mark.gpu
def test_a_gpu_sends_its_losses_without_waiting():
    guard = FiniteGuard()
    torch.cuda.set_sync_debug_mode("error")
    try:
        guard.see({name: value.cuda() for name, value in BAD.items()}, epoch=2, step=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(TrainingError, match=TOLD):
        guard.finish()
