"""The nearest embeddings are those that brute force finds, at any scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_wm.encoders import nearest as module
from ssl_wm.encoders.nearest import nearest
from ssl_wm.errors import DataError


def rows(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


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


def test_results_do_not_depend_on_the_block(monkeypatch):
    z, bank = rows(50, 0), rows(60, 1)
    whole = nearest(z, bank, k=7)
    monkeypatch.setattr(module, "BLOCK", 8)
    parts = nearest(z, bank, k=7)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


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


def test_more_neighbours_than_the_bank_has_are_refused():
    with pytest.raises(DataError, match=r"k = 7 neighbours .* 6 rows"):
        nearest(rows(4, 0), rows(6, 1), k=7)
