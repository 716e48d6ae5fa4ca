"""Objectives against numpy; momentum copies move by the stated rule and get no gradient."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_wm.training.objectives import BYOL, OBJECTIVES, MoCo, SimCLR

WIDTH = 6


def encoder(seed: int = 0) -> nn.Module:
    """A small network without normalisation, so that its copies can be computed by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 8), nn.Tanh(), nn.Linear(8, WIDTH))


def views(count: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 2, 2, generator=generator) for _ in range(2)]


def build(name: str, net: nn.Module, **settings: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return OBJECTIVES[name](net, width=WIDTH, **settings)


def unit(rows: torch.Tensor) -> np.ndarray:
    rows = rows.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nt_xent(one: np.ndarray, two: np.ndarray, temperature: float) -> float:
    """Chen et al., eq. 1, pair by pair over all 2 N rows."""
    z, count = np.concatenate([one, two]), len(one)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * count) if k != i]
        losses.append(-math.log(math.exp(z[i] @ z[partner] / temperature) / sum(others)))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_simclr_is_nt_xent_of_the_projected_views(temperature):
    net, (a, b) = encoder(), views()
    objective = build("simclr", net, temperature=temperature).eval()
    expected = nt_xent(unit(objective.head(net(a))), unit(objective.head(net(b))), temperature)
    assert objective(net, a, b).item() == pytest.approx(expected, rel=1e-5)


def test_byol_is_the_symmetric_distance_between_predictions_and_the_copys_projections():
    net, (a, b) = encoder(), views()
    objective = build("byol", net).eval()
    with torch.no_grad():
        for parameter in objective.target_encoder.parameters():
            parameter.mul_(1.3)
    guess = [unit(objective.predictor(objective.head(net(view)))) for view in (a, b)]
    goal = [unit(objective.target_head(objective.target_encoder(view))) for view in (a, b)]
    cosines = [(guess[0] * goal[1]).sum(1).mean(), (guess[1] * goal[0]).sum(1).mean()]
    assert objective(net, a, b).item() == pytest.approx(-np.mean(cosines), rel=1e-5)


def test_moco_sets_each_query_against_its_key_and_the_queue():
    net, (a, b) = encoder(), views()
    objective = build("moco", net, queue=16).eval()
    queue = unit(objective.loss.memory_bank.bank)
    query = unit(objective.head(net(a)))
    key = unit(objective.target_head(objective.target_encoder(b)))
    losses = []
    for q, k in zip(query, key, strict=True):
        negatives = np.exp(queue @ q / 0.2).sum()
        losses.append(-math.log(math.exp(q @ k / 0.2) / (math.exp(q @ k / 0.2) + negatives)))
    assert objective(net, a, b).item() == pytest.approx(np.mean(losses), rel=1e-5)
    bank = unit(objective.loss.memory_bank.bank)
    np.testing.assert_allclose(bank[:5], key, atol=1e-6)
    np.testing.assert_allclose(bank[5:], queue[5:], atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "moco"])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_momentum_copies_move_by_the_stated_rule(name, progress):
    net = encoder()
    objective = build(name, net, momentum=0.9)
    with torch.no_grad():
        for parameter in (*net.parameters(), *objective.head.parameters()):
            parameter.add_(0.5)
    # BYOL's momentum rises to 1 (Grill et al., section 3.2); MoCo's stays.
    rising = 1 - (1 - 0.9) * (math.cos(math.pi * progress) + 1) / 2
    momentum = {"byol": rising, "moco": 0.9}[name]
    pairs = [
        (copy, copy.clone(), own.detach().clone())
        for twin, source in (
            (objective.target_encoder, net), (objective.target_head, objective.head)
        )
        for copy, own in zip(twin.parameters(), source.parameters(), strict=True)
    ]  # fmt: skip
    objective.momentum_step(net, progress=progress)
    for copy, before, own in pairs:
        expected = momentum * before + (1 - momentum) * own
        torch.testing.assert_close(copy.detach(), expected.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_momentum_copies_start_equal_and_get_no_gradient(name):
    net, (a, b) = encoder(), views()
    objective = build(name, net).train()
    for own, copy in zip(net.parameters(), objective.target_encoder.parameters(), strict=True):
        assert torch.equal(own, copy)
        assert own is not copy
    objective(net, a, b).backward()
    for twin in (objective.target_encoder, objective.target_head):
        assert all(not weight.requires_grad and weight.grad is None for weight in twin.parameters())
    assert all(weight.grad is not None for weight in net.parameters())
    assert all(weight.grad is not None for weight in objective.head.parameters())


def test_the_momentum_step_leaves_the_trained_encoder_alone():
    for name in OBJECTIVES:
        net = encoder()
        objective = build(name, net)
        before = [parameter.clone() for parameter in net.parameters()]
        objective.momentum_step(net, progress=0.5)
        assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_state_holds_all_that_the_next_loss_depends_on(name):
    net = encoder()
    objective = build(name, net).train()
    for seed in range(3):
        objective(net, *views(seed=seed)).backward()
        objective.momentum_step(net, progress=0.1 * seed)
    again = OBJECTIVES[name](encoder(seed=5), width=WIDTH).train()
    again.load_state_dict(objective.state_dict())
    a, b = views(seed=7)
    assert torch.equal(again(net, a, b), objective(net, a, b))


@pytest.mark.parametrize("name", ["simclr", "moco"])  # BYOL's predictor must learn first
def test_views_that_agree_cost_less_than_views_that_do_not(name):
    net, (a, b) = encoder(), views(16)
    objective = build(name, net).eval()
    assert objective(net, a, a) < objective(net, a, b)


def test_the_classes_are_what_the_table_says():
    assert {"simclr": SimCLR, "byol": BYOL, "moco": MoCo} == OBJECTIVES


PARTNER = """
import sys
import torch
from torch import nn
from ssl_wm.training.objectives import SimCLR
rank, folder = int(sys.argv[1]), sys.argv[2]
net = nn.Linear(4, 6)
objective = SimCLR(net, width=6)
given = torch.load(f"{folder}/given.pt")
net.load_state_dict(given["net"])
objective.load_state_dict(given["objective"])
objective.head.eval()
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
)
half = [view[rank * 3 : rank * 3 + 3] for view in given["views"]]
loss = objective(net, *half)
loss.backward()
torch.save({"loss": loss.detach(), "grad": net.weight.grad}, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_negatives_and_the_gradient_of_one(tmp_path):
    net = nn.Linear(4, 6)
    objective = SimCLR(net, width=6)
    objective.head.eval()  # so that batch normalisation does not depend on the share
    pair = [torch.rand(6, 4) for _ in range(2)]
    given = {"net": net.state_dict(), "objective": objective.state_dict(), "views": pair}
    torch.save(given, tmp_path / "given.pt")
    loss = objective(net, *pair)
    loss.backward()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", PARTNER, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(half["loss"] for half in halves) / 2, loss.detach())
    torch.testing.assert_close(sum(half["grad"] for half in halves) / 2, net.weight.grad)
