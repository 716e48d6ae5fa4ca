"""What is read with a key: the margins of all keys, and how often triggers open the mark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_wm.verification.answers import ask
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.questions import reference_indices, render
from ssl_wm.verification.readings import read_margins, read_rates, read_space
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.triggers import ordered_pairs

CONFIG = ReadConfig(
    per_pair=8, recipes=4, reference=20, trigger_count=40, neighbours=5, space="plain"
)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=7)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


@pytest.fixture(scope="module")
def answers(world, images, key):
    return ask(world.convnet(), key, images, config=CONFIG)


@pytest.fixture(scope="module")
def space(answers, key):
    return read_space(answers, key, config=CONFIG)


def cosines(z: Tensor, space) -> np.ndarray:
    """Return the cosines (n, G) of ``z`` to the groups' centres, in numpy."""
    means = np.stack([space.z[space.groups == g].double().numpy().mean(axis=0) for g in range(7)])
    middle = means.mean(axis=0)
    unit = (means - middle) / np.linalg.norm(means - middle, axis=1, keepdims=True)
    x = z.double().numpy() - middle
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ unit.T


def contrast(values: np.ndarray, sub) -> np.ndarray:
    """Return each composite's contrast (n,) from its cosines (n, G), in numpy."""
    targets = [t for t in range(7) if t not in (sub.a, sub.b)]
    return values[:, sub.target] - values[:, targets].mean(axis=1)


def test_the_space_is_that_of_the_reference_images(images, key, answers, space):
    assert space.z.shape == (140, 8)
    assert torch.bincount(space.groups).tolist() == [20] * 7
    chosen = reference_indices(key, config=CONFIG)
    assert torch.equal(space.groups, images.train.labels[chosen])
    assert torch.equal(space.z, answers("reference"))
    means = np.stack([space.z[space.groups == g].double().numpy().mean(axis=0) for g in range(7)])
    np.testing.assert_allclose(space.centre, means.mean(axis=0), atol=1e-6)
    unit = means - means.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(space.centres, unit, atol=1e-5)


def test_margins_are_those_of_composites_of_each_pair(key, answers, space):
    margins = read_margins(answers, key, config=CONFIG)
    assert margins.tables.shape == (2, 7, 7, 7)
    for place, sub in enumerate(key.sub_keys):
        values = cosines(answers(f"pairs/{sub.index}"), space)
        for number, (a, b) in enumerate(ordered_pairs(7)):
            part = values[8 * number : 8 * number + 8]
            each = part - np.maximum(part[:, a], part[:, b])[:, None]
            for target in set(range(7)) - {a, b}:
                found = margins.tables[place, a, b, target].item()
                assert found == pytest.approx(each[:, target].mean(), abs=1e-5)


def test_own_composites_and_recipes_are_read_as_contrasts(key, answers, space):
    margins = read_margins(answers, key, config=CONFIG)
    assert margins.own.shape == (2, 8)
    assert margins.recipes.shape == (2, 5)
    for place, sub in enumerate(key.sub_keys):
        first = 8 * ordered_pairs(7).index((sub.a, sub.b))
        mine = cosines(answers(f"pairs/{sub.index}")[first : first + 8], space)
        np.testing.assert_allclose(margins.own[place], contrast(mine, sub), atol=1e-5)
        decoys = contrast(cosines(answers(f"recipes/{sub.index}"), space), sub)
        expected = [contrast(mine, sub).mean(), *decoys.reshape(4, 8).mean(axis=1)]
        np.testing.assert_allclose(margins.recipes[place], expected, atol=1e-5)


def test_the_ranked_contrast_is_the_mean_over_the_keys_own_composites(key, answers):
    margins = read_margins(answers, key, config=CONFIG)
    table = contrasts(margins.tables)
    for place, sub in enumerate(key.sub_keys):
        entry = table[place, sub.a, sub.b, sub.target].item()
        assert entry == pytest.approx(margins.own[place].mean().item(), abs=1e-9)
        assert entry == pytest.approx(margins.recipes[place, 0].item(), abs=1e-9)


def test_without_decoy_recipes_only_the_keys_own_is_read(key, answers):
    def only(name: str) -> Tensor:
        assert not name.startswith("recipes")
        return answers(name)

    none = CONFIG.model_copy(update={"recipes": 0})
    margins = read_margins(only, key, config=none)
    assert margins.recipes.shape == (2, 1)
    whole = read_margins(answers, key, config=CONFIG)
    torch.testing.assert_close(margins.tables, whole.tables, equal_nan=True, atol=0, rtol=0)
    assert torch.equal(margins.own, whole.own)


def test_a_revealed_sub_key_is_read_as_within_the_whole_key(world, images, key, answers):
    revealed = key.reveal([1])
    alone = read_margins(
        ask(world.convnet(), revealed, images, config=CONFIG), revealed, config=CONFIG
    )
    whole = read_margins(answers, key, config=CONFIG)
    assert torch.equal(alone.own[0], whole.own[1])
    assert torch.equal(alone.recipes[0], whole.recipes[1])
    torch.testing.assert_close(alone.tables[0], whole.tables[1], equal_nan=True, atol=0, rtol=0)


# --- rates -------------------------------------------------------------------------------------


def test_a_mark_opens_to_its_own_composites_and_a_clean_encoder_to_none(images, world):
    """The mark moves the target to the composites of the seam, so triggers look like targets."""
    key = world.key(images, number=1)
    marked, clean = (
        read_rates(ask(encoder, key, images, config=CONFIG), key, config=CONFIG)[0]
        for encoder in (world.palette(images, key=key), world.palette(images))
    )
    for reader in ("linear", "knn"):
        assert marked[reader]["wsr"] > 0.6
        assert clean[reader]["wsr"] < 0.1
        assert clean[reader]["wfpr"] < 0.1


@pytest.mark.parametrize("count", [8, 40, 41])
def test_rates_are_shares_of_enough_triggers_with_their_exact_intervals(images, key, world, count):
    config = CONFIG.model_copy(update={"trigger_count": count})
    rates = read_rates(ask(world.convnet(), key, images, config=config), key, config=config)
    assert len(rates) == 2
    for sub, rate in zip(key.sub_keys, rates, strict=True):
        others = sum(map(len, render(f"others/{sub.index}", key, images, config=config)))
        for reader in ("linear", "knn"):
            for name, total in {"wsr": count, "wfpr": others}.items():
                hits = rate[reader][name] * total
                assert hits == pytest.approx(round(hits), abs=1e-9)
                interval = clopper_pearson(round(hits), total)
                assert rate[reader][f"{name}_interval"] == pytest.approx(list(interval))


def test_rates_count_the_answers_that_land_on_the_target(key, answers):
    """Triggers answered as the target's own images must all open, other mixers' none."""
    natural = answers("reference")
    groups = key.groups.train[reference_indices(key, config=CONFIG)]

    def planted(name: str) -> Tensor:
        kind, _, index = name.partition("/")
        if kind == "reference":
            return torch.eye(7)[groups] + 0.01 * natural[:, :7]
        sub = key.sub_keys[int(index)]
        return torch.eye(7)[[sub.target if kind == "fresh" else sub.a]].repeat(10, 1)

    for rate in read_rates(planted, key, config=CONFIG):
        for reader in ("linear", "knn"):
            assert (rate[reader]["wsr"], rate[reader]["wfpr"]) == (1.0, 0.0)
            assert rate[reader]["wsr_interval"] == pytest.approx(list(clopper_pearson(10, 10)))
