"""Recipes, encoders, several tests and looks: each error rate is at most what is said."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from ssl_wm.errors import VerificationError
from ssl_wm.verification.statistics import (
    alpha_of_look,
    conformal_p_value,
    holm,
    recipe_p_value,
    ways_to_reveal,
)

# --- A2: recipes -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 2**32), st.sampled_from([0, 3]))
def test_combinations_of_recipes_are_counted_by_hand(sub_keys, decoys, seed, kinds):
    stream = np.random.default_rng(seed)
    shape = (sub_keys, decoys + 1)
    values = stream.integers(kinds, size=shape) if kinds else stream.normal(size=shape)
    p_value, smallest = recipe_p_value(torch.from_numpy(values))
    sums = [sum(chosen) for chosen in product(*values[:3].astype(float))]
    own = sum(values[:3, 0].astype(float))
    assert p_value == pytest.approx(np.mean([total >= own - 1e-9 for total in sums]), abs=1e-12)
    assert smallest == 1 / len(sums) <= p_value


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32), st.sampled_from([0, 2]))
def test_over_all_recipes_that_could_be_the_keys_own_p_is_at_most_alpha(
    sub_keys, decoys, seed, kinds
):
    """The values are fixed, each is the own one equally often: p is exact, ties included."""
    stream = np.random.default_rng(seed)
    shape = (sub_keys, decoys + 1)
    values = stream.integers(kinds, size=shape) if kinds else stream.normal(size=shape)
    found = []
    for own in product(range(decoys + 1), repeat=sub_keys):
        rows = [
            [row[place], *np.delete(row, place)] for row, place in zip(values, own, strict=True)
        ]
        found.append(recipe_p_value(torch.tensor(np.array(rows, dtype=float)))[0])
    found = np.array(found)
    for alpha in {*found, 0.01, 0.1, 0.5}:
        assert (found <= alpha + 1e-12).mean() <= alpha + 1e-9
    if kinds == 0:
        np.testing.assert_allclose(np.sort(found), np.arange(1, len(found) + 1) / len(found))


def test_under_the_null_the_p_value_of_recipes_is_uniform():
    stream = np.random.default_rng(0)
    found = [recipe_p_value(torch.from_numpy(stream.normal(size=(3, 20))))[0] for _ in range(600)]
    assert kstest(found, "uniform").pvalue > 0.001


def test_many_recipes_need_no_table_of_all_combinations():
    """400^3 combinations are counted exactly, in blocks, where a table would hold 512 MB."""
    stream = np.random.default_rng(1)
    rows = torch.from_numpy(np.sort(stream.normal(size=(3, 400)), axis=1)[:, ::-1].copy())
    assert recipe_p_value(rows) == (1 / 400**3, 1 / 400**3)
    worst = rows.flip(1)
    assert recipe_p_value(worst)[0] == 1.0


@pytest.mark.parametrize("place", [(0, 0), (1, 3)])
def test_a_recipe_that_is_no_number_is_an_error_and_never_a_small_p(place):
    rows = torch.zeros(2, 5)
    rows[place] = math.nan
    with pytest.raises(VerificationError, match="not a number"):
        recipe_p_value(rows)


# --- B: null encoders --------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([0, 2]))
def test_each_of_exchangeable_encoders_is_accused_at_most_at_its_rate(nulls, sub_keys, seed, kinds):
    """Whoever of the m + 1 is the suspect: the ranks are 1 to m + 1, ties counted against it."""
    stream = np.random.default_rng(seed)
    shape = (nulls + 1, sub_keys)
    values = stream.integers(kinds, size=shape) if kinds else stream.normal(size=shape)
    everyone = torch.from_numpy(values.astype(float))
    deviation = values.std(axis=0)
    scores = ((values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).sum(axis=1)
    found = []
    for place in range(nulls + 1):
        rest = everyone[[other for other in range(nulls + 1) if other != place]]
        p_value, smallest = conformal_p_value(everyone[place], rest)
        assert smallest == 1 / (nulls + 1)
        assert p_value == np.mean(scores >= scores[place] - 1e-9)
        found.append(p_value)
    for alpha in {*found, 0.05, 0.2}:
        assert np.mean(np.array(found) <= alpha) <= alpha + 1e-12


def test_units_of_a_sub_key_do_not_decide_among_encoders():
    stream = np.random.default_rng(0)
    suspect, nulls = (torch.from_numpy(stream.normal(size=shape)) for shape in ((2,), (9, 2)))
    units, shift = torch.tensor([1e-3, 50.0]), torch.tensor([4.0, -7.0])
    again = conformal_p_value(suspect * units + shift, nulls * units + shift)
    assert again == conformal_p_value(suspect, nulls)


def test_an_encoder_that_is_no_number_is_an_error_and_never_a_small_p():
    for suspect, null in ((math.nan, 0.0), (1.0, math.nan)):
        with pytest.raises(VerificationError, match="not a number"):
            conformal_p_value(torch.tensor([suspect]), torch.tensor([[null], [0.5]]))


# --- several tests and looks -------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.02, 1.0]), min_size=1, max_size=5))
def test_holm_is_closed_testing_with_bonferroni(p_values):
    """A hypothesis' adjusted p is the largest Bonferroni p of all families that hold it."""
    count, expected = len(p_values), []
    for one in range(count):
        families = [
            family
            for size in range(1, count + 1)
            for family in combinations(range(count), size)
            if one in family
        ]
        expected.append(
            max(min(1.0, len(family) * min(p_values[i] for i in family)) for family in families)
        )
    assert holm(p_values) == pytest.approx(expected, abs=1e-12)


def test_holm_keeps_the_chance_of_any_false_accusation_at_alpha():
    stream = np.random.default_rng(0)
    shared = stream.uniform(size=(4000, 1))
    for p_values in (stream.uniform(size=(4000, 5)), np.repeat(shared, 5, axis=1)):
        wrong = np.mean([min(holm(row.tolist())) <= 0.05 for row in p_values])
        assert wrong <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)
    assert holm([]) == []


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 0.5))
def test_all_looks_together_spend_alpha(alpha):
    spent = [alpha_of_look(alpha, look) for look in range(1, 2000)]
    assert all(one > two > 0 for one, two in pairwise(spent))
    assert sum(spent) < alpha
    rest = alpha * 6 / math.pi**2 / 1999.5  # the sum of 1 / n^2 from 2000 on, but for 1e-11
    assert sum(spent) + rest == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("known", [1, 2, 3, 5])
def test_ways_to_reveal_are_counted_by_hand(known):
    for chosen in range(1, known + 1):
        ways = len(list(combinations(range(known), chosen)))
        assert ways_to_reveal(chosen, known) == ways
