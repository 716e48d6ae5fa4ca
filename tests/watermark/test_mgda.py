"""MGDA finds the shortest vector in the convex hull of the gradients, for any gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ssl_wm.errors import TrainingError
from ssl_wm.watermark.mgda import least_norm_weights

KINDS = ("random", "random", "close", "twins", "opposite", "with zero", "unequal", "flat")


def gradients(kind: str, count: int, seed: int, dimension: int = 5) -> np.ndarray:
    stream = np.random.default_rng(seed)
    rows = stream.normal(size=(count, dimension))
    if kind == "close":
        rows = rows[:1] + 1e-2 * rows
    if kind == "twins":
        rows[-1] = rows[0]
    if kind == "opposite":
        rows[-1] = -2 * rows[0]
    if kind == "with zero":
        rows[stream.integers(count)] = 0
    if kind == "unequal":
        rows *= np.logspace(-2, 2, count)[:, None]
    if kind == "flat":
        rows[:, 1:] = 0
    return rows.astype(np.float32)


def weights_of(rows: np.ndarray) -> np.ndarray:
    return least_norm_weights([torch.from_numpy(row) for row in rows]).double().numpy()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(0, 2**32))
def test_the_weights_are_optimal(kind, count, seed):
    """For the shortest d, <g_i, d> >= |d|^2 for all i: necessary and sufficient."""
    rows = gradients(kind, count, seed).astype(np.float64)
    weights = weights_of(gradients(kind, count, seed))
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    shortest = weights @ rows
    slack = 2e-6 * (rows**2).sum(axis=1).max()
    assert (rows @ shortest >= shortest @ shortest - slack).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32))
def test_the_weights_agree_with_a_general_solver(count, seed):
    rows = gradients("random", count, seed).astype(np.float64)
    gram = rows @ rows.T
    solved = minimize(
        lambda w: w @ gram @ w, np.full(count, 1 / count), jac=lambda w: 2 * gram @ w,
        bounds=[(0, 1)] * count, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    weights = weights_of(gradients("random", count, seed))
    assert weights @ gram @ weights <= solved.fun + 1e-6
    np.testing.assert_allclose(weights, solved.x, atol=2e-3)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_two_gradients_have_the_closed_form(kind, seed):
    """Sener and Koltun (2018), algorithm 1: clip(<g2 - g1, g2> / |g1 - g2|^2, 0, 1)."""
    rows = gradients(kind, 2, seed)
    g1, g2 = rows.astype(np.float64)
    gap = g2 - g1
    weights = weights_of(rows)
    if gap @ gap > 0:
        first = np.clip(gap @ g2 / (gap @ gap), 0, 1)
        np.testing.assert_allclose(weights, [first, 1 - first], atol=2e-5)
    else:
        assert weights.sum() == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32), st.integers(-30, 30))
@example(count=2, seed=0, exponent=20)
@example(count=3, seed=0, exponent=-30)
def test_weights_do_not_depend_on_the_unit_of_the_loss(count, seed, exponent):
    """Powers of two scale without rounding; huge gradients once gave weights of 0."""
    rows = gradients("random", count, seed)
    scaled = weights_of(rows * np.float32(2.0**exponent))
    np.testing.assert_allclose(scaled, weights_of(rows), atol=1e-6)


def test_a_small_pair_beside_a_huge_gradient_is_still_balanced():
    rows = np.array([[1e4, 0, 0], [0, 1e-4, 0], [0, 0, 2e-4]], dtype=np.float32)
    np.testing.assert_allclose(weights_of(rows), [0, 0.8, 0.2], atol=1e-6)


def test_gradients_of_any_shape_are_taken_whole():
    generator = torch.Generator().manual_seed(0)
    square = [torch.randn(3, 2, 2, generator=generator) for _ in range(3)]
    flat = [gradient.flatten() for gradient in square]
    assert torch.equal(least_norm_weights(square), least_norm_weights(flat))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_and_not_a_weight(bad):
    with pytest.raises(TrainingError, match="not all finite"):
        least_norm_weights([torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0])])
