"""No honest encoder is accused more often than alpha says: exactly, ties included."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, chi2
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.verification import statistics
from ssl_wm.verification.statistics import (
    bootstrap_mean,
    clopper_pearson,
    draw_joint_keys,
    joint_p_value,
    joint_statistic,
    rank_p_value,
    standardise,
)

ALPHAS = (0.001, 0.01, 0.05, 0.1, 1 / 6, 0.25, 0.5, 0.9)


def table_of(groups: int, seed: int, *, kinds: int = 0) -> Tensor:
    """Return a random table of all keys; ``kinds`` different values make ties."""
    stream = np.random.default_rng(seed)
    shape = (groups,) * 3
    values = stream.integers(kinds, size=shape) if kinds else stream.normal(size=shape)
    table = torch.from_numpy(values).double()
    for a, b, t in np.ndindex(shape):
        if len({a, b, t}) < 3:
            table[a, b, t] = math.nan
    return table


def keys_of(groups: int) -> list[tuple[int, int, int]]:
    return list(permutations(range(groups), 3))


def joint_keys_of(groups: int, sub_keys: int) -> np.ndarray:
    every = list(permutations(range(groups), 3 * sub_keys))
    return np.array(every).reshape(-1, sub_keys, 3)


# --- intervals ---------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_agrees_with_the_beta_quantiles(trials, data, confidence):
    successes = data.draw(st.sampled_from([0, trials]) | st.integers(0, trials))
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    assert clopper_pearson(successes, trials, confidence=confidence) == pytest.approx(
        (low, high), abs=1e-9
    )


def test_clopper_pearson_covers_every_rate_at_least_as_often_as_it_says():
    trials, counts = 30, np.arange(31)
    intervals = np.array([clopper_pearson(int(count), trials) for count in counts])
    for rate in np.linspace(0.01, 0.99, 33):
        inside = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
        assert binom.pmf(counts, trials, rate)[inside].sum() >= 0.95


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_the_bootstrap_interval_covers_the_mean_of_the_sample(values):
    low, high = bootstrap_mean(torch.tensor(values, dtype=torch.float64), draws=400)
    mean = float(np.mean(values))
    assert low - 1e-9 <= mean <= high + 1e-9
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    stream = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        sample = torch.from_numpy(stream.normal(3.0, 2.0, size=64))
        low, high = bootstrap_mean(sample, draws=300, seed=seed)
        hits += low <= 3.0 <= high
    assert 0.88 < hits / 150 <= 0.99


def test_the_bootstrap_repeats_and_narrows_with_more_values():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=1600))
    assert bootstrap_mean(values) == bootstrap_mean(values)
    few, many = (bootstrap_mean(values[:n], draws=500) for n in (100, 1600))
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(4, rel=0.25)
    assert many[1] - many[0] == pytest.approx(2 * 1.96 / 40, rel=0.15)


# --- one key among all keys --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 5), st.integers(0, 2**32), st.sampled_from([0, 1, 2, 5, 30]))
def test_the_false_accusation_rate_of_one_key_is_at_most_alpha(groups, seed, kinds):
    """The suspect is fixed, the key is random: over all keys, P(p <= alpha) <= alpha."""
    table = table_of(groups, seed, kinds=kinds)
    p_values = np.array([rank_p_value(table, key)[0] for key in keys_of(groups)])
    grid = {*ALPHAS, *(k / len(p_values) for k in range(len(p_values) + 1)), *p_values}
    for alpha in grid:
        assert (p_values <= alpha).mean() <= alpha + 1e-12
    if kinds == 0:
        expected = np.arange(1, len(p_values) + 1) / len(p_values)
        np.testing.assert_allclose(np.sort(p_values), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 5), st.integers(0, 2**32), st.data())
def test_rank_and_number_are_counted_by_hand(groups, seed, data):
    table = table_of(groups, seed, kinds=data.draw(st.sampled_from([0, 3])))
    key = data.draw(st.sampled_from(keys_of(groups)))
    p_value, rank, number = rank_p_value(table, key)
    values = [float(table[other]) for other in keys_of(groups)]
    assert number == len(values) == groups * (groups - 1) * (groups - 2)
    assert rank == sum(value >= float(table[key]) for value in values)
    assert p_value == rank / number > 0


def test_a_statistic_that_is_no_number_is_an_error_and_never_a_detection():
    table = table_of(4, 0)
    table[0, 1, 2] = math.nan
    for key in ((0, 1, 2), (1, 1, 2)):
        with pytest.raises(VerificationError, match="not a number"):
            rank_p_value(table, key)
    with pytest.raises(VerificationError, match="not a number"):
        rank_p_value(torch.full((4, 4, 4), math.nan), (0, 1, 2))


# --- units -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 5), st.integers(0, 2**32), st.floats(0.01, 100), st.floats(-100, 100))
def test_standard_units_are_the_same_for_any_unit_and_keep_the_order(groups, seed, scale, shift):
    table = table_of(groups, seed)
    standard = standardise(table)
    values = np.sort(table[~table.isnan()].numpy())
    median = values[(len(values) - 1) // 2]
    deviations = np.sort(np.abs(values - median))
    expected = (table - median) / (1.4826 * deviations[(len(values) - 1) // 2])
    torch.testing.assert_close(standard, expected, equal_nan=True)
    again = standardise(table * scale + shift)
    torch.testing.assert_close(again, standard, equal_nan=True, atol=1e-6, rtol=1e-6)
    known = ~table.isnan()
    assert torch.equal(table[known].argsort(), standard[known].argsort())


def test_a_table_of_equal_values_stays_finite():
    standard = standardise(table_of(4, 0, kinds=1))
    assert set(standard[~standard.isnan()].tolist()) == {0.0}


# --- joint keys --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 8), st.integers(1, 300), st.integers(0, 2**31))
def test_all_groups_of_a_joint_key_differ(sub_keys, spare, draws, seed):
    groups = 3 * sub_keys + spare
    keys = draw_joint_keys(groups, sub_keys=sub_keys, draws=draws, seed=seed)
    assert keys.shape == (draws, sub_keys, 3)
    flat = np.sort(keys.reshape(draws, -1), axis=1)
    assert (np.diff(flat.astype(int), axis=1) > 0).all()
    assert (flat < groups).all()
    assert (keys == draw_joint_keys(groups, sub_keys=sub_keys, draws=draws, seed=seed)).all()


@pytest.mark.parametrize(("groups", "sub_keys"), [(3, 1), (5, 1), (6, 2), (7, 2)])
def test_every_joint_key_is_drawn_equally_often(groups, sub_keys):
    outcomes = math.perm(groups, 3 * sub_keys)
    draws = 40 * outcomes
    keys = draw_joint_keys(groups, sub_keys=sub_keys, draws=draws, seed=1).reshape(draws, -1)
    digits = keys.astype(np.int64) @ groups ** np.arange(3 * sub_keys)
    counts = np.unique(digits, return_counts=True)[1]
    assert len(counts) == outcomes
    statistic = ((counts - 40) ** 2 / 40).sum()
    assert 0.001 < chi2.sf(statistic, outcomes - 1) < 0.999


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32))
def test_a_joint_statistic_is_the_sum_over_its_sub_keys(sub_keys, seed):
    tables = torch.stack([table_of(9, seed + place) for place in range(sub_keys)])
    keys = draw_joint_keys(9, sub_keys=sub_keys, draws=20, seed=seed % 1000)
    expected = [
        sum(float(tables[place, a, b, t]) for place, (a, b, t) in enumerate(key)) for key in keys
    ]
    np.testing.assert_allclose(joint_statistic(tables, keys), expected, atol=1e-12)


@pytest.mark.parametrize("kinds", [0, 3])
@pytest.mark.parametrize(("groups", "sub_keys"), [(4, 1), (6, 2)])
def test_over_all_joint_keys_the_p_value_is_the_exact_rank(groups, sub_keys, kinds, monkeypatch):
    tables = torch.stack([table_of(groups, place, kinds=kinds) for place in range(sub_keys)])
    every = joint_keys_of(groups, sub_keys)
    values = joint_statistic(tables, every)
    exact = (values[None] >= values[:, None] - 1e-12).mean(axis=1)
    for place in range(0, len(every), 37):
        sampled, null = joint_p_value(tables, every[place], draws=40_000, seed=3)
        error = 4.5 * math.sqrt(exact[place] * (1 - exact[place]) / 40_000) + 1 / 40_000
        assert abs(sampled - exact[place]) < error
        assert len(null) == 20_000
        assert set(np.round(null, 9)) <= set(np.round(values, 9))

    def enumerate_all(count: int, *, sub_keys: int, draws: int, seed: int) -> np.ndarray:
        return every

    monkeypatch.setattr(statistics, "draw_joint_keys", enumerate_all)
    for place in range(0, len(every), 37):
        p_value, _ = joint_p_value(tables, every[place], draws=len(every), seed=0)
        counted = round(exact[place] * len(every))
        assert p_value == pytest.approx((1 + counted) / (1 + len(every)), abs=1e-12)


@pytest.mark.parametrize("kinds", [0, 2, 6])
@pytest.mark.parametrize(("groups", "sub_keys", "seeds"), [(4, 1, 400), (6, 2, 16)])
def test_the_false_accusation_rate_of_joint_keys_is_at_most_alpha(groups, sub_keys, seeds, kinds):
    """Over every joint key and many sets of draws, P(p <= alpha) <= alpha, with few draws too."""
    tables = torch.stack([table_of(groups, 10 + s, kinds=kinds) for s in range(sub_keys)])
    every = joint_keys_of(groups, sub_keys)
    shares = []
    for seed in range(seeds):
        p_values = np.array([joint_p_value(tables, key, draws=19, seed=seed)[0] for key in every])
        shares.append([(p_values <= alpha).mean() for alpha in ALPHAS])
    mean, spread = np.mean(shares, axis=0), np.std(shares, axis=0) / math.sqrt(seeds)
    assert (mean <= np.array(ALPHAS) + 4 * spread).all()


@pytest.mark.parametrize("kinds", [0, 6])
def test_the_public_draws_make_no_key_too_lucky(kinds):
    """Verify always uses the same draws: with these too the rate is alpha, but for noise."""
    tables = torch.stack([table_of(6, 20 + s, kinds=kinds) for s in range(2)])
    every, draws = joint_keys_of(6, 2), 9_999
    p_values = np.array([joint_p_value(tables, key, draws=draws, seed=0)[0] for key in every])
    for alpha in (0.01, 0.05, 0.1, 0.5):
        assert (p_values <= alpha).mean() <= alpha + 4 * math.sqrt(alpha / draws)


def test_draws_are_counted_over_all_blocks():
    tables = torch.stack([table_of(7, s) for s in range(2)])
    key = joint_keys_of(7, 2)[100]
    p_value, null = joint_p_value(tables, key, draws=2500, seed=5, block=1000)
    counted = 0
    for number, size in enumerate((1000, 1000, 500)):
        keys = draw_joint_keys(7, sub_keys=2, draws=size, seed=5 + number)
        counted += (joint_statistic(tables, keys) >= joint_statistic(tables, key[None])).sum()
    assert p_value == (1 + counted) / 2501
    assert len(null) == 1000


def test_a_joint_statistic_that_is_no_number_is_an_error_and_never_a_detection():
    tables, key = torch.stack([table_of(9, s) for s in range(2)]), np.arange(6).reshape(2, 3)
    own, another = (0, *key[0].tolist()), (1, 8, 7, 6)
    for broken, draws in ((own, 1), (another, 20_000)):
        bad = tables.clone()
        bad[broken] = math.nan
        with pytest.raises(VerificationError, match="not a number"):
            joint_p_value(bad, key, draws=draws, seed=0)
