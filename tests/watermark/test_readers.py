"""The differentiable readers give what scikit-learn and numpy give, and gradients flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from ssl_wm.watermark.readers import discriminant_scores, neighbour_scores


def drawn(seed: int = 0, *, rows: int = 60, width: int = 7, count: int = 4, queries: int = 9):
    stream = torch.Generator().manual_seed(seed)
    bank = torch.randn(rows, width, generator=stream, dtype=torch.float64)
    groups = torch.arange(rows) % count
    bank[:, 0] += groups
    return bank, groups, torch.randn(queries, width, generator=stream, dtype=torch.float64)


def test_discriminant_scores_order_groups_as_scikit_learn_does_without_priors():
    bank, groups, z = drawn()
    scores = discriminant_scores(z, bank=bank, groups=groups, count=4, shrinkage=0.1)
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=0.1, priors=np.full(4, 0.25)
    ).fit(bank.numpy(), groups.numpy())
    expected = reference.predict_log_proba(z.numpy())
    # scikit-learn shrinks each group's covariance and averages: the same for equal groups.
    got = scores.log_softmax(dim=1).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_unequal_groups_count_equally():
    bank, groups, _ = drawn()
    twice = torch.cat([bank, bank[groups == 2]]), torch.cat([groups, groups[groups == 2]])
    means = [bank[groups == group].mean(dim=0) for group in range(4)]
    for part, labels in ((bank, groups), twice):
        near = discriminant_scores(torch.stack(means), bank=part, groups=labels, count=4)
        assert near.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_neighbour_scores_are_the_summed_votes_in_numpy():
    bank, groups, z = drawn(1)
    got = neighbour_scores(z, bank=bank, groups=groups, count=4, temperature=0.2).numpy()
    centre = bank.numpy().mean(axis=0)
    b, q = bank.numpy() - centre, z.numpy() - centre
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    for group in range(4):
        votes = (q @ b.T)[:, groups.numpy() == group] / 0.2
        np.testing.assert_allclose(got[:, group], logsumexp(votes, axis=1), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 10))
def test_neighbour_scores_do_not_change_under_scale_shift_and_rotation(seed, scale):
    bank, groups, z = drawn(seed)
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    shift = torch.randn(7, dtype=torch.float64)
    before = neighbour_scores(z, bank=bank, groups=groups, count=4)
    after = neighbour_scores(
        scale * z @ turn + shift, bank=scale * bank @ turn + shift, groups=groups, count=4
    )
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("score", [discriminant_scores, neighbour_scores])
def test_a_gradient_reaches_the_bank_as_well_as_what_is_read(score):
    bank, groups, z = drawn(2, rows=16, width=3, queries=2)
    bank.requires_grad_(True)
    z.requires_grad_(True)
    options = {"temperature": 0.5} if score is neighbour_scores else {}

    def read(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return score(rows, bank=others, groups=groups, count=4, **options)

    assert torch.autograd.gradcheck(read, (z, bank))


def test_far_neighbours_underflow_to_a_finite_score():
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    scores = neighbour_scores(
        torch.tensor([[3.0, 0.0]]), bank=bank, groups=torch.tensor([0, 1]), count=2,
        temperature=0.01,
    )  # fmt: skip
    assert torch.isfinite(scores).all()
    assert scores.argmax() == 0
