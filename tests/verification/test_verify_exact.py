"""Exact whatever the suspect and the nulls are; and no disguise of the space matters."""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.verification.answers import ask
from ssl_wm.verification.judge import judge
from ssl_wm.verification.once import Memory
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import verify

READ = {"per_pair": 8, "recipes": 4, "reference": 20, "trigger_count": 24, "neighbours": 5}
READERS = {name: {"wsr": 0.0, "wfpr": 0.0} for name in ("linear", "knn")}


@pytest.fixture(scope="module", params=["plain", "evened"])
def config(request):
    return VerifyConfig(read=ReadConfig(**READ, space=request.param), draws=9_999)


@pytest.fixture(scope="module")
def verdict(marked, clean, key, images, config):
    return verify(marked, key=key, images=images, nulls=[clean], config=config)


def read(encoder, key, images, config):
    return read_margins(ask(encoder, key, images, config=config.read), key, config=config.read)


# --- no honest encoder is accused more often than alpha -----------------------------------------


class Drawn:
    """A key whose triples are exchanged for others, all else alike."""

    def __init__(self, key, triples) -> None:
        self.key, self.sub_keys = key, []
        for sub, (a, b, target) in zip(key.sub_keys, triples, strict=True):
            self.sub_keys.append(copy.copy(sub))
            for name, value in (("a", a), ("b", b), ("target", target)):
                object.__setattr__(self.sub_keys[-1], name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.key, name)


@pytest.mark.parametrize(("sub_keys", "nulls"), [(1, 1), (1, 3), (1, 5), (2, 1), (2, 5)])
def test_over_all_keys_that_could_have_been_drawn_p_is_at_most_alpha(
    world, monkeypatch, config, sub_keys, nulls
):
    """One suspect, fixed nulls, every (joint) key: P(p <= alpha) is alpha, but for the draws."""
    monkeypatch.setattr("ssl_wm.verification.judge.bootstrap_mean", lambda values: (0.0, 0.0))
    images = world.images(groups=6)
    key = world.key(images, sub_keys=sub_keys)
    encoders = [world.convnet(seed=seed) for seed in range(nulls)]
    suspect, *known = (read(e, key, images, config) for e in (world.palette(images), *encoders))
    every = [np.reshape(c, (-1, 3)).tolist() for c in permutations(range(6), 3 * sub_keys)]
    found = np.sort([
        judge(
            suspect, nulls=known, rates=[READERS] * sub_keys,
            key=Drawn(key, triples), config=config, facts={},
        ).p_value
        for triples in every[:: 1 if sub_keys == 1 else 5]
    ])  # fmt: skip
    if sub_keys == 1:
        np.testing.assert_allclose(found, np.arange(1, 121) / 120)
    for alpha in (0.01, 0.05, 0.1, 0.5):
        noise = 0 if sub_keys == 1 else 4 * (alpha * (1 - alpha) / len(found)) ** 0.5
        assert (found <= alpha).mean() <= alpha + noise


@pytest.mark.parametrize(("sub_keys", "nulls", "count"), [(1, 1, 30), (2, 4, 10)])
def test_over_keys_from_fresh_secrets_p_is_at_most_alpha(
    world, monkeypatch, config, sub_keys, nulls, count
):
    """One fixed suspect, many random secrets: groups, mixers and image pairs all drawn anew."""
    monkeypatch.setattr("ssl_wm.verification.judge.bootstrap_mean", lambda values: (0.0, 0.0))
    images = world.images(groups=6)
    encoders = [world.palette(images), *(world.convnet(seed=seed) for seed in range(nulls - 1))]
    found = []
    for number in range(count):
        key = world.key(images, number=100 + number, sub_keys=sub_keys)
        suspect, *known = (read(e, key, images, config) for e in (world.convnet(seed=9), *encoders))
        verdict = judge(
            suspect, nulls=known, rates=[READERS] * sub_keys, key=key, config=config, facts={}
        )
        found.append([test.p_value for test in verdict.tests[:2]])  # B asks for more of a suspect
    for p_values in np.array(found).T:
        for alpha in (0.02, 0.1, 0.25, 0.5):
            assert (p_values <= alpha).sum() <= binom.ppf(0.9995, count, alpha)


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


@pytest.mark.parametrize("kind", ["rotation", "permutation", "scale", "shift"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.floats(-20, 20))
def test_no_disguise_of_the_space_changes_a_statistic_or_the_verdict(
    marked, clean, key, images, config, verdict, kind, seed, exponent
):
    suspect = disguised(marked, kind, seed, exponent)
    again = verify(suspect, key=key, images=images, nulls=[clean], config=config)
    assert (again.decision, again.p_value) == (verdict.decision, verdict.p_value)
    assert [test.p_value for test in again.tests] == [test.p_value for test in verdict.tests]
    one, two = verdict.sub_keys[0], again.sub_keys[0]
    for name in ("margin", "null_margin", "statistic"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), abs=1e-5)
    assert two.interval == pytest.approx(one.interval, abs=1e-5)
    torch.testing.assert_close(again.null, verdict.null, atol=1e-5, rtol=0)
    if kind != "rotation":  # the probe standardises each feature, which a rotation mixes
        assert again.wsr == pytest.approx(verdict.wsr, abs=0.05)
        assert again.wfpr == pytest.approx(verdict.wfpr, abs=0.05)


@pytest.mark.parametrize("kind", ["rotation", "scale"])
def test_no_disguise_changes_a_joint_verdict_with_several_nulls(world, clean, images, config, kind):
    key = world.key(images, number=3, sub_keys=2)
    nulls, memory = [clean, *(world.convnet(seed=seed) for seed in range(3))], Memory()
    suspect = world.palette(images, key=key)
    one, two = (
        verify(s, key=key, images=images, nulls=nulls, config=config, memory=memory)
        for s in (suspect, disguised(suspect, kind, 5, -7.0))
    )
    assert (two.decision, two.p_value) == (one.decision, one.p_value)
    for name in ("margin", "null_margin"):
        for first, second in zip(one.sub_keys, two.sub_keys, strict=True):
            assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-5)
    assert two.position == pytest.approx(one.position, rel=1e-4)


def test_a_disguised_null_or_innocent_gains_nothing(clean, key, images, config):
    for kind in ("rotation", "scale", "shift"):
        suspect = disguised(clean, kind, 3, 6.0)
        verdict = verify(suspect, key=key, images=images, nulls=[clean], config=config)
        assert abs(verdict.sub_keys[0].statistic) < 1e-5


def test_the_same_suspect_gets_the_same_verdict_whatever_the_global_seed(
    marked, clean, key, images, config, verdict
):
    torch.manual_seed(123)
    again = verify(marked, key=key, images=images, nulls=[clean], config=config)
    assert again.to_dict() == verdict.to_dict()
