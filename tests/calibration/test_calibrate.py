"""The measured rate of false accusations is the true one, and a broken rule is caught by it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, ttest_1samp
from torch import Tensor

from ssl_wm.calibration import calibrate as module
from ssl_wm.calibration.calibrate import CalibrateConfig, calibrate, key_p_values
from ssl_wm.calibration.fresh import FreshKeys, fresh_key, fresh_keys, read_composites
from ssl_wm.calibration.naive import NAIVE, all_margins, bootstrap, of_triples, t_test
from ssl_wm.calibration.outcome import Calibration
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import KeyFileError, VerificationError
from ssl_wm.files import canonical_json, plain
from ssl_wm.verification.answers import ask
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import draw_joint_keys, joint_p_value, rank_p_value, standardise
from ssl_wm.verification.verify import verify
from ssl_wm.watermark.carriers import own_carriers
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.triggers import ordered_pairs

READ = ReadConfig(per_pair=8, recipes=0, reference=12, trigger_count=24, neighbours=5)
CONFIG = CalibrateConfig(keys=100, recipes=2, draws=9_999, read=READ)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


@pytest.fixture(scope="module")
def innocent(world):
    return {f"random {seed}": world.convnet(seed=seed) for seed in range(12)}


@pytest.fixture(scope="module")
def null(world):
    return world.convnet(seed=99)


@pytest.fixture(scope="module")
def found(innocent, key, images, null):
    return calibrate(innocent, key=key, images=images, nulls=[null], config=CONFIG)


def table_of(groups: int, seed: int, *, kinds: int = 0) -> Tensor:
    stream = np.random.default_rng(seed)
    table = torch.full((groups,) * 3, torch.nan, dtype=torch.float64)
    for key in permutations(range(groups), 3):
        table[key] = float(stream.integers(kinds)) if kinds else stream.normal()
    return table


def calibration_of(p_values: np.ndarray, *, encoders: int = 1, **more: object) -> Calibration:
    count = len(p_values)
    return Calibration(
        alpha=0.01, confidence=0.99, names=tuple(f"encoder {k}" for k in range(encoders)),
        p_values=p_values, encoders=np.arange(count) % encoders, recipes=np.zeros(count, int),
        **more,
    )  # fmt: skip


# --- the rate ----------------------------------------------------------------------------------


def test_twelve_hundred_decisions_on_innocent_encoders_keep_the_promise(found):
    assert found.rule.decisions == 1_200 == len(found.p_values)
    low, high = found.rule.interval
    assert low <= 0.01
    assert found.rule.rate <= high
    assert found.rule.alpha_is in ("inside", "above")
    assert found.holds
    assert found.super_uniform.p_value > 0.01
    assert found.uniform.p_value > 0.01


def test_rules_of_other_schemes_accuse_the_innocent_on_the_same_data(found):
    """Between-encoder shifts look like evidence to tests over composites."""
    assert set(found.naive_rules) == set(NAIVE)
    for name in ("t-test", "bootstrap"):
        rate = found.naive_rules[name]
        assert rate.alpha_is == "below"
        assert rate.rate > 0.2


def test_keys_chosen_after_looking_are_caught(innocent, key, images, null, monkeypatch):
    """An owner who looks at the suspect with 20 keys and shows the best is found out."""
    honest = module.decisions

    def greedy(reading, reference, tried, drawn, *, shown, config):
        count, seed = 20 * len(tried.triples), int(tried.triples.sum())
        triples = draw_joint_keys(8, sub_keys=2, draws=count, seed=seed)
        tries = FreshKeys(triples, np.zeros((count, 2, 0), dtype=np.int64))
        whole = honest(reading, reference, tries, drawn, shown=shown, config=config)
        best = whole.p_values.reshape(-1, 20).min(axis=1)
        return module.Decisions(best, {name: said[::20] for name, said in whole.naive.items()})

    monkeypatch.setattr(module, "decisions", greedy)
    some = dict(list(innocent.items())[:3])
    caught = calibrate(some, key=key, images=images, nulls=[null], config=CONFIG)
    assert caught.rule.alpha_is == "below"
    assert not caught.holds
    assert caught.super_uniform.p_value < 1e-6


def test_p_values_that_are_too_small_everywhere_are_caught(
    innocent, key, images, null, monkeypatch
):
    honest = module.key_p_values

    def broken(statistics, triples, *, drawn):
        p_values = honest(statistics, triples, drawn=drawn)
        return np.maximum(p_values - 0.5, 1e-4)

    monkeypatch.setattr(module, "key_p_values", broken)
    some = dict(list(innocent.items())[:2])
    caught = calibrate(some, key=key, images=images, nulls=[null], config=CONFIG)
    assert not caught.holds


# --- the rule is the one that is shipped -------------------------------------------------------


@settings(max_examples=40)
@given(
    sub_keys=st.integers(2, 3), seed=st.integers(0, 10**6), kinds=st.sampled_from([0, 2, 5]),
    count=st.integers(1, 6),
)  # fmt: skip
def test_looking_up_gives_joint_p_values_to_the_last_bit(sub_keys, seed, kinds, count):
    tables = torch.stack([table_of(9, seed + n, kinds=kinds) for n in range(sub_keys)])
    keys = draw_joint_keys(9, sub_keys=sub_keys, draws=count, seed=seed).astype(np.int64)
    drawn = draw_joint_keys(9, sub_keys=sub_keys, draws=499, seed=0)
    units = torch.stack([standardise(table) for table in tables])
    expected = [joint_p_value(units, key, draws=499, seed=0)[0] for key in keys]
    assert key_p_values(tables, keys, drawn=drawn).tolist() == expected


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), kinds=st.sampled_from([0, 1, 3]))
def test_one_sub_key_is_ranked_among_all_keys(seed, kinds):
    table = table_of(6, seed, kinds=kinds)
    keys = list(permutations(range(6), 3))
    drawn = draw_joint_keys(6, sub_keys=1, draws=99, seed=0)
    mine = key_p_values(table.unsqueeze(0), np.array(keys)[:, None], drawn=drawn)
    assert mine.tolist() == [rank_p_value(table, key)[0] for key in keys]
    for alpha in (0.01, 0.05, 0.3):  # exact: all keys are equally likely
        assert (mine <= alpha).mean() <= alpha


def test_a_margin_that_is_not_a_number_is_an_error():
    tables = torch.full((2, 6, 6, 6), torch.nan, dtype=torch.float64)
    keys = draw_joint_keys(6, sub_keys=2, draws=3, seed=0)
    with pytest.raises(VerificationError, match="not a number"):
        key_p_values(tables, keys, drawn=keys)


def decide_on(recipe: WatermarkKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one decision of a calibration be on the recipe's own groups."""
    own = np.array([[(sub.a, sub.b, sub.target) for sub in recipe.sub_keys]])

    def drawn(*_: object, count: int, carriers: int) -> FreshKeys:
        return FreshKeys(own, np.array([own_carriers(recipe, count=carriers)], dtype=np.int64))

    monkeypatch.setattr(module, "fresh_keys", drawn)


