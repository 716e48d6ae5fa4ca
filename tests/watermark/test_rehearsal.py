"""The copy in closed form is scikit-learn's kernel ridge regression, and forgets what few show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge

from ssl_wm.watermark.rehearsal import copied_moves


def rows(number: int, *, seed: int, width: int = 6) -> torch.Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("length", "ridge"), [(1.0, 0.25), (0.3, 2.0)])
def test_moves_are_scikit_learns_kernel_ridge_regression(length, ridge):
    anchors, queries, moves = rows(80, seed=0), rows(30, seed=1), rows(80, seed=2, width=4)
    d2 = np.mean(cdist(anchors, anchors, "sqeuclidean"))
    model = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (2 * length**2 * d2))
    expected = model.fit(anchors.numpy(), moves.numpy()).predict(queries.numpy())
    found = copied_moves(moves, anchors=anchors, queries=queries, length=length, ridge=ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_copy_of_moves_that_all_images_share_has_them_and_of_one_images_move_has_little():
    anchors = rows(200, seed=3)
    shared, alone = torch.ones(200, 1).double(), torch.zeros(200, 1).double()
    alone[0] = 1
    kept = [
        float(copied_moves(moves, anchors=anchors, queries=anchors, ridge=0.5)[0])
        for moves in (shared, alone)
    ]
    assert kept[0] > 0.9
    assert kept[1] < 0.7


def test_a_larger_ridge_learns_less():
    anchors, moves = rows(60, seed=4), rows(60, seed=5)
    sizes = [
        float(copied_moves(moves, anchors=anchors, queries=anchors, ridge=ridge).norm())
        for ridge in (0.01, 1.0, 100.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_a_gradient_reaches_the_moves_and_is_linear():
    anchors, queries = rows(40, seed=6), rows(10, seed=7)
    moves = rows(40, seed=8).requires_grad_(True)
    copied = copied_moves(moves, anchors=anchors, queries=queries, ridge=0.3)
    copied.sum().backward()
    again = copied_moves(2 * moves, anchors=anchors, queries=queries, ridge=0.3)
    torch.testing.assert_close(again, 2 * copied)
    assert torch.allclose((moves.grad * moves).sum(), copied.sum())


def test_equal_anchors_are_no_reason_to_fail():
    same = torch.ones(5, 3).double()
    assert copied_moves(same, anchors=same, queries=same, ridge=0.1).isfinite().all()
