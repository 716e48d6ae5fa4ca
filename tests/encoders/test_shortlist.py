"""The bfloat16 shortlist finds exactly the neighbours that float32 finds, whatever comes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_wm.encoders import nearest, shortlist
from ssl_wm.encoders.shortlist import Shortlist, error_bound


def rows(count: int, width: int, seed: int, *, shift: float = 0.0) -> Tensor:
    """Return random unit rows; the larger ``shift``, the nearer they all lie to one another."""
    stream = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=stream) + shift, dim=1)


def found(queries: Tensor, bank: Tensor, *, k: int, tile: int) -> Shortlist:
    short = Shortlist(queries, k=k)
    for part in bank.split(tile):
        short.add(part)
    return short


def check_exact(queries: Tensor, bank: Tensor, *, k: int, tile: int) -> None:
    short = found(queries, bank, k=k, tile=tile)
    cosines = queries.double() @ bank.double().T
    best = cosines.topk(k, dim=1).values
    assert torch.equal(short.indices.sort(dim=1).values.unique(dim=1), short.indices.sort(1).values)
    torch.testing.assert_close(cosines.gather(1, short.indices), best, rtol=0, atol=3e-7)
    torch.testing.assert_close(short.cosines.double(), best, rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(20, 700), st.integers(2, 40), st.integers(1, 20),
    st.sampled_from([20, 64, 100, 1000]), st.sampled_from([0.0, 0.5, 3.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_the_neighbours_are_those_of_float64_at_any_size(q, n, width, k, tile, shift, seed):
    check_exact(
        rows(q, width, seed, shift=shift), rows(n, width, seed + 1, shift=shift), k=k, tile=tile
    )


def test_all_cosines_negative_are_ordered_too():
    bank = rows(500, 16, 0, shift=2.0)
    check_exact(-rows(30, 16, 1, shift=2.0), bank, k=7, tile=200)


def test_rows_too_near_to_one_another_for_bfloat16_are_told_apart(monkeypatch):
    monkeypatch.setattr(shortlist, "CROWD", 16)
    check_exact(rows(20, 32, 0, shift=30.0), rows(900, 32, 1, shift=30.0), k=5, tile=400)


def test_more_queries_than_a_block_keep_their_order(monkeypatch):
    monkeypatch.setattr(shortlist, "QUERIES", 8)
    check_exact(rows(21, 16, 0), rows(300, 16, 1), k=3, tile=128)


@pytest.mark.parametrize("width", [2, 3, 17])
def test_rows_that_are_in_the_bank_find_themselves_although_bfloat16_exceeds_one(width):
    queries = rows(200, width, 0, shift=10.0)
    bank = torch.cat([rows(700, width, 1, shift=10.0), queries])
    check_exact(queries, bank, k=3, tile=300)


def test_a_row_of_zeros_finds_some_neighbours_and_harms_no_other():
    queries, bank = rows(6, 8, 0), rows(200, 8, 1)
    queries[2] = 0
    bank[:3] = 0
    check_exact(queries, bank, k=4, tile=90)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 600), st.sampled_from([0.0, 1.0, 10.0]), st.integers(0, 2**32))
def test_no_bfloat16_cosine_lies_further_below_the_exact_one_than_its_bound(width, shift, seed):
    q, b = rows(16, width, seed, shift=shift), rows(64, width, seed + 1, shift=shift)
    errors = [(part - part.bfloat16().float()).norm(dim=1) for part in (q, b)]
    bound = error_bound(errors[0], float(errors[1].max()), width=width)
    gap = q.double() @ b.double().T - (q.bfloat16() @ b.bfloat16().T).double()
    assert (gap <= bound.unsqueeze(1)).all()


def test_both_ways_through_nearest_find_the_same(monkeypatch):
    queries, bank = 5 * rows(300, 24, 0), 0.1 * rows(5000, 24, 1)
    both = []
    for fast in (True, False):
        monkeypatch.setattr(nearest, "fast_bfloat16", lambda fast=fast: fast)
        both.append(nearest.nearest(queries, bank, k=9))
    assert torch.equal(both[0][1], both[1][1])
    torch.testing.assert_close(both[0][0], both[1][0], rtol=0, atol=1e-6)


def test_a_small_search_takes_no_shortlist(monkeypatch):
    monkeypatch.setattr(nearest, "fast_bfloat16", lambda: pytest.fail("asked"))
    assert nearest.nearest(rows(10, 4, 0), rows(5000, 4, 1), k=2)[1].shape == (10, 2)