@pytest.mark.parametrize(("sub_keys", "carriers"), [(1, 0), (2, 0), (1, 3), (2, 2)])
def test_a_decision_has_the_p_value_that_verify_gives_the_same_key(
    world, images, null, sub_keys, carriers, monkeypatch
):
    bound = {"carriers": carriers, "encoder": encoder_digest(null)}
    terms = world.key(images, number=2, sub_keys=sub_keys, **bound)
    recipe = fresh_key(terms, 7, "recipe", 0)
    decide_on(recipe, monkeypatch)
    config = CONFIG.model_copy(update={"keys": 1, "recipes": 1, "seed": 7})
    nulls = [null, world.palette(images)]
    suspect = world.palette(images, key=recipe)
    measured = calibrate({"x": suspect}, key=terms, images=images, nulls=nulls, config=config)
    verdict = verify(
        suspect, key=recipe, images=images, nulls=nulls,
        config=VerifyConfig(read=READ, draws=config.draws, counted=0),
    )  # fmt: skip
    assert measured.p_values.tolist() == [verdict.p_value]
    assert verdict.p_value < 0.05


def test_an_owner_who_shows_the_best_sub_keys_has_the_p_value_that_verify_gives_him(
    world, images, null, monkeypatch
):
    terms = replace(world.key(images, number=2, sub_keys=2), chosen=(0,))
    recipe = fresh_key(terms, 7, "recipe", 0)
    decide_on(recipe, monkeypatch)
    config = CONFIG.model_copy(update={"keys": 1, "recipes": 1, "seed": 7})
    suspect = world.convnet(seed=6)
    measured = calibrate({"x": suspect}, key=terms, images=images, nulls=[null], config=config)
    told = [
        verify(
            suspect, key=recipe.reveal([index]), images=images, nulls=[null],
            config=VerifyConfig(read=READ, draws=config.draws, counted=0),
        ).p_value
        for index in range(2)
    ]  # fmt: skip
    assert told[0] != told[1]
    assert measured.p_values.tolist() == [min(told)]


