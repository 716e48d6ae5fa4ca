"""kNN votes as lightly's own reader does, at any scale."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.benchmarking.knn import knn_predict as lightly_knn_predict
from torch import Tensor

from ssl_wm.encoders.nearest import nearest
from ssl_wm.verification.knn import knn_predict


def rows(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int, seed: int, classes: int = 5) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 80), st.integers(1, 20), st.floats(0.05, 2), st.integers(0, 2**32))
def test_votes_agree_with_lightly(size, k, temperature, seed):
    z, bank, labels = rows(30, seed), rows(size, seed + 1), labels_of(size, seed)
    oracle = lightly_knn_predict(
        F.normalize(z, dim=1), F.normalize(bank, dim=1).T, labels, num_classes=5, knn_k=k,
        knn_t=temperature,
    )[:, 0]  # fmt: skip
    ours = knn_predict(z, bank, labels, k=k, temperature=temperature)
    assert (ours == oracle).float().mean() > 0.95  # float32 sums may break a near tie otherwise


def test_the_temperature_says_how_much_nearness_counts():
    bank = torch.tensor([[1.0, 0.1], [1.0, 0.5], [1.0, -0.5], [-1.0, 0.0]])
    labels = torch.tensor([2, 0, 0, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(query, bank, labels, k=3, temperature=0.01).item() == 2
    assert knn_predict(query, bank, labels, k=3, temperature=10.0).item() == 0
    assert knn_predict(query, bank, labels, k=1, temperature=10.0).item() == 2


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_length_does_not_count_however_extreme(scale):
    z, bank, labels = rows(20, 0), rows(60, 1), labels_of(60, 2)
    plain = nearest(z, bank, k=5)
    scaled = nearest(z * scale, bank * scale, k=5)
    torch.testing.assert_close(scaled[0], plain[0], atol=1e-6, rtol=0)
    assert torch.equal(knn_predict(z * scale, bank, labels, k=5), knn_predict(z, bank, labels, k=5))


def test_of_a_bank_with_fewer_rows_than_neighbours_all_vote():
    z, bank, labels = rows(4, 0), rows(6, 1), labels_of(6, 2)
    assert torch.equal(knn_predict(z, bank, labels, k=20), knn_predict(z, bank, labels, k=6))


def test_labels_with_gaps_are_kept():
    bank = torch.eye(3)
    assert knn_predict(bank, bank, torch.tensor([7, 0, 40]), k=1).tolist() == [7, 0, 40]
