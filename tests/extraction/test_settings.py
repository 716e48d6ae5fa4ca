"""Settings of a theft: the price is told right, and what contradicts itself is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ssl_wm.errors import ConfigError
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.extraction.settings import StealConfig, checked_attack, plan, quote
from ssl_wm.training.settings import FitConfig


def config(**changes: object) -> StealConfig:
    return StealConfig(fit=FitConfig(epochs=10, batch_size=100), **changes)


@pytest.mark.parametrize(
    ("settings", "unique", "repeated"),
    [
        ({}, 1000, 0),
        ({"budget": 500}, 500, 0),
        ({"budget": 500, "repeats": 4}, 500, 1500),
        ({"budget": 500, "attack": "rda"}, 5000, 0),
        ({"budget": 500, "attack": "cont-steal-live"}, 10 + 10 * 400, 0),
        ({"budget": 500, "attack": "cont-steal-live", "held_out": 0}, 1 + 10 * 400, 0),
        ({"budget": 500, "attack": "jba"}, 500, 0),
        ({"budget": 500, "attack": "knockoff-adaptive", "repeats": 2}, 500, 500),
        ({"budget": 500, "attack": "composites"}, 500, 0),
    ],
)
def test_a_quote_counts_every_image_that_will_be_sent(settings, unique, repeated):
    told = quote(config(**settings), pool=1000, price=2.0, rate=50.0)
    assert (told.unique, told.repeated, told.billed) == (unique, repeated, unique + repeated)
    assert told.cost == pytest.approx(told.billed * 0.002)
    assert told.seconds == pytest.approx(told.billed / 50)


def test_without_price_and_rate_cost_and_time_stay_open():
    told = quote(config(), pool=10)
    assert (told.cost, told.seconds) == (None, None)


@pytest.mark.parametrize(
    "wrong", [{"price": -1}, {"price": float("nan")}, {"rate": 0}, {"rate": float("inf")}]
)
def test_a_price_or_rate_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        quote(config(), pool=10, **wrong)


@given(
    st.sampled_from(sorted(ATTACKS)), st.integers(8, 5000), st.floats(0, 0.49), st.integers(1, 99)
)
def test_a_plan_spends_the_budget_and_no_more(attack, pool, held_out, seed):
    settings = config(attack=attack, held_out=held_out, seed=seed)
    own = int(pool * ATTACKS[attack].asking.composites)
    if own and pool - own - int(pool * held_out) < 2:
        with pytest.raises(ConfigError, match="too small"):
            plan(settings, pool=pool)
        return
    planned = plan(settings, pool=pool)
    assert planned.images == pool
    assert 0 <= planned.held < planned.images
    assert planned.first <= planned.images
    assert planned.first + planned.rounds * planned.batch >= planned.images
    if ATTACKS[attack].asking.rounds:
        assert planned.first >= planned.held + 2
        assert planned.rounds <= ATTACKS[attack].asking.rounds.count


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": "best", "held_out": 0}, "held_out above 0"),
        ({"attack": "rda", "repeats": 2}, "nothing to repeat"),
        ({"attack": "cont-steal-live", "denoise": True}, "no fixed set"),
        ({"attack": "knockoff-random", "selection": "k-centre"}, "attack cosine"),
        ({"selection": "k-center"}, "did you mean 'k-centre'"),
        ({"attack": "knockof"}, "did you mean 'knockoff"),
        ({"start": "convnet-xs", "arch": "convnet-s"}, "leave arch out"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        checked_attack(config(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ["cont-steal-live", "jba", "knockoff-adaptive"])
def test_an_attack_that_asks_while_it_trains_runs_in_one_process(attack):
    with pytest.raises(ConfigError, match="devices to 1"):
        checked_attack(StealConfig(attack=attack, fit=FitConfig(devices=2)))


@pytest.mark.parametrize(
    ("attack", "budget"), [("jba", 1), ("composites", 2), ("cont-steal-live", 1)]
)
def test_a_budget_too_small_for_the_attack_is_refused(attack, budget):
    with pytest.raises(ConfigError, match="too small"):
        plan(config(attack=attack, budget=budget), pool=50)
    assert plan(config(attack=attack, budget=budget + 1), pool=50).images == budget + 1


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"keep": "first"}, {"denoise": 2}])
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


def test_settings_of_older_runs_are_written_as_they_were():
    told = StealConfig().model_dump(mode="json")
    assert set(told) == {"attack", "arch", "budget", "held_out", "seed", "fit"}
    other = StealConfig(keep="best", repeats=3).model_dump()
    assert (other["keep"], other["repeats"]) == ("best", 3)
    assert StealConfig.model_validate(other) == StealConfig(keep="best", repeats=3)
    warm = StealConfig(start="convnet-xs")
    assert checked_attack(StealConfig.model_validate(warm.model_dump()))
    assert "arch" not in warm.model_dump()