NATURAL = READ.model_copy(update={"natural_only": True})


@pytest.mark.parametrize("centring", ["mean", "fitted", "unexplained"])
def test_a_decision_by_natural_images_has_the_p_value_that_verify_gives(
    world, images, null, centring, monkeypatch
):
    terms = world.key(images, number=2, sub_keys=2)
    recipe = fresh_key(terms, 7, "recipe", 0)
    decide_on(recipe, monkeypatch)
    read = NATURAL.model_copy(update={"centring": centring})
    config = CalibrateConfig(keys=1, recipes=1, draws=9_999, seed=7, read=read)
    nulls, suspect = [null, world.convnet(seed=5)], world.convnet(seed=6)
    measured = calibrate({"x": suspect}, key=terms, images=images, nulls=nulls, config=config)
    verdict = verify(
        suspect, key=recipe, images=images, nulls=nulls,
        config=VerifyConfig(read=read, draws=config.draws, counted=0),
    )  # fmt: skip
    assert measured.p_values.tolist() == [verdict.p_value]


def test_natural_images_alone_keep_the_promise_and_no_composite_is_asked(
    innocent, key, images, null
):
    asked = 0

    def count(pixels: Tensor) -> Tensor:
        nonlocal asked
        asked += len(pixels)
        return null(pixels)

    config = CONFIG.model_copy(update={"read": NATURAL})
    found = calibrate(innocent, key=key, images=images, nulls=[load_encoder(count)], config=config)
    assert found.rule.decisions == 1_200
    assert found.holds
    assert asked == 8 * 12
    assert found.naive == {}
    assert found.to_dict()["naive"] == {}


# --- fresh keys --------------------------------------------------------------------------------


def test_every_decision_has_a_fresh_key_from_the_generator(key):
    triples = fresh_keys(key, 0, "x", 0, count=300, carriers=0).triples
    assert triples.shape == (300, 2, 3)
    assert all(len(set(row)) == 6 for row in triples.reshape(300, 6).tolist())
    assert len({tuple(row) for row in triples.reshape(300, 6).tolist()}) > 290
    again = fresh_keys(key, 0, "x", 0, count=300, carriers=0).triples
    np.testing.assert_array_equal(triples, again)
    for others in ((1, "x", 0), (0, "y", 0), (0, "x", 1)):
        other = fresh_keys(key, *others, count=300, carriers=0).triples
        assert (other != triples).any()
    counts = np.bincount(triples[:, 0, 0], minlength=8)
    assert counts.min() > 15  # 300 / 8 = 37.5 expected
    assert fresh_key(key, 0, "key", "x", 0, 0).terms is key.terms
    assert fresh_key(key, 0, "key", "x", 0, 0).secret != key.secret


def test_fresh_keys_have_the_carriers_that_their_own_seeds_draw(world, images):
    terms = world.key(images, number=2, sub_keys=2, carriers=3, encoder="e" * 64)
    found = fresh_keys(terms, 0, "x", 0, count=40, carriers=190).carriers
    assert found.shape == (40, 2, 3)
    assert len({tuple(row) for row in found.reshape(80, 3).tolist()}) > 70
    own = own_carriers(fresh_key(terms, 0, "key", "x", 0, 5), count=190)
    assert found[5].tolist() == own


