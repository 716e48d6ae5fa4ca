"""The fitted centring takes off what nulls explain, knows no key, and leaves ranks exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.verification.centring import (
    CENTRINGS,
    centred,
    null_centred,
    null_fitted,
    unexplained,
)
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import rank_p_value
from ssl_wm.verification.verify import verify


def tables(seed: int, *, count: int, groups: int = 5, sub_keys: int = 2) -> np.ndarray:
    """Return (count, S, G, G, G) random tables, NaN where there is no such key."""
    values = np.random.default_rng(seed).normal(size=(count, sub_keys, groups, groups, groups))
    for a, b, t in np.ndindex(groups, groups, groups):
        if len({a, b, t}) < 3:
            values[:, :, a, b, t] = np.nan
    return values


def rest_by_hand(table: np.ndarray, nulls: list[np.ndarray]) -> np.ndarray:
    """Return what the normal equations leave of ``table``."""
    known = ~np.isnan(table)
    given_ = np.stack([null[known] for null in nulls], axis=1)
    weights = np.linalg.solve(given_.T @ given_, given_.T @ table[known])
    left = np.full_like(table, np.nan)
    left[known] = table[known] - given_ @ weights
    return left


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_the_fit_agrees_with_the_normal_equations_in_numpy(seed, count):
    suspect, *nulls = tables(seed, count=1 + count)
    both = torch.from_numpy(suspect), torch.from_numpy(np.stack(nulls))
    found, undivided = null_fitted(*both).numpy(), unexplained(*both).numpy()
    for place in range(2):
        own = [null[place] for null in nulls]
        expected = rest_by_hand(suspect[place], own)
        np.testing.assert_allclose(undivided[place], expected, atol=1e-9)
        if count >= 4:
            rests = [rest_by_hand(own[j], own[:j] + own[j + 1 :]) for j in range(count)]
            squares = sum(rest**2 for rest in rests)
            variances = np.sort((squares / count)[~np.isnan(squares)])
            prior = variances[(len(variances) - 1) // 2]  # torch's median: the lower middle
            expected = expected / np.sqrt((4 * prior + squares) / (4 + count))
        np.testing.assert_allclose(found[place], expected, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(-3, 3), st.floats(-3, 3))
def test_what_nulls_explain_is_gone_whatever_its_amount_and_a_mark_stays(seed, one, two):
    first, second = (torch.from_numpy(table) for table in tables(seed, count=2))
    suspect = one * first + two * second
    suspect[0, 1, 2, 3] += 20
    left = null_fitted(suspect, torch.stack([first, second]))
    assert left[0].nan_to_num(-1e9).argmax() == 1 * 25 + 2 * 5 + 3
    assert float(left[1].nan_to_num(0).abs().max()) < 1e-9


def test_a_suspect_that_is_a_null_has_nothing_left():
    nulls = torch.from_numpy(tables(0, count=3))
    assert float(null_fitted(nulls[1], nulls).nan_to_num(0).abs().max()) == 0


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_the_order_of_nulls_does_not_count(count):
    suspect, *nulls = (torch.from_numpy(table) for table in tables(count, count=1 + count))
    plain, turned = (null_fitted(suspect, torch.stack(each)) for each in (nulls, nulls[::-1]))
    torch.testing.assert_close(turned, plain, equal_nan=True)


@pytest.mark.parametrize("count", [1, 2])
def test_a_null_told_again_in_another_unit_adds_nothing(count):
    suspect, *nulls = (torch.from_numpy(table) for table in tables(count, count=1 + count))
    plain = null_fitted(suspect, torch.stack(nulls))
    again = null_fitted(suspect, torch.stack([3 * nulls[0], *nulls]))
    torch.testing.assert_close(again, plain, equal_nan=True)


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_ranks_stay_exact_however_nulls_are_taken_off(centring, count):
    """Over all keys, P(p <= alpha) = alpha at every rank, whatever suspect and nulls are."""
    suspect, *nulls = (torch.from_numpy(table) for table in tables(count, count=1 + count))
    statistics = centred(suspect, torch.stack(nulls), centring=centring)[0]
    keys = [key for key in np.ndindex(5, 5, 5) if len(set(key)) == 3]
    found = np.sort([rank_p_value(statistics, key)[0] for key in keys])
    np.testing.assert_allclose(found, np.arange(1, 61) / 60)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_a_margin_that_is_not_a_number_stays_one_and_does_not_spread(centring):
    suspect, *nulls = (torch.from_numpy(table) for table in tables(1, count=3))
    nulls[0][0, 1, 2, 3] = torch.nan
    found = centred(suspect, torch.stack(nulls), centring=centring)
    assert bool(found[0, 1, 2, 3].isnan())
    assert int((found.isnan() & ~suspect.isnan()).sum()) == 1


def test_the_mean_is_the_default_and_verify_ranks_what_it_is_told(world):
    images = world.images(groups=8)
    key = world.key(images, number=1)
    suspect, clean = world.palette(images, key=key), world.palette(images)
    read = ReadConfig(per_pair=8, recipes=4, reference=20, trigger_count=24, neighbours=5)
    assert read.centring == "mean"
    told = {}
    for name in CENTRINGS:
        config = VerifyConfig(
            read=read.model_copy(update={"centring": name}), draws=9_999, alpha=0.05
        )
        told[name] = verify(suspect, key=key, images=images, nulls=[clean], config=config)
    assert {name: verdict.decision for name, verdict in told.items()} == {
        "mean": "detected", "fitted": "detected", "unexplained": "detected",
    }  # fmt: skip
    assert told["mean"].sub_keys[0].statistic != told["fitted"].sub_keys[0].statistic
    assert told["mean"].tests[1] == told["fitted"].tests[1]  # recipes: always the mean


def test_the_mean_of_equal_nulls_is_any_one_of_them():
    suspect, null = (torch.from_numpy(table) for table in tables(3, count=2))
    two = null_centred(suspect, torch.stack([null, null]))
    torch.testing.assert_close(two, suspect - null, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_centring_agrees_with_its_formula_in_numpy(seed, count):
    suspect, *nulls = tables(seed, count=1 + count)
    found = null_centred(torch.from_numpy(suspect), torch.from_numpy(np.stack(nulls))).numpy()
    mean = sum(nulls) / count
    expected = suspect - mean
    if count >= 4:
        squares = sum((null - mean) ** 2 for null in nulls)
        variances = np.sort((squares / (count - 1))[~np.isnan(squares)])
        prior = variances[(len(variances) - 1) // 2]  # torch's median: the lower of two middles
        expected = expected / np.sqrt((4 * prior + squares) / (4 + count - 1))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_nulls_that_agree_give_finite_statistics_in_the_same_order(count):
    suspect, null = (torch.from_numpy(table) for table in tables(0, count=2))
    found = null_centred(suspect, null.expand(count, *null.shape))
    known = ~found.isnan()
    assert bool(found[known].isfinite().all())
    assert torch.equal(known, ~suspect.isnan())
    assert torch.equal(found[known].argsort(), (suspect - null)[known].argsort())


def test_a_key_whose_few_nulls_happen_to_agree_does_not_become_certain():
    """Divided by its own deviation of 1e-6 it would lead by far; the median's holds it back."""
    nulls = torch.randn(5, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nulls[:, 0] = 1e-6 * nulls[:, 0]
    suspect = torch.full((100,), 0.5, dtype=torch.float64)
    assert 0.3 < float(null_centred(suspect, nulls)[0]) < 1.5
