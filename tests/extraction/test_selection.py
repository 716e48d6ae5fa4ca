"""A thief's random selection: the right number, none twice, and a seed that fixes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.errors import ConfigError
from ssl_wm.extraction.selection import select_random


@given(st.integers(1, 300), st.integers(0, 50), st.data())
def test_a_selection_has_the_budgets_size_and_no_image_twice(count, seed, data):
    budget = data.draw(st.none() | st.integers(1, count))
    chosen = select_random(count, budget=budget, seed=seed)
    assert chosen.dtype == torch.int64
    assert chosen.shape == (budget or count,)
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(count))


def test_the_seed_alone_decides_and_a_larger_budget_extends_a_smaller_one():
    one = select_random(100, budget=20, seed=3)
    torch.manual_seed(8)
    assert torch.equal(one, select_random(100, budget=20, seed=3))
    assert torch.equal(one, select_random(100, budget=50, seed=3)[:20])
    assert not torch.equal(one, select_random(100, budget=20, seed=4))


def test_every_image_is_chosen_about_equally_often():
    counts = torch.zeros(20)
    for seed in range(1000):
        counts[select_random(20, budget=5, seed=seed)] += 1
    assert (counts - 250).abs().max() < 4 * (1000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("budget", [0, -1, 11])
def test_a_budget_out_of_range_is_refused_with_the_range(budget):
    with pytest.raises(ConfigError, match=rf"must be 1 to 10 .*; got {budget}"):
        select_random(10, budget=budget, seed=0)
