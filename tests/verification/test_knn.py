"""kNN agrees with brute force and with lightly's own reader, at any scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.benchmarking.knn import knn_predict as lightly_knn_predict
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.verification import knn
from ssl_wm.verification.knn import knn_predict, nearest


def rows(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int, seed: int, classes: int = 5) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32), st.data())
def test_neighbours_agree_with_brute_force(queries, size, seed, data):
    k = data.draw(st.integers(1, size))
    z, bank = rows(queries, seed), rows(size, seed + 1)
    similarities, indices = nearest(z, bank, k=k)
    a, b = (
        x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
        for x in (z, bank)
    )
    cosines = a @ b.T
    expected = -np.sort(-cosines, axis=1)[:, :k]
    assert similarities.shape == indices.shape == (queries, k)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines, indices.numpy(), 1), expected, atol=1e-5)
    assert all(len(set(row)) == k for row in indices.tolist())


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


def test_results_do_not_depend_on_the_block(monkeypatch):
    z, bank, labels = rows(50, 0), rows(60, 1), labels_of(60, 2)
    whole = nearest(z, bank, k=7)
    monkeypatch.setattr(knn, "BLOCK", 8)
    parts = nearest(z, bank, k=7)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])
    assert knn_predict(z, bank, labels).shape == (50,)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_length_does_not_count_however_extreme(scale):
    z, bank, labels = rows(20, 0), rows(60, 1), labels_of(60, 2)
    plain = nearest(z, bank, k=5)
    scaled = nearest(z * scale, bank * scale, k=5)
    torch.testing.assert_close(scaled[0], plain[0], atol=1e-6, rtol=0)
    assert torch.equal(knn_predict(z * scale, bank, labels, k=5), knn_predict(z, bank, labels, k=5))


def test_more_neighbours_than_the_bank_has_are_refused_or_all_taken():
    z, bank, labels = rows(4, 0), rows(6, 1), labels_of(6, 2)
    with pytest.raises(VerificationError, match=r"k = 7 neighbours .* 6 rows"):
        nearest(z, bank, k=7)
    assert torch.equal(knn_predict(z, bank, labels, k=20), knn_predict(z, bank, labels, k=6))


def test_labels_with_gaps_are_kept():
    bank = torch.eye(3)
    assert knn_predict(bank, bank, torch.tensor([7, 0, 40]), k=1).tolist() == [7, 0, 40]


def test_an_approximate_search_finds_nearly_all_neighbours_and_says_their_cosines():
    stream = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=stream)
    bank = centres[torch.arange(6000) % 40] + 0.3 * torch.randn(6000, 16, generator=stream)
    queries = centres[torch.arange(100) % 40] + 0.3 * torch.randn(100, 16, generator=stream)
    exact, rough = (nearest(queries, bank, k=10, approximate=some) for some in (False, True))
    found = (rough[1].unsqueeze(2) == exact[1].unsqueeze(1)).any(dim=2).double().mean()
    assert found > 0.9
    unit = torch.nn.functional.normalize(bank, dim=1)
    asked = torch.nn.functional.normalize(queries, dim=1)
    cosines = (unit[rough[1]] @ asked.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(rough[0], cosines, rtol=0, atol=1e-5)


def test_an_approximate_search_whose_cells_hold_too_few_rows_is_exact_there():
    stream = torch.Generator().manual_seed(1)
    bank, queries = (torch.randn(n, 8, generator=stream) for n in (400, 5))
    exact, rough = (nearest(queries, bank, k=400, approximate=some) for some in (False, True))
    assert torch.equal(exact[1].sort(dim=1).values, rough[1].sort(dim=1).values)
