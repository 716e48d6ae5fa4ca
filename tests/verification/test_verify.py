"""The marked are detected, the innocent are not, and no disguise of the space matters."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import EncoderError, KeyFileError, VerificationError
from ssl_wm.files import canonical_json, plain
from ssl_wm.verification import verify as module
from ssl_wm.verification.readings import Margins, ReadConfig
from ssl_wm.verification.statistics import standardise
from ssl_wm.verification.verify import EXIT_CODES, VerifyConfig, decide, verify

READ = ReadConfig(per_pair=8, reference=20, trigger_count=24, neighbours=5)
CONFIG = VerifyConfig(read=READ, draws=9_999)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1)


@pytest.fixture(scope="module")
def marked(world, images, key):
    return world.palette(images, key=key)


@pytest.fixture(scope="module")
def clean(world, images):
    return world.palette(images)


@pytest.fixture(scope="module")
def verdict(marked, clean, key, images):
    return verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)


# --- verdicts ----------------------------------------------------------------------------------


def test_a_marked_encoder_is_detected(verdict):
    assert (verdict.decision, verdict.exit_code) == ("detected", 0)
    assert verdict.p_value <= 0.01
    assert verdict.wsr > 0.9
    (sub,) = verdict.sub_keys
    assert sub.margin > 0 > sub.null_margin
    assert sub.statistic == pytest.approx(sub.margin - sub.null_margin)
    assert sub.interval[0] <= sub.statistic <= sub.interval[1]
    assert (sub.decoys, sub.p_value) == (8 * 7 * 6, sub.rank / sub.decoys)
    assert verdict.p_value == sub.p_value


def test_the_clean_and_an_independent_encoder_are_not(world, clean, key, images):
    for suspect in (world.convnet(seed=2), world.palette(images, key=world.key(images, number=7))):
        verdict = verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG)
        assert (verdict.decision, verdict.exit_code) == ("not_detected", 1)
        assert verdict.p_value > 0.01


@pytest.mark.parametrize("sub_keys", [1, 2])
def test_the_null_itself_has_p_value_one(world, clean, images, sub_keys):
    key = world.key(images, number=3, sub_keys=sub_keys)
    for nulls in ([clean], [clean, clean]):
        verdict = verify(clean, key=key, images=images, nulls=nulls, config=CONFIG)
        assert (verdict.decision, verdict.p_value) == ("not_detected", 1.0)
        assert all(sub.statistic == 0 for sub in verdict.sub_keys)


def test_several_sub_keys_are_judged_together(world, clean, images):
    key = world.key(images, number=3, sub_keys=2)
    marked = world.palette(images, key=key)
    verdict = verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)
    assert verdict.decision == "detected"
    assert verdict.p_value <= 0.001
    assert verdict.test == "rank among 9,999 random joint keys"
    assert len(verdict.sub_keys) == 2
    assert verdict.p_value < min(sub.p_value for sub in verdict.sub_keys)
    tables = [
        module.read_margins(encoder, key, images, config=READ).tables for encoder in (marked, clean)
    ]
    expected = sum(
        float(standardise(tables[0][sub.index] - tables[1][sub.index])[sub.a, sub.b, sub.target])
        for sub in key.sub_keys
    )
    assert verdict.position == pytest.approx(expected)
    beaten = (verdict.null.numpy() >= verdict.position - 1e-12).sum()
    assert verdict.p_value == pytest.approx((1 + beaten) / 10_000)
    innocent = verify(world.convnet(), key=key, images=images, nulls=[clean], config=CONFIG)
    assert innocent.decision == "not_detected"


def test_no_honest_encoder_is_accused_more_often_than_alpha(world, clean, images):
    """One fixed suspect, many random keys: at alpha = 0.1, accusations stay within chance."""
    suspect, config = world.convnet(seed=1), CONFIG.model_copy(update={"alpha": 0.1})
    count = 40
    decisions = [
        verify(
            suspect, key=world.key(images, number=100 + number), images=images, nulls=[clean],
            config=config,
        ).decision
        for number in range(count)
    ]  # fmt: skip
    assert decisions.count("detected") <= binom.ppf(0.999, count, 0.1)
    assert set(decisions) <= {"detected", "not_detected"}


def test_more_nulls_are_averaged(world, marked, clean, key, images):
    other = world.convnet()
    alone = [
        verify(marked, key=key, images=images, nulls=[null], config=CONFIG).sub_keys[0]
        for null in (clean, other)
    ]
    both = verify(marked, key=key, images=images, nulls=[clean, other], config=CONFIG).sub_keys[0]
    mean = np.mean([sub.null_margin for sub in alone])
    assert both.null_margin == pytest.approx(mean, abs=1e-9)
    assert both.margin == alone[0].margin == alone[1].margin
    with pytest.raises(VerificationError, match=r"at least one null encoder.*--null"):
        verify(marked, key=key, images=images, nulls=[], config=CONFIG)


# --- invariance --------------------------------------------------------------------------------


def disguised(encoder: Encoder, kind: str, seed: int, exponent: float) -> Encoder:
    stream, copied = np.random.default_rng(seed), copy.deepcopy(encoder)
    net: Any = copied.backbone
    width = len(net.offset)
    if kind == "rotation":
        net.matrix = torch.from_numpy(np.linalg.qr(stream.normal(size=(width, width)))[0])
    if kind == "permutation":
        net.matrix = torch.eye(width, dtype=torch.float64)[stream.permutation(width)]
    if kind == "scale":
        net.scale = torch.tensor(10.0**exponent, dtype=torch.float64)
    if kind == "shift":
        net.offset = torch.from_numpy(stream.normal(size=width) * 5)
    return copied


@settings(max_examples=24, deadline=None)
@given(
    kind=st.sampled_from(["rotation", "permutation", "scale", "shift"]),
    seed=st.integers(0, 2**32),
    exponent=st.floats(-20, 20),
)
def test_no_disguise_of_the_space_changes_a_margin_or_the_verdict(
    marked, clean, key, images, verdict, kind, seed, exponent
):
    suspect = disguised(marked, kind, seed, exponent)
    again = verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG)
    assert (again.decision, again.p_value) == (verdict.decision, verdict.p_value)
    one, two = verdict.sub_keys[0], again.sub_keys[0]
    for name in ("margin", "null_margin", "statistic"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), abs=1e-5)
    assert two.interval == pytest.approx(one.interval, abs=1e-5)
    torch.testing.assert_close(again.null, verdict.null, atol=1e-5, rtol=0)
    if kind != "rotation":  # the probe standardises each feature, which a rotation mixes
        assert again.wsr == pytest.approx(verdict.wsr, abs=0.05)
        assert again.wfpr == pytest.approx(verdict.wfpr, abs=0.05)


def test_a_disguised_null_or_innocent_gains_nothing(clean, key, images):
    for kind in ("rotation", "scale", "shift"):
        suspect = disguised(clean, kind, 3, 6.0)
        verdict = verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG)
        assert abs(verdict.sub_keys[0].statistic) < 1e-5


def test_the_same_suspect_gets_the_same_verdict_whatever_the_global_seed(
    marked, clean, key, images, verdict
):
    torch.manual_seed(123)
    again = verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)
    assert again.to_dict() == verdict.to_dict()


# --- what is remembered and said ---------------------------------------------------------------


def test_margins_are_read_once_for_encoders_that_a_digest_names(
    world, clean, key, images, monkeypatch
):
    read, real = [], module.read_margins

    def record(encoder: Encoder, *args: Any, **settings_: Any) -> Margins:
        read.append(encoder)
        return real(encoder, *args, **settings_)

    monkeypatch.setattr(module, "read_margins", record)
    suspect, null, memory = world.convnet(seed=1), world.convnet(seed=2), {}
    assert suspect.arch != "custom"
    first = verify(suspect, key=key, images=images, nulls=[null], config=CONFIG, memory=memory)
    again = verify(suspect, key=key, images=images, nulls=[null], config=CONFIG, memory=memory)
    assert read == [suspect, null]
    assert first.to_dict() == again.to_dict()
    verify(suspect, key=world.key(images, number=2), images=images, nulls=[null], config=CONFIG,
           memory=memory)  # fmt: skip
    other = CONFIG.model_copy(update={"read": READ.model_copy(update={"per_pair": 9})})
    verify(suspect, key=key, images=images, nulls=[null], config=other, memory=memory)
    assert read == [suspect, null] * 3


class Wrapped(nn.Module):
    """A thief's code around the encoder; its weights are named as the encoder's own."""

    def __init__(self, net: nn.Module, *, flip: bool) -> None:
        super().__init__()
        self.__dict__["net"], self.flip = net, flip
        for name, buffer in net.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, images: Tensor) -> Tensor:
        return -self.__dict__["net"](images).square() if self.flip else self.__dict__["net"](images)


def test_other_code_around_the_same_weights_is_another_encoder(world, clean, key, images):
    preprocessing = world.flat
    same, other = (
        Encoder(Wrapped(clean.backbone, flip=flip), preprocessing=preprocessing).eval()
        for flip in (False, True)
    )
    assert encoder_digest(same) == encoder_digest(other) == encoder_digest(clean)
    memory: dict[str, Margins] = {}
    verdicts = [
        verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG, memory=memory)
        for suspect in (same, other)
    ]
    assert verdicts[0].p_value == 1
    assert verdicts[1].p_value < 1


def test_a_black_box_can_be_a_suspect(marked, clean, key, images, verdict):
    service = load_encoder(lambda pixels: marked(pixels).numpy())
    again = verify(service, key=key, images=images, nulls=[clean], config=CONFIG)
    assert (again.decision, again.p_value) == ("detected", verdict.p_value)
    assert again.facts["suspect"] is None


def test_the_verdict_is_plain_data_that_tells_all_but_the_secret(verdict, marked, clean, key):
    whole = verdict.to_dict()
    assert json.loads(canonical_json(plain(whole))) == plain(whole)
    names = {"decision", "p_value", "alpha", "wsr", "wfpr", "reader", "reason", "sub_keys",
             "smallest_p", "test", "facts", "position"}  # fmt: skip
    assert set(whole) == names
    (sub,) = whole["sub_keys"]
    assert set(sub) == {"margin", "null_margin", "statistic", "interval", "p_value", "rank",
                        "decoys", "readers"}  # fmt: skip
    for reader in ("linear", "knn"):
        assert set(sub["readers"][reader]) == {"wsr", "wsr_interval", "wfpr", "wfpr_interval"}
    facts = whole["facts"]
    assert facts["commitment"] == key.commitment
    assert facts["suspect"] == encoder_digest(marked)
    assert facts["nulls"] == [encoder_digest(clean)]
    assert facts["settings"] == CONFIG.model_dump(mode="json")
    text = canonical_json(plain(whole)).decode() + repr(verdict)
    assert key.secret.hex() not in text
    assert len(verdict.null) == 8 * 7 * 6
    assert verdict.position == sub["statistic"]


def test_the_reader_with_the_larger_success_rate_is_reported(verdict):
    rates = {name: verdict.sub_keys[0].readers[name] for name in ("linear", "knn")}
    assert verdict.wsr == max(rate["wsr"] for rate in rates.values())
    assert verdict.wsr == rates[verdict.reader]["wsr"]
    assert verdict.wfpr == rates[verdict.reader]["wfpr"]


# --- what cannot be judged ---------------------------------------------------------------------


def test_a_key_for_other_images_is_refused(world, marked, clean, key):
    for other in (world.images(groups=8, seed=1), world.images(groups=7)):
        with pytest.raises(KeyFileError, match="other images"):
            verify(marked, key=key, images=other, nulls=[clean], config=CONFIG)


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
    assert wide.smallest_p == pytest.approx(1 / 10_000)


@pytest.mark.parametrize("constant", [True, False])
def test_an_encoder_that_answers_nothing_useful_is_an_error(clean, key, images, constant):
    def answer(pixels: Tensor) -> Tensor:
        return torch.ones(len(pixels), 4) if constant else torch.full((len(pixels), 4), torch.nan)

    with pytest.raises(EncoderError, match="collapsed" if constant else "not finite"):
        verify(load_encoder(answer), key=key, images=images, nulls=[clean], config=CONFIG)


@pytest.mark.parametrize(
    ("p_value", "smallest", "decision"),
    [
        (0.01, 0.001, "detected"),
        (0.0101, 0.001, "not_detected"),
        (0.01, 0.01, "detected"),
        (0.5, 0.011, "inconclusive"),
        (1.0, 0.01, "not_detected"),
    ],
)
def test_the_decision_is_at_alpha(p_value, smallest, decision):
    found, reason = decide(p_value, smallest=smallest, alpha=0.01)
    assert found == decision
    assert "0.01" in reason
    assert EXIT_CODES[found] in (0, 1, 2)


@pytest.mark.parametrize("settings_", [{"alpha": 0}, {"alpha": 1}, {"draws": 10}, {"alfa": 0.1}])
def test_thresholds_out_of_range_are_refused(settings_):
    with pytest.raises(ValueError, match="validation error"):
        VerifyConfig(**settings_)
