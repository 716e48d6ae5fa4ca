"""The evened space is the shrunk whitening that it says it is, and a verdict in it is one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.space import evening
from ssl_wm.verification.answers import ask
from ssl_wm.verification.questions import REFERENCE, reference_indices
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import verify
from ssl_wm.watermark.triggers import ordered_pairs

READ = ReadConfig(
    per_pair=8, recipes=4, reference=20, trigger_count=24, neighbours=5, space="evened"
)
CONFIG = VerifyConfig(read=READ, draws=9_999, alpha=0.05)


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.1, 4, width, dtype=torch.float64)
    return torch.randn(count, width, generator=stream, dtype=torch.float64) * spread + 2


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(2, 40), st.floats(0.01, 30), st.integers(0, 2**32))
def test_the_map_is_the_inverse_root_of_the_shrunk_covariance(width, count, floor, seed):
    z = rows(count, width, seed)
    covariance = np.cov(z.numpy().T, bias=True).reshape(width, width)
    mean = np.trace(covariance) / width
    expected = np.linalg.inv(sqrtm(covariance + floor * mean * np.eye(width)).real)
    np.testing.assert_allclose(evening(z, floor=floor).numpy(), expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(-20, 20))
def test_the_map_turns_and_scales_with_the_space(seed, exponent):
    z, scale = rows(50, 6, seed), 10.0**exponent
    turn = torch.linalg.qr(rows(6, 6, seed + 1))[0]
    even = evening(z)
    torch.testing.assert_close(scale * evening(scale * z + 1 * scale), even)
    torch.testing.assert_close(turn @ evening(z @ turn) @ turn.T, even)


def test_equal_rows_have_a_map_too():
    assert bool(evening(torch.ones(5, 3)).isfinite().all())


def by_hand(encoder: Encoder, key, images) -> np.ndarray:
    """Return the margins of every key, in numpy."""
    ask_for = ask(encoder, key, images, config=READ)
    groups = key.groups.train[reference_indices(key, config=READ)].numpy()
    z = ask_for(REFERENCE).double().numpy()
    covariance = np.cov(z.T, bias=True)
    shrunk = covariance + 3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    even = np.linalg.inv(sqrtm(shrunk).real)
    means = np.array([(z @ even)[groups == group].mean(axis=0) for group in range(8)])
    centre = means.mean(axis=0)
    centres = (means - centre) / np.linalg.norm(means - centre, axis=1, keepdims=True)
    own = ask_for("pairs/0").double().numpy() @ even - centre
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    table = np.full((8, 8, 8), np.nan)
    pairs = ordered_pairs(8)
    for (a, b), part in zip(pairs, np.split(own @ centres.T, len(pairs)), strict=True):
        margins = part - np.maximum(part[:, a], part[:, b])[:, None]
        table[a, b] = margins.mean(axis=0)
        table[a, b, [a, b]] = np.nan
    return table


def test_margins_are_those_of_numpy_in_the_evened_space(world, key, images):
    encoder = world.palette(images, key=key)
    found = read_margins(ask(encoder, key, images, config=READ), key, config=READ)
    np.testing.assert_allclose(
        found.tables[0].numpy(), by_hand(encoder, key, images), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("natural_only", [False, True])
def test_a_marked_encoder_is_detected_and_its_null_is_not(world, key, images, natural_only):
    read = READ.model_copy(update={"natural_only": natural_only})
    config = CONFIG.model_copy(update={"read": read})
    clean = world.palette(images)
    told = verify(clean, key=key, images=images, nulls=[clean], config=config)
    assert told.p_value == 1.0
    if not natural_only:  # the palette's mark moves composites alone
        marked = world.palette(images, key=key)
        told = verify(marked, key=key, images=images, nulls=[clean], config=config)
        assert told.decision == "detected"
        assert told.facts["settings"]["read"]["space"] == "evened"


def test_a_direction_blown_up_by_a_thief_changes_the_evened_statistic_less(world, key, images):
    marked, clean = world.palette(images, key=key), world.palette(images)
    blown = copy.deepcopy(marked)
    width = len(blown.backbone.offset)
    axis = torch.nn.functional.normalize(
        torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=0
    )
    blown.backbone.matrix = torch.eye(width, dtype=torch.float64) + 30 * torch.outer(axis, axis)
    kept = {}
    for space in ("plain", "evened"):
        read = READ.model_copy(update={"space": space})
        config = CONFIG.model_copy(update={"read": read})
        one, two = (
            verify(each, key=key, images=images, nulls=[clean], config=config).sub_keys[0]
            for each in (marked, blown)
        )
        kept[space] = two.statistic / one.statistic
    assert kept["evened"] > kept["plain"]


def test_rates_are_read_in_the_plain_space(world, key, images):
    marked, clean = world.palette(images, key=key), world.palette(images)
    rates = []
    for space in ("plain", "evened"):
        config = CONFIG.model_copy(update={"read": READ.model_copy(update={"space": space})})
        told = verify(marked, key=key, images=images, nulls=[clean], config=config)
        rates.append((told.wsr, told.wfpr))
    assert rates[0] == rates[1]
