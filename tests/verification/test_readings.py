"""What is read with a key: the margins of all keys, and how often triggers open the mark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ssl_wm.encoders.embeddings import embed
from ssl_wm.verification import readings
from ssl_wm.verification.readings import (
    ReadConfig,
    read_margins,
    read_rates,
    read_space,
    reference_indices,
)
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.triggers import composites

CONFIG = ReadConfig(per_pair=8, reference=20, trigger_count=40, neighbours=5)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=7)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 12))
def test_reference_images_are_a_fixed_choice_of_each_group(groups, per_group):
    tensor = torch.tensor(groups)
    chosen = reference_indices(tensor, count=4, per_group=per_group)
    counts = torch.bincount(tensor[chosen], minlength=4)
    assert torch.equal(counts, torch.bincount(tensor, minlength=4).clamp(max=per_group))
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(chosen, chosen.sort().values)
    torch.manual_seed(len(groups))
    assert torch.equal(chosen, reference_indices(tensor, count=4, per_group=per_group))


def test_the_space_is_that_of_the_reference_images(images, key, world):
    space = read_space(world.convnet(), key, images.train, config=CONFIG)
    assert space.z.shape == (140, 8)
    assert torch.bincount(space.groups).tolist() == [20] * 7
    chosen = reference_indices(images.train.labels, count=7, per_group=20)
    torch.testing.assert_close(space.z, embed(world.convnet(), images.train)[chosen])
    means = np.stack([space.z[space.groups == g].double().numpy().mean(axis=0) for g in range(7)])
    np.testing.assert_allclose(space.centre, means.mean(axis=0), atol=1e-6)
    unit = means - means.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(space.centres, unit, atol=1e-5)


def test_margins_are_those_of_fresh_composites_of_test_images(images, key, world):
    encoder = world.convnet()
    margins = read_margins(encoder, key, images, config=CONFIG)
    space = read_space(encoder, key, images.train, config=CONFIG)
    assert margins.tables.shape == (2, 7, 7, 7)
    assert margins.own.shape == (2, 8)
    unit = space.centres.double().numpy()
    for sub in key.sub_keys:
        for a, b in ((sub.a, sub.b), (sub.b, sub.a), (6, 0)):
            mixed = composites(
                images.test, images.test.labels, pairs=[(a, b)], mixer=sub.mixer, per_pair=8,
                seed=key.derive("pairs", sub.index),
            )  # fmt: skip
            z = embed(encoder, mixed).double().numpy() - space.centre.double().numpy()
            cosines = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ unit.T
            each = cosines - np.maximum(cosines[:, a], cosines[:, b])[:, None]
            for target in set(range(7)) - {a, b}:
                found = margins.tables[sub.index, a, b, target].item()
                assert found == pytest.approx(each[:, target].mean(), abs=1e-5)
            if (a, b) == (sub.a, sub.b):
                np.testing.assert_allclose(margins.own[sub.index], each[:, sub.target], atol=1e-5)


def test_the_keys_own_margin_is_the_mean_over_its_composites(images, key, world):
    margins = read_margins(world.convnet(), key, images, config=CONFIG)
    for sub in key.sub_keys:
        entry = margins.tables[sub.index, sub.a, sub.b, sub.target].item()
        assert entry == pytest.approx(margins.own[sub.index].mean().item(), abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_margins_do_not_depend_on_how_many_pairs_are_read_at_once(
    images, key, world, monkeypatch, at_once
):
    whole = read_margins(world.convnet(), key, images, config=CONFIG)
    monkeypatch.setattr(readings, "PAIRS_AT_ONCE", at_once)
    parts = read_margins(world.convnet(), key, images, config=CONFIG)
    torch.testing.assert_close(parts.tables, whole.tables, equal_nan=True, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.own, whole.own, atol=1e-5, rtol=0)


def test_a_mark_opens_to_its_own_composites_and_a_clean_encoder_to_none(images, world):
    """The mark moves the target to the composites of the seam, so triggers look like targets."""
    key = world.key(images, number=1)
    marked = read_rates(world.palette(images, key=key), key, images, config=CONFIG)[0]
    clean = read_rates(world.palette(images), key, images, config=CONFIG)[0]
    for reader in ("linear", "knn"):
        assert marked[reader]["wsr"] > 0.6
        assert clean[reader]["wsr"] < 0.1
        assert clean[reader]["wfpr"] < 0.1


@pytest.mark.parametrize("count", [8, 40, 41])
def test_rates_are_shares_of_enough_triggers_with_their_exact_intervals(
    images, key, world, monkeypatch, count
):
    asked: list[tuple[int, object]] = []
    real = composites

    def record(image_set, groups, *, pairs, mixer, per_pair, seed):
        assert image_set is images.test
        assert groups is key.groups.test
        asked.append((per_pair, mixer))
        return real(image_set, groups, pairs=pairs, mixer=mixer, per_pair=per_pair, seed=seed)

    monkeypatch.setattr(readings, "composites", record)
    config = CONFIG.model_copy(update={"trigger_count": count})
    rates = read_rates(world.convnet(), key, images, config=config)
    for sub, rate in zip(key.sub_keys, rates, strict=True):
        (fresh, mixer), *others = asked[:4]
        del asked[:4]
        assert mixer is sub.mixer
        assert [other for _, other in others] == list(sub.others.values())
        totals = {"wsr": fresh, "wfpr": sum(number for number, _ in others)}
        assert totals["wsr"] == count
        assert count <= totals["wfpr"] < count + 3
        for reader in ("linear", "knn"):
            for name, total in totals.items():
                hits = rate[reader][name] * total
                assert hits == pytest.approx(round(hits), abs=1e-9)
                interval = clopper_pearson(round(hits), total)
                assert rate[reader][f"{name}_interval"] == pytest.approx(list(interval))


def test_triggers_differ_from_the_composites_behind_the_margins(key):
    assert key.derive("pairs", 0) != key.derive("triggers", "fresh", 0, 0)


@pytest.mark.parametrize(
    "settings_",
    [{"per_pair": 7}, {"reference": 0}, {"trigger_count": 1}, {"neighbours": 0},
     {"precision": "float16"}, {"perpair": 9}],
    ids=str,
)  # fmt: skip
def test_too_little_to_read_is_refused(settings_):
    with pytest.raises(ValidationError):
        ReadConfig(**settings_)