def test_the_same_seed_gives_the_same_decisions_and_another_seed_others(
    innocent, key, images, null, found
):
    some = {"random 3": innocent["random 3"]}
    again = calibrate(some, key=key, images=images, nulls=[null], config=CONFIG)
    mine = found.p_values[found.encoders == 3]
    np.testing.assert_array_equal(again.p_values, mine)
    config = CONFIG.model_copy(update={"seed": 1})
    other = calibrate(some, key=key, images=images, nulls=[null], config=config)
    assert (other.p_values != mine).any()


def test_natural_images_are_asked_about_once_for_all_recipes(world, key, images, null):
    asked = 0
    inner = world.convnet(seed=4)

    def count(pixels: Tensor) -> Tensor:
        nonlocal asked
        asked += len(pixels)
        return inner(pixels)

    calibrate({"x": load_encoder(count)}, key=key, images=images, nulls=[null], config=CONFIG)
    assert asked == 8 * 12 + CONFIG.recipes * 2 * 8 * 7 * 8


def test_a_suspect_among_the_nulls_is_judged_with_the_others_only(world, key, images, null):
    first, second = world.convnet(seed=1), world.convnet(seed=2)
    config = CONFIG.model_copy(update={"recipes": 1})
    nulls = [null, first, second]
    among = calibrate({"x": first}, key=key, images=images, nulls=nulls, config=config)
    twin = calibrate(
        {"x": world.convnet(seed=1)}, key=key, images=images, nulls=nulls, config=config
    )
    apart = calibrate({"x": first}, key=key, images=images, nulls=[null, second], config=config)
    np.testing.assert_array_equal(among.p_values, apart.p_values)
    np.testing.assert_array_equal(twin.p_values, apart.p_values)
    for name in NAIVE:
        np.testing.assert_array_equal(among.naive[name], apart.naive[name])
    with pytest.raises(VerificationError, match="'x' is the only null encoder"):
        calibrate({"x": null}, key=key, images=images, nulls=[null], config=config)


# --- the naive rules ---------------------------------------------------------------------------


def test_naive_margins_are_those_of_their_definition():
    stream = torch.Generator().manual_seed(0)
    pairs = ordered_pairs(5)
    cosines = torch.rand((2, len(pairs), 4, 5), generator=stream)
    values = torch.stack([all_margins(part, pairs=pairs) for part in cosines])
    triples = np.array([[[0, 1, 2], [4, 3, 1]], [[3, 0, 4], [1, 2, 0]]])
    mine = of_triples(values, triples)
    for row, joint in enumerate(triples.tolist()):
        expected = [
            float(cos[t] - max(cos[a], cos[b]))
            for part, (a, b, t) in zip(cosines, joint, strict=True)
            for cos in part[pairs.index((a, b))]
        ]
        assert mine[row].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("space", ["plain", "evened"])
def test_naive_rules_look_at_the_composites_that_the_rule_is_read_from(
    world, key, images, null, space
):
    config = READ.model_copy(update={"space": space})
    recipe = fresh_key(key, 0, "recipe", 0)
    answers = ask(null, recipe, images, config=config)
    tables = read_margins(answers, recipe, config=config).tables
    margins = read_composites(answers, recipe, config=config).margins
    for place, (a, b) in enumerate(ordered_pairs(8)):
        mean, known = margins[:, place].double().mean(dim=1), ~tables[0, a, b].isnan()
        torch.testing.assert_close(mean[:, known], tables[:, a, b][:, known], atol=1e-6, rtol=0)


def test_naive_tests_agree_with_references():
    stream = np.random.default_rng(0)
    rows = stream.normal(loc=np.linspace(-0.5, 0.9, 60)[:, None], size=(60, 24)).astype(np.float32)
    expected = ttest_1samp(rows.astype(float), 0, axis=1, alternative="greater").pvalue < 0.01
    np.testing.assert_array_equal(t_test(rows, alpha=0.01), expected)
    said = bootstrap(rows, alpha=0.01)
    assert (said == expected).mean() > 0.8
    assert said[rows.mean(axis=1) > 0.8].all()
    assert not said[rows.mean(axis=1) < 0].any()
    assert not t_test(np.zeros((3, 9), np.float32), alpha=0.01).any()
    assert not bootstrap(np.zeros((3, 9), np.float32), alpha=0.01).any()


