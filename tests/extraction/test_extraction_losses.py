"""Extraction losses against numpy in float64, pair by pair, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_wm.extraction.losses import cont_steal, cosine, mse, normalised_distance


def rows(count: int = 6, width: int = 5, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / math.sqrt(sum(value * value for value in x))


def pairs(z, f):
    return list(zip(z, f, strict=True))


def by_hand_mse(z, f):
    return np.mean([sum((a - b) ** 2) / len(a) for a, b in pairs(z, f)])


def by_hand_cosine(z, f):
    return np.mean([1 - unit(a) @ unit(b) for a, b in pairs(z, f)])


def by_hand_distance(z, f):
    return np.mean([math.sqrt(((unit(a) - unit(b)) ** 2).sum()) for a, b in pairs(z, f)])


def by_hand_cont_steal(z, f, t=0.07):
    z, f = [unit(a) for a in z], [unit(b) for b in f]
    losses = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        below = sum(math.exp(z[i] @ f[k] / t) + math.exp(z[i] @ z[k] / t) for k in others)
        losses.append(-math.log(math.exp(z[i] @ f[i] / t) / below))
    return np.mean(losses)


LOSSES = {
    "mse": (mse, by_hand_mse),
    "cosine": (cosine, by_hand_cosine),
    "stolen-encoder": (normalised_distance, by_hand_distance),
    "cont-steal": (cont_steal, by_hand_cont_steal),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
@pytest.mark.parametrize("shape", [(6, 5), (2, 1), (17, 3)])
def test_a_loss_equals_its_formula(name, shape):
    loss, by_hand = LOSSES[name]
    z, answers = rows(*shape), 3 * rows(*shape, seed=1)
    expected = pytest.approx(by_hand(z.numpy(), answers.numpy()), rel=1e-9, abs=1e-6)
    assert loss(z, answers).item() == expected
    single = loss(z.float(), answers.float())
    assert single.ndim == 0
    assert single.item() == pytest.approx(loss(z, answers).item(), rel=2e-5, abs=1e-5)


@each_loss
def test_a_loss_has_the_gradient_of_its_value(name):
    loss, _ = LOSSES[name]
    z = rows().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, rows(seed=1)), z)


@each_loss
def test_a_perfect_copy_costs_least_and_has_a_finite_gradient(name):
    loss, _ = LOSSES[name]
    answers = rows(seed=1)
    z = answers.clone().requires_grad_()
    least = loss(z, answers)
    least.backward()
    assert z.grad.isfinite().all()
    if name != "cont-steal":  # which pushes from other images even then
        assert least.item() == pytest.approx(0, abs=2e-6)
    assert loss(rows(seed=2), answers) > least


@pytest.mark.parametrize("name", ["cosine", "stolen-encoder", "cont-steal"])
def test_only_the_direction_of_an_embedding_counts(name):
    loss, _ = LOSSES[name]
    z, answers = rows(), rows(seed=1)
    scale = torch.arange(1.0, 7.0, dtype=torch.float64).unsqueeze(1)
    assert loss(scale * z, 5 * answers).item() == pytest.approx(loss(z, answers).item(), rel=1e-6)


@each_loss
def test_a_zero_embedding_gives_no_nan(name):
    loss, _ = LOSSES[name]
    z = rows()
    z[0] = 0
    z.requires_grad_()
    value = loss(z, rows(seed=1))
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_the_contrast_keeps_full_precision_below_autocast():
    z, answers = rows(32, 16).float(), rows(32, 16).float() + 0.1 * rows(32, 16, seed=1).float()
    expected = cont_steal(z, answers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cont_steal(z, answers), expected)


def test_a_higher_temperature_makes_the_contrast_softer():
    z, answers = rows(), rows(seed=1)
    soft, sharp = (cont_steal(z, answers, temperature=t) for t in (10.0, 0.05))
    assert soft.item() == pytest.approx(math.log(2 * 5), abs=0.1)  # 2 (B - 1) equal negatives
    assert sharp > soft
