"""Each leaked copy is traced to its licensee, and no innocent licensee is named too often."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import KeyFileError, VerificationError
from ssl_wm.files import canonical_json, plain, write_text
from ssl_wm.verification import verify as verify_module
from ssl_wm.verification.once import Memory
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import alpha_of_look, rank_p_value
from ssl_wm.verification.trace import attribute, load_keys, total_queries, trace
from ssl_wm.verification.verdict import Verdict
from ssl_wm.verification.verify import verify
from ssl_wm.watermark.keyfile import save_key

READ = ReadConfig(per_pair=8, recipes=0, reference=12, trigger_count=24, neighbours=5)
CONFIG = VerifyConfig(read=READ, draws=9_999)
NAMES = ("ada", "bo", "cy", "di", "ed", "flo", "gus", "hal")


@pytest.fixture(scope="module")
def keys(world, images):
    return {name: world.key(images, number=number, sub_keys=2) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def clean(world, images):
    encoder = world.palette(images)
    encoder.arch = "palette"  # a name, so that its margins may be remembered
    return encoder


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory()


@pytest.fixture(scope="module")
def traced(world, images, keys, clean, memory):
    """The traces of four licensees' copies."""
    return {
        name: trace(
            world.palette(images, key=keys[name]), keys=keys, images=images, nulls=[clean],
            config=CONFIG, memory=memory,
        )
        for name in NAMES[::2]
    }  # fmt: skip


def verdict_of(p_value: float, *, smallest: float = 1e-6) -> Verdict:
    return Verdict(
        decision="not_detected", p_value=p_value, alpha=0.01, smallest_p=smallest, test="",
        tests=(), wsr=0.0, wfpr=0.0, reader="knn", reason="", sub_keys=(),
        facts={"commitment": "c"}, position=0.0, null=torch.zeros(1), carried=torch.zeros(0),
    )  # fmt: skip


def verdicts_of(p_values: list[float], **settings_: float) -> dict[str, Verdict]:
    return {f"licensee {k}": verdict_of(p, **settings_) for k, p in enumerate(p_values)}


# --- who is named ------------------------------------------------------------------------------


def test_four_leaked_copies_are_traced_to_their_licensees_and_to_nobody_else(traced):
    for name, found in traced.items():
        assert (found.decision, found.exit_code, found.leaked) == ("traced", 0, (name,))
        assert found.adjusted[name] <= 0.01
        assert all(found.adjusted[other] > 0.01 for other in NAMES if other != name)


def test_all_licensees_are_tried_with_one_set_of_natural_images(world, images, keys, clean):
    read = ReadConfig(natural_only=True, reference=24)
    config = VerifyConfig(read=read, draws=99_999)
    leaked = world.palette(images, key=keys["cy"])
    found = trace(leaked, keys=keys, images=images, nulls=[clean], config=config)
    assert found.leaked == ("cy",)
    assert found.facts["queries"] == total_queries(keys, config=read) == 8 * 24
    assert found.to_dict()["licensees"]["cy"]["wsr"] is None


def test_an_innocent_encoder_is_traced_to_nobody(world, images, keys, clean, memory):
    for suspect in (world.convnet(seed=5), clean):
        found = trace(
            suspect, keys=keys, images=images, nulls=[clean], config=CONFIG, memory=memory
        )
        assert (found.decision, found.exit_code, found.leaked) == ("not_traced", 1, ())
        assert "above alpha" in found.reason


def test_two_licensees_who_leaked_are_both_named():
    found = attribute(verdicts_of([0.4, 0.0001, 0.002, 0.9]), alpha=0.01)
    assert found.leaked == ("licensee 1", "licensee 2")
    assert found.adjusted["licensee 2"] == pytest.approx(3 * 0.002)


def test_each_verdict_is_the_one_that_verify_gives_up_to_the_decision(
    world, images, keys, clean, traced
):
    for name in ("ada", "bo"):
        alone = verify(
            world.palette(images, key=keys["ada"]), key=keys[name], images=images, nulls=[clean],
            config=CONFIG,
        )  # fmt: skip
        mine = traced["ada"].verdicts[name]
        same = replace(mine, decision=alone.decision, reason=alone.reason)
        assert same.to_dict() == alone.to_dict()


def test_a_p_value_below_alpha_is_not_enough_among_many():
    few, many = (attribute(verdicts_of([0.004] + [0.5] * n), alpha=0.01) for n in (1, 7))
    assert (few.decision, few.leaked) == ("traced", ("licensee 0",))
    assert (many.decision, many.leaked) == ("not_traced", ())
    assert many.adjusted["licensee 0"] == pytest.approx(0.032)
    assert many.verdicts["licensee 0"].decision == "not_detected"
    assert many.verdicts["licensee 0"].p_value == 0.004


