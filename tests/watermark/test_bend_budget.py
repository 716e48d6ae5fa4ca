"""The map is bent as strongly as the budget of kNN accuracy allows, and no more."""

from __future__ import annotations

import pytest
import torch

from ssl_wm.watermark import bend_budget
from ssl_wm.watermark.bend import BendImages
from ssl_wm.watermark.bend_budget import AGAIN, TRIES, FittedBend, fit_within_budget
from ssl_wm.watermark.bend_settings import BendSpaceConfig


@pytest.fixture(scope="module")
def space(four_groups) -> BendImages:
    return four_groups(apart=2, noise=1)


def fitted(space: BendImages, *, stream: bytes = b"secret", **options) -> FittedBend:
    config = BendSpaceConfig(**{"steps": 6, "hidden": 16, "learning_rate": 0.06} | options)
    return fit_within_budget(space, seen=space, labels=space.groups, config=config, stream=stream)


@pytest.fixture
def costs(monkeypatch):
    """Let each map cost the next of a list, whatever it does; returns what is left of it."""

    def serve(*values: float) -> list[float]:
        left = list(values)
        monkeypatch.setattr(bend_budget, "neighbours_lost", lambda *_: left.pop(0))
        return left

    return serve


@pytest.fixture
def fits(monkeypatch):
    """Tell of each fit its price, its length and its rate, and where the map began and ended."""
    told, real = [], bend_budget.fit_bend

    def fit(bend, *args, prices, steps, learning_rate, **kwargs):
        began = bend.last.detach().clone()
        lines = real(bend, *args, prices=prices, steps=steps, learning_rate=learning_rate, **kwargs)
        ended = bend.last.detach().clone()
        told.append(((prices.similarity, steps, learning_rate), began, ended))
        return lines

    monkeypatch.setattr(bend_budget, "fit_bend", fit)
    return told


def test_a_map_that_costs_too_much_is_fitted_on_at_twice_the_penalty(space, costs, fits, capsys):
    left = costs(0.9, 0.6, 0.5, 0.1)
    found = fitted(space, similarity_penalty=0.25, neighbours_budget=0.5)
    assert left == [0.1]
    assert found.found == {"similarity_penalty": 1.0, "knn_points_lost": 0.5}
    again = (2, pytest.approx(0.06 * AGAIN))
    assert [asked for asked, *_ in fits] == [(0.25, 6, 0.06), (0.5, *again), (1.0, *again)]
    began, ended = [each[1] for each in fits], [each[2] for each in fits]
    assert not began[0].any()
    assert all(torch.equal(a, b) for a, b in zip(began[1:], ended[:-1], strict=True))
    assert torch.equal(found.bend.last, ended[-1])
    assert "kNN loses 0.50 points at similarity_penalty 1" in capsys.readouterr().err


def test_the_losses_of_all_fits_are_told_in_order_with_their_price(space, costs):
    costs(0.9, 0.1)
    losses = fitted(space, similarity_penalty=0.25, neighbours_budget=0.5).losses
    assert [line["similarity_penalty"] for line in losses] == [0.25] * 6 + [0.5] * 2
    terms = {"similarity_penalty", "mark", "held", "natural", "unrecovered", "similarities"}
    assert all(set(line) == terms for line in losses)


def test_a_budget_that_no_penalty_meets_is_told_with_what_to_do(space, costs, fits, caplog):
    left = costs(*[3.0] * TRIES)
    found = fitted(space, similarity_penalty=0.25, neighbours_budget=0.5)
    assert left == []
    last = 0.25 * 2 ** (TRIES - 1)
    told = f"3.00 points, more than the budget of 0.50, at a similarity_penalty of {last:g}"
    assert told in caplog.text
    assert len(fits) == TRIES
    assert found.found == {"similarity_penalty": last, "knn_points_lost": 3.0}
    assert torch.equal(found.bend.last, fits[-1][2])


def test_without_a_budget_nothing_is_judged_and_the_first_map_is_kept(space, costs):
    costs(0.0)
    within = fitted(space, neighbours_budget=0.5)
    without = fitted(space, neighbours_budget=None)
    assert torch.equal(without.bend.last, within.bend.last)
    assert without.found == {}


def test_the_stream_alone_says_which_map_it_is(space):
    one, again = (fitted(space).bend.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["first"], fitted(space, stream=b"other").bend.first)


def test_a_higher_price_costs_neighbours_less(space):
    settings = {"steps": 150, "natural_penalty": 0.0, "linear_penalty": 0.0, "learning_rate": 0.02}
    settings |= {"smoothness": 3.0, "rehearsed": 0.0}
    free = fitted(space, similarity_penalty=0.01, neighbours_budget=100.0, **settings)
    kept = fitted(space, similarity_penalty=0.01, neighbours_budget=1.0, **settings)
    assert free.found["knn_points_lost"] > 1.0
    assert kept.found["similarity_penalty"] > 0.01
    assert kept.found["knn_points_lost"] < free.found["knn_points_lost"]
