"""The rank among all joint keys is that of a count of them all, and the rule keeps its rate."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.errors import VerificationError
from ssl_wm.verification.counting import TAIL, count_at_least, joint_keys, null_sample, rank_of_all
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import joint_p_value, joint_statistic
from ssl_wm.verification.verify import verify


def tables_of(groups: int, sub_keys: int, seed: int, *, ties: bool = False) -> torch.Tensor:
    """Return random tables, NaN where two of A, B, t are the same group."""
    stream = torch.Generator().manual_seed(seed)
    shape = (sub_keys, groups, groups, groups)
    values = torch.randn(shape, generator=stream, dtype=torch.float64)
    if ties:
        values = values.round()
    place = torch.arange(groups)
    a, b, t = place.view(-1, 1, 1), place.view(1, -1, 1), place.view(1, 1, -1)
    return values.masked_fill((a == b) | (b == t) | (a == t), torch.nan)


def everyone(groups: int, sub_keys: int) -> np.ndarray:
    """Return all joint keys, (N, S, 3)."""
    rows = np.array(list(permutations(range(groups), 3 * sub_keys)))
    return rows.reshape(-1, sub_keys, 3)


@settings(max_examples=40)
@given(st.sampled_from([(3, 1), (6, 1), (6, 2), (7, 2)]), st.integers(0, 2**32), st.booleans())
def test_the_count_is_that_of_looking_at_every_joint_key(shape, seed, ties):
    tables, keys = tables_of(*shape, seed, ties=ties), everyone(*shape)
    assert len(keys) == joint_keys(shape[0], sub_keys=shape[1])
    statistics = joint_statistic(tables, keys)
    for number in np.random.default_rng(seed).integers(len(keys), size=5):
        expected = int((statistics >= statistics[number] - 1e-12).sum())
        assert count_at_least(tables, keys[number], limit=10**9) == expected


def test_three_sub_keys_are_counted_as_their_draws_foretell():
    tables = tables_of(20, 3, 1)
    key = np.arange(9).reshape(3, 3)
    for place in range(3):
        tables[place][tuple(key[place])] = 2.5
    rank, share = rank_of_all(tables, key, most=20_000_000)
    assert share == TAIL
    assert rank is not None
    drawn, _ = joint_p_value(tables, key, draws=1_999_999, seed=3)
    assert rank / joint_keys(20, sub_keys=3) == pytest.approx(drawn, rel=0.6)
    for place in range(3):
        tables[place][tuple(key[place])] = 9.0
    assert rank_of_all(tables, key, most=20_000_000) == (1, TAIL)


def test_a_key_outside_the_told_share_has_no_rank_and_no_better_one_lacks_it():
    tables, key = tables_of(12, 3, 5), np.arange(9).reshape(3, 3)
    told = []
    for value in (0.0, 1.0, 2.0, 3.0, 4.0):
        for place in range(3):
            tables[place][tuple(key[place])] = value
        told.append(rank_of_all(tables, key, most=200_000)[0])
    assert told[0] is None
    assert told[-1] == 1
    known = [rank is not None for rank in told]
    assert known == sorted(known)
    ranks = [rank for rank in told if rank is not None]
    assert ranks == sorted(ranks, reverse=True)
    assert max(ranks) <= TAIL * joint_keys(12, sub_keys=3)


def test_where_few_keys_are_all_are_counted_whatever_the_key():
    tables, keys = tables_of(7, 2, 2), everyone(7, 2)
    statistics = joint_statistic(tables, keys)
    worst = keys[int(statistics.argmin())]
    assert rank_of_all(tables, worst, most=210**2) == (len(keys), 1.0)
    assert rank_of_all(tables, worst, most=210**2 - 1)[0] is None


def test_a_statistic_that_is_no_number_is_refused():
    tables = tables_of(6, 2, 0)
    tables[1, 3, 4, 5] = torch.nan
    with pytest.raises(VerificationError, match="not a number"):
        count_at_least(tables, np.array([[0, 1, 2], [3, 4, 5]]), limit=10**6)


def test_the_sample_shows_as_many_keys_as_it_says():
    assert null_sample(tables_of(9, 3, 0), draws=500).shape == (500,)


# --- the verdict -------------------------------------------------------------------------------

READ = ReadConfig(per_pair=8, recipes=0, reference=20, trigger_count=24, neighbours=5)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, sub_keys=2)


def judged(suspect, key, images, null, **settings: object):
    config = VerifyConfig(read=READ, draws=999, **settings)
    return verify(suspect, key=key, images=images, nulls=[null], config=config)


def test_a_verdict_tells_the_rank_among_all_joint_keys(world, images, key):
    marked, clean = world.palette(images, key=key), world.convnet()
    told = judged(marked, key, images, clean)
    assert told.test == "rank among all 20,160 joint keys"
    assert told.smallest_p == 1 / 20_160
    assert told.p_value * 20_160 == pytest.approx(round(told.p_value * 20_160))
    drawn = judged(marked, key, images, clean, counted=0)
    assert drawn.test == "rank among 999 random joint keys"
    assert drawn.smallest_p == 1 / 1000
    assert told.p_value == pytest.approx(drawn.p_value, abs=0.02)
    assert told.position == drawn.position


def test_a_verdict_that_cannot_be_counted_pays_for_having_tried(world, images, key):
    innocent, clean = world.convnet(seed=3), world.convnet()
    drawn = judged(innocent, key, images, clean, counted=0)
    told = judged(innocent, key, images, clean, counted=100)
    assert told.p_value == pytest.approx(drawn.p_value + TAIL, abs=1e-12)
    assert told.test == drawn.test


def test_all_keys_together_are_accused_no_oftener_than_alpha(monkeypatch):
    """Told ranks and random ones together: no alpha is overdrawn, the told share's least of all."""
    import ssl_wm.verification.counting as counting
    from ssl_wm.verification.judge import _rank

    monkeypatch.setattr(counting, "TAIL", 0.02)
    tables, keys = tables_of(6, 2, 11), everyone(6, 2)
    config = VerifyConfig(draws=1_999, counted=5_000, read=READ)
    found = np.array([_rank(tables, each, config)[0] for each in keys])
    assert (found <= 0.02).any()
    assert (found > 0.02).any()
    for alpha in (1 / 720, 0.005, 0.01, 0.02):
        assert (found <= alpha).mean() <= alpha + 1e-12
    for alpha in (0.03, 0.05, 0.1, 0.3):
        assert (found <= alpha).mean() <= alpha + 3 * np.sqrt(alpha / 1_999)
