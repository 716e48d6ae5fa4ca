"""Extraction losses against numpy in float64, pair by pair, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss

from ssl_wm.errors import EncoderError
from ssl_wm.extraction.losses import (
    barlow,
    cont_steal,
    cosine,
    hinton_kd,
    hinton_relational,
    hybrid,
    infonce,
    mse,
    normalised_distance,
    rda,
    soft_nn,
)


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


def by_hand_hybrid(z, f, alpha=0.5):
    centre = sum(f) / len(f)
    spread = np.mean([(b - centre) ** 2 for b in f]) + 1e-6 * np.mean(f * f) + 1e-12
    return alpha * by_hand_mse(z, f) / spread + (1 - alpha) * by_hand_cosine(z, f)


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max())
    return raised / raised.sum()


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand_kd(z, f, t=7.0):
    return t * t * np.mean([divergence(softmax(b / t), softmax(a / t)) for a, b in pairs(z, f)])


def by_hand_relational(z, f, t=0.1):
    def near(x, i):
        return softmax(np.array([unit(x[i]) @ unit(x[j]) / t for j in range(len(x)) if j != i]))

    return np.mean([divergence(near(f, i), near(z, i)) for i in range(len(z))])


def by_hand_rda(z, p, t=0.07, epsilon=1e-4):
    align = []
    for a, b in pairs(z, p):
        gap = ((unit(a) - b) ** 2).sum()
        align.append(-math.log((unit(a) @ unit(b) + 1 + epsilon) / (gap + epsilon)))
    return by_hand_cont_steal(z, p, t) + np.mean(align)


def by_hand_infonce(z, f, t=0.07):
    rows = [unit(x) for x in [*z, *f]]
    losses = []
    for a, row in enumerate(rows):
        below = sum(math.exp(row @ rows[b] / t) for b in range(len(rows)) if b != a)
        losses.append(-math.log(math.exp(row @ rows[(a + len(z)) % len(rows)] / t) / below))
    return np.mean(losses)


def by_hand_soft_nn(z, f, share=0.5):
    rows = [*z, *f]
    centre = sum(f) / len(f)
    between = 2 * sum(((b - centre) ** 2).sum() for b in f) / (len(f) - 1)
    t = share * (between + 1e-6 * np.mean([b @ b for b in f]) + 1e-12)
    losses = []
    for a, row in enumerate(rows):
        near = {b: math.exp(-((row - rows[b]) ** 2).sum() / t) for b in range(len(rows)) if b != a}
        losses.append(-math.log(near[(a + len(z)) % len(rows)] / sum(near.values())))
    return np.mean(losses)


def by_hand_barlow(z, f, weight=0.0051):
    def standard(x):
        return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6)

    a, b = standard(z), standard(f)
    total = 0.0
    for i in range(z.shape[1]):
        for j in range(z.shape[1]):
            c = np.mean(a[:, i] * b[:, j])
            total += (c - 1) ** 2 if i == j else weight * c * c
    return total


LOSSES = {
    "mse": (mse, by_hand_mse),
    "cosine": (cosine, by_hand_cosine),
    "stolen-encoder": (normalised_distance, by_hand_distance),
    "cont-steal": (cont_steal, by_hand_cont_steal),
    "hybrid": (hybrid, by_hand_hybrid),
    "hinton-kd": (hinton_kd, by_hand_kd),
    "hinton-relational": (hinton_relational, by_hand_relational),
    "rda": (rda, by_hand_rda),
    "infonce": (infonce, by_hand_infonce),
    "soft-nn": (soft_nn, by_hand_soft_nn),
    "barlow": (barlow, by_hand_barlow),
}
PUSHING = {"cont-steal", "rda", "infonce", "soft-nn", "barlow"}
"""Losses that push images apart, so that a perfect copy of few rows does not cost 0."""
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
@pytest.mark.parametrize("shape", [(6, 5), (2, 1), (17, 3)])
def test_a_loss_equals_its_formula(name, shape):
    loss, by_hand = LOSSES[name]
    if name == "hinton-relational":  # one other image is no distribution
        shape = (max(shape[0], 3), shape[1])
    z, answers = rows(*shape), 3 * rows(*shape, seed=1)
    expected = pytest.approx(by_hand(z.numpy(), answers.numpy()), rel=1e-9, abs=1e-6)
    assert loss(z, answers).item() == expected
    single = loss(z.float(), answers.float())
    assert single.ndim == 0
    assert single.item() == pytest.approx(loss(z, answers).item(), rel=2e-5, abs=3e-5)


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
    if name not in PUSHING:
        assert least.item() == pytest.approx(0, abs=2e-6)
    assert loss(rows(seed=2), answers) > least


@pytest.mark.parametrize(
    "name", ["cosine", "stolen-encoder", "cont-steal", "hinton-relational", "infonce"]
)
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


@each_loss
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_or_empty_answers_give_no_nan(name, value):
    loss, _ = LOSSES[name]
    z = torch.full((6, 5), value, dtype=torch.float32).requires_grad_()
    total = loss(z, torch.full((6, 5), value))
    total.backward()
    assert total.isfinite()
    assert z.grad.isfinite().all()


@each_loss
def test_an_opposite_answer_gives_no_nan(name):
    loss, _ = LOSSES[name]
    answers = rows(seed=1).float()
    z = (-answers).requires_grad_()
    total = loss(z, answers)
    total.backward()
    assert total.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(PUSHING - {"cont-steal"} | {"hybrid", "hinton-kd"}))
def test_a_loss_of_equal_widths_refuses_others_in_one_line(name):
    with pytest.raises(EncoderError, match=r"\(6, 5\) and \(6, 4\)") as caught:
        LOSSES[name][0](rows(6, 5), rows(6, 4))
    assert "\n" not in str(caught.value)


def test_infonce_is_the_nt_xent_of_lightly():
    z, answers = rows(9, 5).float(), rows(9, 5, seed=1).float()
    expected = NTXentLoss(temperature=0.07)(z, answers)
    assert infonce(z, answers).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_relational_loss_knows_no_axes_and_no_width():
    z, answers = rows(), rows(seed=1)
    turn = torch.linalg.qr(rows(5, 5, seed=2)).Q
    padded = torch.cat([answers @ turn, torch.zeros(6, 3, dtype=torch.float64)], dim=1)
    expected = hinton_relational(z, answers).item()
    assert hinton_relational(z @ turn, padded).item() == pytest.approx(expected, rel=1e-9)
    assert hinton_relational(answers, padded).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(EncoderError, match="at least 3 images; got 2"):
        hinton_relational(rows(2), rows(2))


def test_the_hybrid_is_the_same_for_any_scale_of_the_victim():
    z, answers = rows(), rows(seed=1)
    assert hybrid(50 * z, 50 * answers).item() == pytest.approx(hybrid(z, answers).item())
    mean = answers.mean(dim=0).expand_as(answers)
    assert hybrid(mean, answers, alpha=1).item() == pytest.approx(1, rel=1e-4)


def test_a_large_temperature_makes_distillation_a_centred_squared_error():
    z, answers = rows(), rows(seed=1)
    gap = (z - z.mean(dim=1, keepdim=True)) - (answers - answers.mean(dim=1, keepdim=True))
    expected = gap.square().sum(dim=1).mean() / (2 * 5)
    assert hinton_kd(z, answers, temperature=1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_align_term_rewards_a_copy_without_bound_only_up_to_epsilon():
    p = torch.nn.functional.normalize(rows(seed=1), dim=1)
    align = rda(p, p).item() - cont_steal(p, p).item()
    assert align == pytest.approx(-math.log((2 + 1e-4) / 1e-4))


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
