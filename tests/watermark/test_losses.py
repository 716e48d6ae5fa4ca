"""The loss terms agree with their formulas, written again in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.stats import entropy
from torch import Tensor

from ssl_wm.watermark.losses import cosine_distance, output_divergence, relative_error

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