# --- the summary -------------------------------------------------------------------------------


def test_the_interval_is_exact_and_says_where_alpha_lies():
    grid = (np.arange(1_000) + 0.5) / 1_000
    cases = {10: "inside", 3: "inside", 0: "above", 60: "below"}
    for small, where in cases.items():
        p_values = grid.copy()
        p_values[p_values <= 0.01] = 0.02
        p_values[500 : 500 + small] = 0.005
        rate = calibration_of(p_values).rule
        assert (rate.accusations, rate.decisions, rate.alpha_is) == (small, 1_000, where)
        assert rate.interval[1] == pytest.approx(beta.ppf(0.995, small + 1, 1_000 - small))
        assert rate.holds == (where != "below")
    rare = calibration_of(np.full(5_000, 0.5)).rule
    assert rare.alpha_is == "above"
    assert rare.holds


def test_the_two_kolmogorov_tests_ask_different_questions():
    grid = (np.arange(2_000) + 0.5) / 2_000
    even, large, small = (calibration_of(values) for values in (grid, grid**0.5, grid**2))
    assert even.uniform.p_value > 0.99
    assert large.uniform.p_value < 1e-6
    assert large.super_uniform.p_value > 0.9
    assert large.holds
    assert small.super_uniform.p_value < 1e-6
    assert not small.holds
    assert small.super_uniform.distance == pytest.approx(0.25, abs=1e-3)  # sup of sqrt(x) - x


def test_the_table_by_encoder_adds_up(found):
    table = found.by_encoder
    assert list(table) == [f"random {seed}" for seed in range(12)]
    assert sum(row["accusations"] for row in table.values()) == found.rule.accusations
    assert {row["decisions"] for row in table.values()} == {100}
    for name in NAIVE:
        mean = np.mean([row["naive"][name] for row in table.values()])
        assert mean == pytest.approx(found.naive_rules[name].rate)
    assert min(row["smallest_p_value"] for row in table.values()) == found.p_values.min()
    np.testing.assert_array_equal(np.bincount(found.recipes), [600, 600])


def test_the_result_is_plain_data_without_secrets(found, key):
    whole = found.to_dict()
    text = canonical_json(plain(whole)).decode()
    assert json.loads(text) == plain(whole)
    assert key.secret.hex() not in text
    assert whole["rate"] == found.rule.rate
    assert whole["holds"] is True
    assert set(whole["naive"]) == set(NAIVE)
    assert whole["facts"]["settings"] == CONFIG.model_dump(mode="json")


# --- what cannot be calibrated -----------------------------------------------------------------


def test_nothing_to_calibrate_with_is_told(world, innocent, key, images, null):
    for suspects, nulls in (({}, [null]), (innocent, [])):
        with pytest.raises(VerificationError, match="needs innocent encoders and null encoders"):
            calibrate(suspects, key=key, images=images, nulls=nulls, config=CONFIG)
    with pytest.raises(KeyFileError, match="other images"):
        calibrate(innocent, key=key, images=world.images(groups=8, seed=3), nulls=[null])


@pytest.mark.parametrize(
    "wrong", [{"keys": 1, "recipes": 2}, {"alpha": 0}, {"draws": 10}, {"keyz": 3}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        CalibrateConfig(**wrong)


@pytest.mark.parametrize("p_values", [[], [0.0, 0.5], [0.5, 1.1], [np.nan]])
def test_columns_that_are_no_decisions_are_refused(p_values):
    with pytest.raises(VerificationError, match="p-value"):
        calibration_of(np.array(p_values, dtype=float))
    with pytest.raises(VerificationError, match="one entry of each column"):
        calibration_of(np.full(3, 0.5), naive={"wsr": np.zeros(2, bool)})
