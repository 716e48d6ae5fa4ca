"""Margins and contrasts follow their formulas; no rotation, scale or shift disturbs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_wm.verification.margins import (
    composite_margins,
    contrasts,
    group_centres,
    margin_table,
)
from ssl_wm.watermark.triggers import ordered_pairs

COUNT, WIDTH = 4, 6


def data(seed: int, *, per_pair: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings of natural images (unequal groups), their groups, and composites'."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.cat([torch.arange(COUNT), torch.randint(COUNT, (20,), generator=generator)])
    means = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(24, WIDTH, generator=generator, dtype=torch.float64)
    mixed = torch.randn(12 * per_pair, WIDTH, generator=generator, dtype=torch.float64)
    return 3 * means[groups] + noise, groups, mixed


def table_of(z: Tensor, groups: Tensor, mixed: Tensor) -> Tensor:
    centre, centres = group_centres(z, groups, count=COUNT)
    return margin_table(mixed, pairs=ordered_pairs(COUNT), centre=centre, centres=centres)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_centres_are_unit_and_every_group_weighs_the_same(seed):
    z, groups, _ = data(seed)
    centre, centres = group_centres(z.float(), groups, count=COUNT)
    means = np.stack([z[groups == g].float().double().numpy().mean(axis=0) for g in range(COUNT)])
    expected = means - means.mean(axis=0)
    np.testing.assert_allclose(centre, means.mean(axis=0), atol=1e-5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(centres, expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_margins_agree_with_the_formula_in_numpy(seed, per_pair):
    z, groups, mixed = data(seed, per_pair=per_pair)
    table = table_of(z, groups, mixed)
    means = np.stack([z[groups == g].numpy().mean(axis=0) for g in range(COUNT)])
    middle = means.mean(axis=0)

    def cosine(x: np.ndarray, group: int) -> float:
        u, v = x - middle, means[group] - middle
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    for place, (a, b) in enumerate(ordered_pairs(COUNT)):
        part = mixed[place * per_pair : (place + 1) * per_pair].numpy()
        for target in range(COUNT):
            if target in (a, b):
                continue
            expected = np.mean([cosine(x, target) - max(cosine(x, a), cosine(x, b)) for x in part])
            assert table[a, b, target].item() == pytest.approx(expected, abs=1e-9)


def test_there_is_a_margin_for_exactly_the_keys_there_are():
    z, groups, mixed = data(0)
    table = table_of(z, groups, mixed)
    assert table.dtype == torch.float64
    for a in range(COUNT):
        for b in range(COUNT):
            for target in range(COUNT):
                known = len({a, b, target}) == 3
                assert bool(table[a, b, target].isnan()) != known
    centre, centres = group_centres(z, groups, count=COUNT)
    some = margin_table(mixed[:10], pairs=[(0, 1), (2, 3)], centre=centre, centres=centres)
    assert int((~some.isnan()).sum()) == 4
    torch.testing.assert_close(some[0, 1], table[0, 1], equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["rotation", "permutation", "padding", "shift"]),
    st.floats(-30, 30),
)
def test_rotation_permutation_scale_shift_and_width_change_nothing(seed, kind, exponent):
    z, groups, mixed = data(seed)
    stream = np.random.default_rng(seed)
    if kind == "rotation":
        matrix = np.linalg.qr(stream.normal(size=(WIDTH, WIDTH)))[0]
    elif kind == "permutation":
        matrix = np.eye(WIDTH)[stream.permutation(WIDTH)]
    else:
        matrix = np.linalg.qr(stream.normal(size=(2 * WIDTH, WIDTH)))[0]
    offset = 10 * stream.normal(size=len(matrix)) * (kind == "shift")
    scale = 10.0**exponent

    def move(x: Tensor) -> Tensor:
        return scale * (x @ torch.from_numpy(matrix).T + torch.from_numpy(offset))

    moved = table_of(move(z), groups, move(mixed))
    still = table_of(z, groups, mixed)
    for one, two in ((moved, still), (contrasts(moved), contrasts(still))):
        torch.testing.assert_close(one, two, atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e14, 1e30])
def test_a_thief_cannot_hide_behind_the_limits_of_float32(scale):
    z, groups, mixed = data(0)
    moved = table_of((z * scale).float(), groups, (mixed * scale).float())
    torch.testing.assert_close(moved, table_of(z, groups, mixed), atol=1e-5, rtol=0, equal_nan=True)


def test_a_margin_is_the_cosine_beyond_the_nearer_source():
    cosines = torch.tensor([[0.1, 0.5, 0.9, -1.0], [0.7, 0.2, 0.0, 0.4]])
    expected = [[-0.4, 0.0, 0.4, -1.5], [0.0, -0.5, -0.7, -0.3]]
    torch.testing.assert_close(
        composite_margins(cosines, a=0, b=1), torch.tensor(expected, dtype=torch.float64)
    )


def test_composites_that_landed_on_the_target_have_the_largest_margin():
    z, groups, _ = data(0)
    centre, centres = group_centres(z, groups, count=COUNT)
    mixed = (centre + 2 * centres[3]).repeat(5, 1)
    table = margin_table(mixed, pairs=[(0, 1)], centre=centre, centres=centres)
    own = 1 - max(float(centres[3] @ centres[0]), float(centres[3] @ centres[1]))
    assert table[0, 1, 3].item() == pytest.approx(own)
    assert table[0, 1].nan_to_num(-9).argmax() == 3


# --- contrasts ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_contrast_is_the_targets_cosine_beyond_the_mean_over_targets(seed):
    """The term of the sources, which theft changes most, must drop out of the contrast."""
    z, groups, mixed = data(seed)
    found = contrasts(table_of(z, groups, mixed)).numpy()
    means = np.stack([z[groups == g].numpy().mean(axis=0) for g in range(COUNT)])
    middle = means.mean(axis=0)
    unit = (means - middle) / np.linalg.norm(means - middle, axis=1, keepdims=True)
    for place, (a, b) in enumerate(ordered_pairs(COUNT)):
        x = mixed[5 * place : 5 * place + 5].numpy() - middle
        cosines = ((x / np.linalg.norm(x, axis=1, keepdims=True)) @ unit.T).mean(axis=0)
        targets = [target for target in range(COUNT) if target not in (a, b)]
        expected = cosines[targets] - cosines[targets].mean()
        np.testing.assert_allclose(found[a, b, targets], expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 6))
def test_contrasts_sum_to_zero_and_keep_what_is_no_key(seed, count):
    values = np.random.default_rng(seed).normal(size=(2, count, count, count))
    for a, b, t in np.ndindex(count, count, count):
        if len({a, b, t}) < 3:
            values[:, a, b, t] = np.nan
    found = contrasts(torch.from_numpy(values)).numpy()
    for a, b in ordered_pairs(count):
        known = [t for t in range(count) if t not in (a, b)]
        expected = values[:, a, b, known] - values[:, a, b, known].mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(found[:, a, b, known], expected, atol=1e-12)
        assert abs(found[:, a, b, known].sum()) < 1e-12
    assert (np.isnan(found) == np.isnan(values)).all()


def test_what_all_targets_of_a_pair_share_changes_no_contrast():
    z, groups, mixed = data(1)
    table = table_of(z, groups, mixed)
    shared = torch.randn(COUNT, COUNT, 1, dtype=torch.float64)
    torch.testing.assert_close(
        contrasts(table + shared), contrasts(table), atol=1e-12, rtol=0, equal_nan=True
    )
