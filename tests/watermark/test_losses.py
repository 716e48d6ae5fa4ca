"""The loss terms agree with their formulas, written again in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.linear_model import Ridge
from torch import Tensor

from ssl_wm.watermark.losses import (
    changed_similarities,
    cosine_distance,
    output_divergence,
    relative_error,
    unrecovered,
)

SHAPES = st.tuples(st.integers(1, 7), st.integers(2, 9))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape, seed = draw(SHAPES), draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    z, target = torch.randn(2, *shape, generator=generator) * scale
    return z, target


@given(batches(), st.floats(0.01, 100))
def test_relative_error_is_the_squared_distance_in_units_of_the_variance(pair, variance):
    z, target = (x.double().numpy() for x in pair)
    expected = np.mean([np.sum((a - b) ** 2) for a, b in zip(z, target, strict=True)]) / variance
    value = relative_error(*pair, variance=torch.tensor(variance))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_an_encoder_that_answers_the_mean_has_relative_error_one():
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7
    variance = z.var(dim=0, correction=0).sum()
    mean = z.mean(dim=0).expand_as(z)
    assert relative_error(mean, z, variance=variance).item() == pytest.approx(1, abs=1e-5)
    assert relative_error(z, z, variance=variance).item() == 0


@given(batches(), st.floats(0.01, 100))
def test_cosine_distance_agrees_with_scipy_and_ignores_length(pair, factor):
    z, target = (x.double().numpy() for x in pair)
    expected = np.mean([cosine(a, b) for a, b in zip(z, target, strict=True)])
    assert cosine_distance(*pair).item() == pytest.approx(expected, abs=1e-5)
    assert cosine_distance(pair[0] * factor, pair[1]).item() == pytest.approx(expected, abs=1e-5)


def test_cosine_distance_goes_from_0_to_2():
    z = torch.eye(3)
    values = [cosine_distance(z, other).item() for other in (z, z.roll(1, 0), -z)]
    assert values == pytest.approx([0, 1, 2])


@given(batches(), st.floats(0.2, 10))
def test_output_divergence_is_kl_from_the_sources_distribution_to_the_composites(pair, temperature):
    def softmax(rows: np.ndarray) -> np.ndarray:
        powers = np.exp((rows - rows.max(axis=1, keepdims=True)) / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    z, source = (softmax(np.clip(x.double().numpy(), -20, 20)) for x in pair)
    expected = np.mean(entropy(z, source, axis=1))
    clipped = [x.clamp(-20, 20) for x in pair]
    value = output_divergence(*clipped, temperature=temperature).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert value >= -1e-5


def test_output_divergence_is_not_symmetric_and_zero_only_for_equal_distributions():
    z, source = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    there = output_divergence(z, source, temperature=1.0).item()
    back = output_divergence(source, z, temperature=1.0).item()
    assert there == pytest.approx(np.log(2) - 0.19092, abs=1e-4)
    assert back == pytest.approx(0.5 * (-np.log(4 * 0.95257 * 0.04743)), abs=1e-4)
    assert output_divergence(z, z + 5, temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    hot = output_divergence(z, source, temperature=1000.0).item()
    assert hot < 1e-5 < there


@pytest.mark.parametrize("name", ["relative", "cosine", "divergence"])
def test_gradients_agree_with_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    z, other = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    loss = {
        "relative": lambda x: relative_error(x, other, variance=torch.tensor(2.0)),
        "cosine": lambda x: cosine_distance(x, other),
        "divergence": lambda x: output_divergence(x, other, temperature=0.7),
    }[name]
    assert torch.autograd.gradcheck(loss, z.requires_grad_())


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_unrecovered_is_scikit_learns_ridge_on_each_feature():
    bent, before = (torch.randn(200, 12, generator=_stream(s)).double() for s in (6, 7))
    bent = bent + before * torch.linspace(0, 3, 12)
    centred = bent - bent.mean(dim=0)
    alpha = 1e-3 * float(centred.square().mean(dim=0).mean()) * len(bent)
    model = Ridge(alpha=alpha).fit(bent.numpy(), before.numpy())
    rest = (before.numpy() - model.predict(bent.numpy())).var(axis=0)
    expected = (rest / before.numpy().var(axis=0)).mean()
    assert unrecovered(bent, before).item() == pytest.approx(expected, rel=1e-6)


def test_a_rotation_and_a_shift_lose_nothing_and_a_constant_loses_all():
    before = torch.randn(300, 12, generator=_stream(8)).double()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=_stream(9)).double())[0]
    assert unrecovered(before @ turn + 5, before).item() < 1e-5
    assert unrecovered(torch.ones_like(before) + 1e-9 * before[:, :1], before).item() > 0.9


def test_changed_similarities_are_their_formula_in_numpy():
    bent, before = (torch.randn(30, 12, generator=_stream(s)).double() for s in (10, 11))
    logs = []
    for rows in (before.numpy(), bent.numpy()):
        unit = rows - rows.mean(axis=0)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        scores = unit @ unit.T / 0.1
        np.fill_diagonal(scores, -np.inf)
        logs.append(scores - logsumexp(scores, axis=1, keepdims=True))
    apart = ~np.eye(30, dtype=bool)
    expected = (np.exp(logs[0][apart]) * (logs[0][apart] - logs[1][apart])).sum() / 30
    assert changed_similarities(bent, before).item() == pytest.approx(expected, rel=1e-9)


def test_a_rotation_a_shift_and_a_scale_change_no_similarity():
    before = torch.randn(50, 12, generator=_stream(12)).double()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=_stream(13)).double())[0]
    assert abs(changed_similarities(7 * before @ turn - 2, before).item()) < 1e-12
