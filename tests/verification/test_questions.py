"""A suspect is shown what the key says, no more images than counted, and always the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.errors import VerificationError
from ssl_wm.verification import questions
from ssl_wm.verification.questions import (
    count_queries,
    question_names,
    question_size,
    reference_indices,
    render,
    within_budget,
)
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.watermark.derivation import derive
from ssl_wm.watermark.triggers import composites, ordered_pairs

CONFIG = ReadConfig(per_pair=8, recipes=3, reference=20, trigger_count=40)
FAMILIES = ("crop-paste", "stripes", "pixel-merge")


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=7)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2, families=FAMILIES)


def whole(name, key, images, config=CONFIG):
    return torch.cat(list(render(name, key, images, config=config)))


# --- which sets, and how large -----------------------------------------------------------------


def test_the_sets_are_named_once_each_and_in_a_fixed_order(key):
    per_sub_key = ["pairs/{}", "recipes/{}", "fresh/{}", "others/{}"]
    expected = ["reference", *(name.format(index) for index in (0, 1) for name in per_sub_key)]
    assert question_names(key, config=CONFIG) == expected
    without = question_names(key, config=CONFIG, rates=False)
    assert without == ["reference", "pairs/0", "recipes/0", "pairs/1", "recipes/1"]
    none = CONFIG.model_copy(update={"recipes": 0})
    assert not [name for name in question_names(key, config=none) if name.startswith("recipes")]
    revealed = question_names(key.reveal([1]), config=CONFIG)
    assert revealed == ["reference", *(name.format(1) for name in per_sub_key)]


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 11), st.integers(0, 3), st.integers(8, 30), st.integers(8, 41))
def test_every_set_has_the_size_that_is_announced(
    images, key, per_pair, recipes, reference, triggers
):
    config = ReadConfig(
        per_pair=per_pair, recipes=recipes, reference=reference, trigger_count=triggers
    )
    sizes = {
        name: question_size(name, key, config=config) for name in question_names(key, config=config)
    }
    for name, size in sizes.items():
        rendered = whole(name, key, images, config)
        assert rendered.shape == (size, 3, 8, 8)
        assert rendered.dtype == torch.uint8
    assert sizes["reference"] == 7 * min(reference, 24)
    assert sizes["pairs/0"] == 7 * 6 * per_pair
    assert sizes.get("recipes/1", 0) == recipes * per_pair
    assert sizes["fresh/0"] == triggers
    others = len(key.sub_keys[0].others)
    assert triggers <= sizes["others/0"] < triggers + others
    assert sizes["others/0"] % others == 0
    assert count_queries(key, config=config) == sum(sizes.values())
    rates = sum(size for name, size in sizes.items() if name.startswith(("fresh", "others")))
    assert count_queries(key, config=config, rates=False) == sum(sizes.values()) - rates


# --- what is in them ---------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
def test_reference_images_are_a_public_choice_of_each_group(world, images, groups):
    """A choice that hung on the secret would let an owner pick the space."""
    one, two = (world.key(images, number=number, sub_keys=1 + groups) for number in (1, 2))
    for per_group in (8, 20, 24, 500):
        config = CONFIG.model_copy(update={"reference": per_group})
        chosen = reference_indices(one, config=config)
        counts = torch.bincount(images.train.labels[chosen], minlength=7)
        assert counts.tolist() == [min(per_group, 24)] * 7
        assert torch.equal(chosen, chosen.unique())
        torch.manual_seed(per_group)
        assert torch.equal(chosen, reference_indices(two, config=config))
        assert torch.equal(whole("reference", one, images, config), images.train.take(chosen))


def test_sets_hold_composites_of_test_images_by_the_right_mixers(key, images):
    for sub in key.sub_keys:
        own = [(sub.a, sub.b)]

        def mixed(pairs, mixer, count, seed):
            return composites(
                images.test, images.test.labels, pairs=pairs, mixer=mixer, per_pair=count, seed=seed
            )

        pairs = mixed(ordered_pairs(7), sub.mixer, 8, sub.derive("pairs"))
        assert torch.equal(whole(f"pairs/{sub.index}", key, images), pairs)
        fresh = mixed(own, sub.mixer, 40, sub.derive("fresh"))
        assert torch.equal(whole(f"fresh/{sub.index}", key, images), fresh)
        others = [
            mixed(own, mixer, -(-40 // len(sub.others)), sub.derive("others", place))
            for place, mixer in enumerate(sub.others.values())
        ]
        assert torch.equal(whole(f"others/{sub.index}", key, images), torch.cat(others))
        recipes = []
        for number in range(CONFIG.recipes):
            mixer, seed = questions.decoy_recipe(sub, number, terms=key.terms)
            assert seed == derive(sub.derive("decoy recipe", number), "pairs")
            recipes.append(mixed(own, mixer, 8, seed))
        assert torch.equal(whole(f"recipes/{sub.index}", key, images), torch.cat(recipes))


def test_triggers_behind_the_rates_are_not_those_behind_the_margins(key, images):
    sub = key.sub_keys[0]
    place = 8 * ordered_pairs(7).index((sub.a, sub.b))
    behind = whole("pairs/0", key, images)[place : place + 8]
    assert not torch.equal(whole("fresh/0", key, images)[:8], behind)
    assert not torch.equal(whole("recipes/0", key, images)[:8], behind)


def test_decoy_recipes_come_from_the_generator_of_the_keys_own(world):
    """A2 ranks the own recipe as one more draw: families must be as frequent in both."""
    images = world.images(groups=8)
    own, decoys = Counter(), Counter()
    for number in range(150):
        key = world.key(images, number=number, sub_keys=2, families=FAMILIES)
        for sub in key.sub_keys:
            own[type(sub.mixer).__name__] += 1
            for decoy in range(2):
                mixer, _ = questions.decoy_recipe(sub, decoy, terms=key.terms)
                decoys[type(mixer).__name__] += 1
    assert set(own) == set(decoys) == {"CropPaste", "Stripes", "PixelMerge"}
    for counts, total in ((own, 300), (decoys, 600)):
        for count in counts.values():
            assert abs(count - total / 3) < 4.5 * (total * 2 / 9) ** 0.5


@pytest.mark.parametrize("block", [1, 9, 50, 100_000])
def test_rendering_repeats_whatever_the_blocks_and_the_global_seed(key, images, monkeypatch, block):
    names = question_names(key, config=CONFIG)
    before = {name: whole(name, key, images) for name in names}
    monkeypatch.setattr(questions, "BLOCK", block)
    torch.manual_seed(block)
    for name in names:
        assert torch.equal(whole(name, key, images), before[name])
    sizes = [len(part) for part in render("reference", key, images, config=CONFIG)]
    assert max(sizes) <= block
    assert max(sizes) - min(sizes) <= 1


def test_whoever_holds_a_revealed_sub_key_renders_the_same_images(key, images):
    revealed = key.reveal([1])
    for name in question_names(revealed, config=CONFIG):
        assert torch.equal(whole(name, revealed, images), whole(name, key, images))


@pytest.mark.parametrize("name", ["", "other", "pairs", "pairs/", "pairs/2", "pairs/0/0", "x/0",
                                  "reference/0", "fresh/-1", "pairs/00"])  # fmt: skip
def test_a_set_that_there_is_not_is_refused(key, images, name):
    with pytest.raises(VerificationError, match=f"no set of images '{name}'"):
        list(render(name, key, images, config=CONFIG))
    with pytest.raises(VerificationError, match="no set of images"):
        question_size(name, key, config=CONFIG)
    with pytest.raises(VerificationError, match="no set of images 'pairs/0'"):
        question_size("pairs/0", key.reveal([1]), config=CONFIG)


# --- the budget --------------------------------------------------------------------------------

LARGE = ReadConfig(per_pair=64, recipes=9, reference=100, trigger_count=1000)
ORDER = ("trigger_count", "recipes", "per_pair", "reference")
LEAST = {"trigger_count": 100, "recipes": 0, "per_pair": 8, "reference": 50}


@pytest.fixture(scope="module")
def wide(world):
    """Return a key whose groups have more images than any reading takes."""
    return world.key(world.images(groups=6, train=120), number=1)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 9000))
def test_what_matters_least_is_cut_first_and_nothing_exceeds_the_limit(wide, limit):
    needed = count_queries(wide, config=LARGE.model_copy(update=LEAST))
    if limit < needed:
        with pytest.raises(VerificationError, match=f"at least {needed:,} queries.*{limit:,}"):
            within_budget(wide, config=LARGE, limit=limit)
        return
    fits = within_budget(wide, config=LARGE, limit=limit)
    assert count_queries(wide, config=fits) <= limit
    assert all(LEAST[name] <= getattr(fits, name) <= getattr(LARGE, name) for name in ORDER)
    cut = [name for name in ORDER if getattr(fits, name) < getattr(LARGE, name)]
    assert cut == list(ORDER[: len(cut)])
    for name in cut[:-1]:
        assert getattr(fits, name) == LEAST[name]
    assert (fits.neighbours, fits.precision) == (LARGE.neighbours, LARGE.precision)


def test_no_limit_or_a_large_one_cuts_nothing(wide):
    assert within_budget(wide, config=LARGE, limit=None) is LARGE
    enough = count_queries(wide, config=LARGE)
    assert within_budget(wide, config=LARGE, limit=enough) == LARGE
    assert within_budget(wide, config=LARGE, limit=enough - 1).trigger_count == 500


def test_less_than_the_least_that_is_cut_to_stays_as_it_was_asked_for(wide):
    small = ReadConfig(per_pair=8, recipes=0, reference=10, trigger_count=8)
    assert within_budget(wide, config=small, limit=count_queries(wide, config=small)) == small
    with pytest.raises(VerificationError, match=r"--max-queries.*--sub-key"):
        within_budget(wide, config=small, limit=count_queries(wide, config=small) - 1)
