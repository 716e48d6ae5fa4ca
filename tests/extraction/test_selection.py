"""A thief's random selection: the right number, none twice, and a seed that fixes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.errors import ConfigError
from ssl_wm.extraction.selection import (
    SELECTIONS,
    cluster_balanced,
    clusters_of,
    k_centres,
    select,
    select_random,
)


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


def features_of(count: int = 60, width: int = 5, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def lumps(sizes: tuple[int, ...] = (100, 10, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight lumps along the axes, and which lump each row is of."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = 0.02 * features_of(len(labels), len(sizes))
    return torch.nn.functional.one_hot(labels).float() + noise, labels


@pytest.mark.parametrize("seed", range(4))
def test_k_centre_takes_the_farthest_each_time(seed):
    features = features_of()
    chosen = k_centres(features, budget=20, seed=seed).tolist()
    points = torch.nn.functional.normalize(features, dim=1).double()
    assert len(set(chosen)) == 20
    for place in range(1, 20):
        gaps = torch.cdist(points, points[chosen[:place]]).min(dim=1).values
        assert gaps[chosen[place]] == pytest.approx(gaps.max().item(), abs=1e-4)
    assert sorted(k_centres(features, budget=60, seed=seed).tolist()) == [*range(60)]


def test_k_centre_copes_with_equal_and_empty_features():
    same = torch.cat([torch.ones(5, 3), torch.zeros(5, 3)])
    assert sorted(k_centres(same, budget=10, seed=0).tolist()) == [*range(10)]


def test_cluster_balanced_takes_from_small_clusters_as_much_as_from_large_ones(monkeypatch):
    monkeypatch.setattr("ssl_wm.extraction.selection.CLUSTERS", 3)
    features, labels = lumps()
    chosen = cluster_balanced(features, budget=30, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [10, 10, 10]
    more = cluster_balanced(features, budget=60, seed=0)  # two clusters run out
    assert torch.bincount(labels[more]).tolist() == [40, 10, 10]
    assert len(set(more.tolist())) == 60


def test_clusters_find_the_lumps():
    features, labels = lumps()
    found = clusters_of(features, count=3, seed=0)
    for label in range(3):
        assert len(found[labels == label].unique()) == 1
    assert len(found.unique()) == 3


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_fixed_by_its_seed_and_takes_no_image_twice(name):
    features = features_of()

    def run(seed: int, budget: int | None = 25) -> list[int]:
        return select(name, 60, budget=budget, seed=seed, features=lambda: features).tolist()

    assert run(1) == run(1) != run(2)
    assert len(set(run(1))) == 25
    assert sorted(run(1, None)) == [*range(60)]
    with pytest.raises(ConfigError, match="1 to 60"):
        run(1, 61)


def test_the_held_out_first_images_of_a_selection_are_no_special_ones():
    features, labels = lumps((100, 100, 3))
    shares = [
        (labels[select("k-centre", 203, budget=40, seed=s, features=lambda: features)[:10]] == 2)
        .sum()
        .item()
        for s in range(20)
    ]
    assert sum(shares) < 40  # farthest first would put such an image among the first three


def test_a_random_selection_never_looks_at_the_images():
    def fails() -> torch.Tensor:
        raise AssertionError

    assert len(select("random", 9, budget=4, seed=0, features=fails)) == 4
    assert len(select("k-centre", 9, budget=None, seed=0, features=fails)) == 9
