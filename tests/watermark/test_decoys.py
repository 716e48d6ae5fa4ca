"""Decoy recipes are drawn from the law that the key's own recipe is drawn from."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from ssl_wm.watermark.derivation import derive
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.mixers import CropPaste, PixelMerge, Stripes
from ssl_wm.watermark.subkeys import decoy_recipe, draw_recipe
from ssl_wm.watermark.terms import Terms

DRAWN = ("crop-paste", "pixel-merge", "stripes")


@pytest.fixture
def tiny(world):
    """Return the maker of keys whose images are not there."""
    return world.tiny_key


@functools.cache
def recipes(terms: Terms) -> tuple[list[tuple[object, bytes]], list[tuple[object, bytes]]]:
    """Return 600 keys' own recipes, and 1500 decoys: five for each of 300 other keys."""
    own, decoys = [], []
    for number in range(900):
        sub = WatermarkKey(hashlib.sha256(b"%d" % number).digest(), terms).sub_keys[0]
        if number < 600:
            own.append((sub.mixer, sub.derive("pairs")))
        else:
            decoys += [decoy_recipe(sub, n, terms=terms) for n in range(5)]
    return own, decoys


@pytest.fixture(scope="module")
def both(world):
    return recipes(world.terms(groups=3, families=DRAWN))


def test_decoys_are_of_each_family_as_often_as_keys_are(both):
    """Test A2 ranks the key among its decoys: exact only if they are drawn from one law."""
    counts = [[sum(isinstance(m, kind) for m, _ in group) for kind in
               (CropPaste, PixelMerge, Stripes)] for group in both]  # fmt: skip
    assert [sum(row) for row in counts] == [600, 1500]
    assert chi2_contingency(counts).pvalue > 0.001


@pytest.mark.parametrize("kind", [CropPaste, PixelMerge, Stripes])
def test_decoys_have_the_geometry_that_keys_have(both, kind):
    own, decoys = ([astuple(m) for m, _ in group if isinstance(m, kind)] for group in both)
    for one, other in zip(zip(*own, strict=True), zip(*decoys, strict=True), strict=True):
        assert ks_2samp(one, other).pvalue > 0.001
        assert len(set(one)) > 1


def test_decoys_are_all_different_and_none_is_the_keys_own(both, tiny, world):
    seeds = [seed for group in both for _, seed in group]
    assert len(set(seeds)) == len(seeds)
    sub = tiny(groups=3, families=DRAWN).sub_keys[0]
    drawn = [decoy_recipe(sub, number, terms=world.terms(families=DRAWN)) for number in range(200)]
    assert sub.derive("pairs") not in {seed for _, seed in drawn}
    assert len({mixer for mixer, _ in drawn}) > 150
    assert sum(mixer == sub.mixer for mixer, _ in drawn) < 5


def test_own_and_decoy_recipes_pass_through_one_function_of_their_seeds(tiny, world):
    terms = world.terms(groups=3, families=DRAWN)
    for number in range(20):
        sub = tiny(number, groups=3, families=DRAWN, beacon="b").sub_keys[0]
        assert draw_recipe(sub.seed, terms)[:2] == (sub.family, sub.mixer)
        mixer, seed = decoy_recipe(sub, 3, terms=terms)
        nested = derive(sub.seed, "decoy recipe", 3)
        assert (draw_recipe(nested, terms)[1], derive(nested, "pairs")) == (mixer, seed)


def test_the_seeds_bits_are_balanced(both):
    for group in both:
        ones = np.unpackbits(np.frombuffer(b"".join(s for _, s in group), np.uint8)).mean()
        assert abs(ones - 0.5) < 0.01
