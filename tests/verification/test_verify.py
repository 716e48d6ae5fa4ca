"""The marked are detected, the innocent are not, and the verdict tells all but the secret."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import EncoderError, KeyFileError, VerificationError
from ssl_wm.files import canonical_json, plain
from ssl_wm.verification.answers import ask
from ssl_wm.verification.judge import judge
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import alpha_of_look, standardise
from ssl_wm.verification.verdict import decide
from ssl_wm.verification.verify import verify

READ = ReadConfig(per_pair=8, recipes=9, reference=20, trigger_count=24, neighbours=5)
CONFIG = VerifyConfig(read=READ, draws=9_999)


@pytest.fixture(scope="module")
def verdict(marked, clean, key, images):
    return verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)


def read(encoder, key, images):
    return read_margins(ask(encoder, key, images, config=READ), key, config=READ)


def without_facts(verdict) -> dict[str, Any]:
    return {name: value for name, value in verdict.to_dict().items() if name != "facts"}


# --- verdicts ----------------------------------------------------------------------------------


def test_a_marked_encoder_is_detected(verdict):
    assert (verdict.decision, verdict.exit_code) == ("detected", 0)
    assert verdict.p_value <= 0.01
    assert verdict.wsr > 0.9
    (sub,) = verdict.sub_keys
    assert sub.margin > 0 > sub.null_margin
    assert sub.interval[0] <= sub.statistic <= sub.interval[1]
    assert (sub.index, sub.decoys, sub.p_value) == (0, 8 * 7 * 6, sub.rank / sub.decoys)
    a1, a2, b = verdict.tests
    assert [test.name for test in verdict.tests] == ["A1", "A2", "B"]
    assert (a1.p_value, a1.smallest_p, a1.says) == (
        verdict.p_value, verdict.smallest_p, verdict.test
    )  # fmt: skip
    assert a1.p_value == sub.p_value
    assert (a2.smallest_p, b.p_value, b.smallest_p) == (0.1, 0.5, 0.5)


def test_the_statistic_is_the_null_centred_contrast(verdict, marked, clean, key, images):
    (sub,), (own,) = verdict.sub_keys, key.sub_keys
    found = [read(encoder, key, images).tables[0].numpy() for encoder in (marked, clean)]
    targets = [t for t in range(8) if t not in (own.a, own.b)]
    rows = [table[own.a, own.b] for table in found]
    each = [row[own.target] - row[targets].mean() for row in rows]
    assert sub.statistic == pytest.approx(each[0] - each[1], abs=1e-9)
    assert (sub.margin, sub.null_margin) == pytest.approx([row[own.target] for row in rows])
    assert verdict.position == sub.statistic
    assert len(verdict.null) == 8 * 7 * 6
    assert (verdict.null >= sub.statistic).sum() == sub.rank


def test_independent_encoders_are_not_detected(world, clean, key, images):
    for suspect in (world.convnet(seed=2), world.palette(images, key=world.key(images, number=7))):
        verdict = verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG)
        assert (verdict.decision, verdict.exit_code) == ("not_detected", 1)
        assert verdict.p_value > 0.01


@pytest.mark.parametrize("sub_keys", [1, 2])
@pytest.mark.parametrize("nulls", [1, 2, 5])
def test_the_null_itself_has_p_value_one(world, clean, images, sub_keys, nulls):
    key = world.key(images, number=3, sub_keys=sub_keys)
    verdict = verify(clean, key=key, images=images, nulls=[clean] * nulls, config=CONFIG)
    assert verdict.decision == "not_detected"
    assert [test.p_value for test in verdict.tests] == [1.0, 1.0, 1.0]
    assert all(sub.statistic == 0 for sub in verdict.sub_keys)


def test_several_sub_keys_are_judged_together(world, clean, images):
    key = world.key(images, number=3, sub_keys=2)
    marked = world.palette(images, key=key)
    verdict = verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)
    assert verdict.decision == "detected"
    assert verdict.p_value <= 0.001
    assert verdict.test == "rank among all 20,160 joint keys"
    assert [sub.index for sub in verdict.sub_keys] == [0, 1]
    assert verdict.p_value < min(sub.p_value for sub in verdict.sub_keys)
    tables = [contrasts(read(encoder, key, images).tables) for encoder in (marked, clean)]
    centred = tables[0] - tables[1]
    expected = sum(
        float(standardise(centred[sub.index])[sub.a, sub.b, sub.target]) for sub in key.sub_keys
    )
    assert verdict.position == pytest.approx(expected)
    drawn = VerifyConfig(read=READ, draws=9_999, counted=0)
    verdict = verify(marked, key=key, images=images, nulls=[clean], config=drawn)
    assert verdict.test == "rank among 9,999 random joint keys"
    beaten = (verdict.null.numpy() >= verdict.position - 1e-12).sum()
    assert verdict.p_value == pytest.approx((1 + beaten) / 10_000)
    innocent = verify(world.convnet(), key=key, images=images, nulls=[clean], config=CONFIG)
    assert innocent.decision == "not_detected"


@pytest.mark.parametrize("shown", [[0], [1], [0, 2]])
def test_a_choice_of_what_to_reveal_is_paid_for_in_every_test(world, shown):
    """An owner who looked first and shows the best of three sub-keys must not gain by it."""
    images = world.images(groups=9)
    key, clean = world.key(images, number=3, sub_keys=3), world.palette(images)
    nulls, suspect = [clean, world.convnet()], world.palette(images, key=key)
    part = key.reveal(shown)
    verdict = verify(suspect, key=part, images=images, nulls=nulls, config=CONFIG)
    free = copy.copy(part)  # the same sub-keys, as if the key had no others
    object.__setattr__(free, "terms", copy.copy(part.terms))
    object.__setattr__(free.terms, "sub_key_count", len(shown))
    margins = [read(encoder, part, images) for encoder in (suspect, *nulls)]
    unpaid = judge(
        margins[0], nulls=margins[1:], rates=[sub.readers for sub in verdict.sub_keys], key=free,
        config=CONFIG, facts={},
    )  # fmt: skip
    for paid, test in zip(verdict.tests, unpaid.tests, strict=True):
        assert paid.p_value == pytest.approx(min(1, 3 * test.p_value))
        assert paid.smallest_p == pytest.approx(min(1, 3 * test.smallest_p))
        assert paid.says == f"{test.says}, times 3 ways to choose what to reveal"
    assert verdict.p_value == verdict.tests[0].p_value
    assert [sub.index for sub in verdict.sub_keys] == shown
    assert [sub.p_value for sub in verdict.sub_keys] == [sub.p_value for sub in unpaid.sub_keys]
    assert verdict.facts["sub_keys_in_all"] == 3


# --- what is said ------------------------------------------------------------------------------


def test_a_black_box_can_be_a_suspect(marked, clean, key, images, verdict):
    service = load_encoder(lambda pixels: marked(pixels).numpy())
    again = verify(service, key=key, images=images, nulls=[clean], config=CONFIG)
    assert without_facts(again) == without_facts(verdict)
    assert again.facts["suspect"] is None


def test_the_verdict_is_plain_data_that_tells_all_but_the_secret(verdict, marked, clean, key):
    whole = verdict.to_dict()
    assert json.loads(canonical_json(plain(whole))) == plain(whole)
    (sub,) = whole["sub_keys"]
    for reader in ("linear", "knn"):
        assert set(sub["readers"][reader]) == {"wsr", "wsr_interval", "wfpr", "wfpr_interval"}
    facts = whole["facts"]
    assert facts["commitment"] == key.commitment
    assert facts["beacon"] == ""
    assert facts["images"] == key.fingerprints
    assert (facts["groups"], facts["sub_keys_in_all"]) == (8, 1)
    assert facts["clean_encoder_committed"] is None
    assert facts["suspect"] == encoder_digest(marked)
    assert facts["nulls"] == [encoder_digest(clean)]
    assert facts["settings"] == CONFIG.model_dump(mode="json")
    text = canonical_json(plain(whole)).decode() + repr(verdict)
    for secret in (key.secret, key.leaves[0].secret, key.sub_keys[0].seed):
        assert secret.hex() not in text


def test_the_reader_with_the_larger_success_rate_is_reported(verdict):
    rates = {name: verdict.sub_keys[0].readers[name] for name in ("linear", "knn")}
    assert verdict.wsr == max(rate["wsr"] for rate in rates.values())
    assert verdict.wsr == rates[verdict.reader]["wsr"]
    assert verdict.wfpr == rates[verdict.reader]["wfpr"]


@pytest.mark.parametrize("look", [None, 1, 2, 50])
def test_a_later_look_is_held_to_a_smaller_alpha(marked, clean, key, images, verdict, look):
    config = CONFIG.model_copy(update={"look": look})
    again = verify(marked, key=key, images=images, nulls=[clean], config=config)
    assert again.p_value == verdict.p_value
    assert again.alpha == (0.01 if look is None else alpha_of_look(0.01, look))
    told = decide(verdict.p_value, smallest=1 / 336, alpha=again.alpha)
    assert (again.decision, again.reason) == told


# --- what cannot be judged ---------------------------------------------------------------------


@pytest.mark.parametrize("shown", [True, False])
def test_a_null_that_is_not_the_committed_clean_encoder_is_told(
    marked, clean, key, images, caplog, shown
):
    committed = encoder_digest(clean if shown else marked)
    other = dataclasses.replace(key, terms=dataclasses.replace(key.terms, encoder=committed))
    verify(marked, key=other, images=images, nulls=[clean], config=CONFIG)
    assert ("commits to a clean encoder" in caplog.text) == (not shown)


def test_a_key_for_other_images_is_refused(world, marked, clean, key):
    for other in (world.images(groups=8, seed=1), world.images(groups=7)):
        with pytest.raises(KeyFileError, match="other images"):
            verify(marked, key=key, images=other, nulls=[clean], config=CONFIG)


def test_nobody_is_judged_without_a_null(marked, key, images):
    with pytest.raises(VerificationError, match=r"at least one null encoder.*--null"):
        verify(marked, key=key, images=images, nulls=[], config=CONFIG)


def test_too_few_groups_for_alpha_are_inconclusive(world):
    images = world.images(groups=4)
    key = world.key(images)
    marked, clean = world.palette(images, key=key), world.palette(images)
    verdict = verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)
    assert (verdict.decision, verdict.exit_code) == ("inconclusive", 2)
    assert verdict.smallest_p == pytest.approx(1 / 24)
    assert "use more groups or more sub-keys" in verdict.reason


def test_the_smallest_p_value_is_bound_by_the_joint_keys_there_are(world, clean, images):
    """6 groups hold 720 joint keys, so no number of draws makes p = 0.0001 possible."""
    small = world.images(groups=6)
    key = world.key(small, sub_keys=2)
    config = VerifyConfig(read=READ, draws=9_999, alpha=0.0005)
    verdict = verify(
        world.convnet(), key=key, images=small, nulls=[world.palette(small)], config=config
    )
    assert verdict.smallest_p == pytest.approx(1 / 720)
    assert verdict.decision == "inconclusive"
    larger = world.key(images, sub_keys=2)
    wide = verify(world.convnet(), key=larger, images=images, nulls=[clean], config=CONFIG)
    assert wide.smallest_p == pytest.approx(1 / 20_160)
    drawn = CONFIG.model_copy(update={"counted": 0})
    wide = verify(world.convnet(), key=larger, images=images, nulls=[clean], config=drawn)
    assert wide.smallest_p == pytest.approx(1 / 10_000)


@pytest.mark.parametrize("constant", [True, False])
def test_an_encoder_that_answers_nothing_useful_is_an_error(clean, key, images, constant):
    def answer(pixels: Tensor) -> Tensor:
        return torch.ones(len(pixels), 4) if constant else torch.full((len(pixels), 4), torch.nan)

    with pytest.raises(EncoderError, match="collapsed" if constant else "not finite"):
        verify(load_encoder(answer), key=key, images=images, nulls=[clean], config=CONFIG)