def test_keys_that_could_never_pass_the_correction_are_inconclusive():
    found = attribute(verdicts_of([0.002] * 8, smallest=0.002), alpha=0.01)
    assert (found.decision, found.exit_code) == ("inconclusive", 2)
    assert "0.0013" in found.reason
    within = attribute(verdicts_of([0.02] * 8, smallest=0.00125), alpha=0.01)
    assert within.decision == "not_traced"
    mixed = verdicts_of([0.0001, 0.5]) | {"weak": verdict_of(0.02, smallest=0.02)}
    traced = attribute(mixed, alpha=0.01)
    assert traced.leaked == ("licensee 0",)
    assert traced.verdicts["weak"].decision == "inconclusive"
    assert "could not have been named here: weak" in traced.reason


@settings(max_examples=200)
@given(
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=9),
    st.sampled_from([1e-6, 0.001, 0.02]),
    st.sampled_from([0.01, 0.05]),
)
def test_naming_is_step_down_and_inconclusive_means_that_nobody_could_be_named(p, least, alpha):
    p = [max(value, least) for value in p]
    found = attribute(verdicts_of(p, smallest=least), alpha=alpha)
    expected, order = set(), sorted(range(len(p)), key=p.__getitem__)
    for rank, place in enumerate(order):  # Holm's procedure as it is usually told
        if p[place] > alpha / (len(p) - rank) * (1 + 1e-12):
            break
        expected.add(f"licensee {place}")
    assert set(found.leaked) == expected
    assert (found.decision == "inconclusive") == (len(p) * least > alpha and not expected)
    assert all(
        (found.verdicts[n].decision == "detected") == (n in expected) for n in found.adjusted
    )


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("dependent", [False, True])
def test_innocent_licensees_are_named_no_more_often_than_alpha(alpha, dependent):
    """8 licensees' keys on one fixed encoder, over and over; their draws may depend as they like.

    With ``dependent`` the second half of the keys swap A and B of the first half's.
    """
    stream = np.random.default_rng(0)
    keys = list(permutations(range(9), 3))
    table = torch.full((9, 9, 9), torch.nan, dtype=torch.float64)
    for key in keys:
        table[key] = stream.normal()
    p_of = {key: rank_p_value(table, key)[0] for key in keys}
    count, named = 4_000, 0
    for _ in range(count):
        drawn = [keys[place] for place in stream.integers(len(keys), size=8)]
        if dependent:
            drawn[4:] = [(b, a, t) for a, b, t in drawn[:4]]
        named += bool(attribute(verdicts_of([p_of[key] for key in drawn]), alpha=alpha).leaked)
    assert named <= binom.ppf(0.9999, count, alpha)
    assert named >= binom.ppf(0.0001, count, alpha * 0.7)  # and it is no empty promise


# --- what is asked -----------------------------------------------------------------------------


def test_natural_images_are_asked_about_once_and_nulls_are_read_once(
    world, images, keys, monkeypatch
):
    some = {name: keys[name] for name in ("ada", "bo", "cy")}
    counts = {"suspect": 0, "null": 0}

    def counted(name: str, encoder: Encoder) -> Encoder:
        wrapped = load_encoder(lambda pixels: _count(name, encoder, pixels))
        wrapped.arch = "counted"
        wrapped.backbone.register_buffer("weight", torch.ones(1))
        return wrapped

    def _count(name: str, encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        counts[name] += len(pixels)
        return encoder(pixels)

    read, real = [], verify_module.read_margins
    monkeypatch.setattr(
        verify_module, "read_margins", lambda *a, **k: read.append(a[1].commitment) or real(*a, **k)
    )
    suspect, null = counted("suspect", world.convnet(seed=1)), counted("null", world.convnet())
    memory = Memory()
    found = trace(suspect, keys=some, images=images, nulls=[null], config=CONFIG, memory=memory)
    reference, pairs = 8 * 12, 8 * 7 * 8
    assert counts["null"] == reference + 3 * 2 * pairs
    assert counts["suspect"] == found.facts["queries"] == total_queries(some, config=READ)
    assert len(read) == 3 + 3
    again = trace(suspect, keys=some, images=images, nulls=[null], config=CONFIG, memory=memory)
    assert counts["null"] == reference + 3 * 2 * pairs
    assert len(read) == 3 + 3 + 3
    assert again.to_dict() == found.to_dict()


def test_a_custom_null_is_never_remembered_since_its_code_has_no_digest(world, images, keys):
    memory = Memory()
    one = {"ada": keys["ada"]}
    for null in (world.palette(images), world.palette(images, key=keys["bo"])):
        trace(world.convnet(), keys=one, images=images, nulls=[null], config=CONFIG, memory=memory)
    assert memory == Memory()


def test_the_queries_allowed_hold_for_all_keys_together(world, images, keys, clean):
    some = {name: keys[name] for name in ("ada", "bo")}
    generous = CONFIG.model_copy(update={"read": READ.model_copy(update={"trigger_count": 900})})
    assert total_queries(some, config=generous.read) > 5_000
    config = generous.model_copy(update={"max_queries": 5_000})
    found = trace(world.convnet(), keys=some, images=images, nulls=[clean], config=config)
    assert found.facts["queries"] <= 5_000
    tight = CONFIG.model_copy(update={"max_queries": 1_000})
    with pytest.raises(VerificationError, match=r"key 'ada', one of 2 that share.*1,000"):
        trace(world.convnet(), keys=some, images=images, nulls=[clean], config=tight)


def test_through_labels_a_trace_reads_what_verify_reads(world, images, keys, clean):
    some = {name: keys[name] for name in ("ada", "bo")}
    suspect = world.palette(images, key=keys["bo"])
    config = CONFIG.model_copy(update={"access": "labels"})
    found = trace(suspect, keys=some, images=images, nulls=[clean], config=config)
    alone = verify(suspect, key=keys["bo"], images=images, nulls=[clean], config=config)
    assert found.verdicts["bo"].p_value == alone.p_value < 1


def test_repeated_looks_spend_alpha(world, images, keys, clean):
    config = CONFIG.model_copy(update={"look": 3})
    some = {name: keys[name] for name in ("ada", "bo")}
    found = trace(world.convnet(), keys=some, images=images, nulls=[clean], config=config)
    assert found.alpha == alpha_of_look(0.01, 3)


def test_a_trace_is_plain_data_without_secrets(traced, keys):
    whole = traced["ada"].to_dict()
    text = canonical_json(plain(whole)).decode() + repr(traced["ada"])
    assert json.loads(canonical_json(plain(whole))) == plain(whole)
    assert not [name for name in NAMES if keys[name].secret.hex() in text]
    assert set(whole["licensees"]) == set(whole["verdicts"]) == set(NAMES)
    assert whole["licensees"]["ada"]["decision"] == "detected"
    assert whole["licensees"]["ada"]["commitment"] == keys["ada"].commitment


# --- what cannot be traced ---------------------------------------------------------------------


def test_a_key_for_other_images_is_named(world, images, keys, clean):
    other = world.images(groups=8, seed=4)
    mixed = {"ada": keys["ada"], "eve": world.key(other, sub_keys=2)}
    with pytest.raises(KeyFileError, match=r"key 'eve': .*other images"):
        trace(world.convnet(), keys=mixed, images=images, nulls=[clean], config=CONFIG)


def test_nothing_to_trace_with_is_told(world, images, keys, clean):
    suspect = world.convnet()
    with pytest.raises(VerificationError, match="at least one licensee"):
        trace(suspect, keys={}, images=images, nulls=[clean])
    with pytest.raises(VerificationError, match=r"at least one null encoder.*--null"):
        trace(suspect, keys=keys, images=images, nulls=[])
    twins = {"ada": keys["ada"], "twin": keys["ada"]}
    with pytest.raises(VerificationError, match="'ada' and 'twin' have the same key"):
        trace(suspect, keys=twins, images=images, nulls=[clean])
    with pytest.raises(VerificationError, match="at least one licensee"):
        attribute({}, alpha=0.01)


def test_a_folder_of_keys_is_read_by_name(tmp_path, keys):
    for name in ("bo", "ada"):
        save_key(keys[name], tmp_path / f"{name}.key")
    write_text(tmp_path / "ada.key.commitment.json", "{}")
    loaded = load_keys(tmp_path)
    assert list(loaded) == ["ada", "bo"]
    assert loaded["bo"].commitment == keys["bo"].commitment
    write_text(tmp_path / "cy.key", "{}")
    with pytest.raises(KeyFileError, match=r"cy\.key is not a watermark key"):
        load_keys(tmp_path)


def test_a_folder_without_keys_is_an_error(tmp_path):
    with pytest.raises(KeyFileError, match=r"holds no \*\.key file"):
        load_keys(tmp_path)
    for missing in (tmp_path / "no", tmp_path / "file"):
        if missing.name == "file":
            write_text(missing, "x")
        with pytest.raises(KeyFileError, match="is no folder"):
            load_keys(missing)


def test_carriers_are_read_for_every_licensee_as_verify_reads_them(world, images):
    clean, suspect = world.convnet(seed=1), world.convnet(seed=2)
    bound = {"sub_keys": 2, "carriers": 3, "encoder": encoder_digest(clean)}
    some = {name: world.key(images, number=at, **bound) for at, name in enumerate(NAMES[:3])}
    memory = Memory()
    found = trace(suspect, keys=some, images=images, nulls=[clean], config=CONFIG, memory=memory)
    for name, key in some.items():
        alone = verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG)
        assert found.verdicts[name].p_value == alone.p_value
        assert found.verdicts[name].tests == alone.tests
        assert "C" in {test.name for test in alone.tests}
    assert len(memory.bases) == 1  # keys for the same groups share it


def test_a_key_of_another_clean_encoder_is_named_before_a_suspect_is_accused(world, images):
    clean, other = world.convnet(seed=1), world.convnet(seed=3)
    some = {
        "ada": world.key(images, number=0, carriers=3, encoder=encoder_digest(clean)),
        "bo": world.key(images, number=1, carriers=3, encoder=encoder_digest(other)),
    }
    with pytest.raises(VerificationError, match=r"key 'bo': .*commits to"):
        trace(world.convnet(seed=2), keys=some, images=images, nulls=[clean], config=CONFIG)
