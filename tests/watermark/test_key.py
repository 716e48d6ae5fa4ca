"""A key: its owner cannot choose what it stands for, and nobody else can tell before he says."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2

from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.files import canonical_json
from ssl_wm.watermark.autoencoder import Autoencoder
from ssl_wm.watermark.groups import Groups, label_groups
from ssl_wm.watermark.key import RevealedKey, WatermarkKey, new_key
from ssl_wm.watermark.merkle import leaf_hash, merkle_path, merkle_root
from ssl_wm.watermark.mixers import CropPaste, PixelMerge, Stripes
from ssl_wm.watermark.open_key import OpenKey
from ssl_wm.watermark.subkeys import Leaf, decoy_recipe
from ssl_wm.watermark.terms import Terms

DRAWN = ("crop-paste", "pixel-merge", "stripes")
SECRETS = st.binary(min_size=32, max_size=32)
BEACONS = st.text(min_size=1, max_size=20).map(str.strip).filter(lambda t: t and t.isprintable())


@pytest.fixture
def tiny(world):
    """Return the maker of keys whose images are not there."""
    return world.tiny_key


def joint(key: OpenKey) -> tuple[int, ...]:
    return tuple(group for sub in key.sub_keys for group in (sub.a, sub.b, sub.target))


def hand_picked(terms: Terms, places: list[tuple[int, int, int]]) -> RevealedKey:
    """Return the key of an owner who chose his leaves himself and built a tree over them."""
    leaves = [Leaf(n, triple, b"%032d" % n) for n, triple in enumerate(places)]
    hashes = [leaf_hash(leaf.content) for leaf in leaves]
    paths = tuple(tuple(merkle_path(hashes, n)) for n in range(len(leaves)))
    return RevealedKey(terms, merkle_root(hashes), tuple(leaves), paths)


def check_uniform(counts: Counter, possible: int) -> None:
    assert len(counts) == possible
    expected = counts.total() / possible
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert 0.001 < chi2.sf(statistic, possible - 1) < 0.999


# --- nobody chooses the groups -----------------------------------------------------------------


def test_every_joint_key_is_equally_likely_over_secrets(world):
    """The permutation test's p-values are exact only if it is."""
    terms = world.terms(groups=6, sub_keys=2)
    keys = (WatermarkKey(world.secret(number), terms) for number in range(7200))
    check_uniform(Counter(map(joint, keys)), 720)


@pytest.mark.parametrize("places", [[(0, 1, 2), (3, 4, 5)], [(5, 0, 3), (1, 4, 2)]], ids=str)
def test_every_joint_key_is_equally_likely_over_beacons_whatever_the_owner_picked(world, places):
    """Else an owner could commit to the groups that suit a suspect."""
    key = hand_picked(world.terms(groups=6, sub_keys=2), places)
    keys = (replace(key, beacon=f"round {number}") for number in range(7200))
    check_uniform(Counter(map(joint, keys)), 720)


def test_every_joint_key_is_equally_likely_over_beacons_for_one_secret(tiny):
    key = tiny(groups=5)
    keys = (key.with_beacon(str(number)) for number in range(3000))
    check_uniform(Counter(map(joint, keys)), 60)


def test_equal_beacons_give_owners_unrelated_groups(world):
    """Else many owners' keys would be right or wrong together."""
    terms = world.terms(groups=4)
    keys = [WatermarkKey(world.secret(n), terms, "round 7") for n in range(2400)]
    assert len({key.salt for key in keys}) == len(keys)
    check_uniform(Counter(map(joint, keys)), 24)


@given(SECRETS, BEACONS, st.integers(1, 4), st.data())
def test_sub_keys_share_no_group_before_and_after_the_beacon(world, raw, beacon, sub_keys, data):
    groups = data.draw(st.integers(3 * sub_keys, 20))
    terms = world.terms(groups=groups, sub_keys=sub_keys, families=DRAWN)
    before = WatermarkKey(raw, terms)
    for key in (before, before.with_beacon(beacon)):
        assert key.sub_keys == WatermarkKey(raw, terms, key.beacon).sub_keys
        assert len(set(joint(key))) == 3 * sub_keys
        assert set(joint(key)) <= set(range(groups))
        assert [sub.index for sub in key.sub_keys] == list(range(sub_keys))
        assert all(sub.family in DRAWN for sub in key.sub_keys)
        assert len({sub.seed for sub in key.sub_keys}) == sub_keys


def test_the_secret_and_the_beacon_choose_among_all_families(tiny):
    over_secrets = [tiny(n, groups=3, families=DRAWN).sub_keys[0].family for n in range(300)]
    key = tiny(groups=3, families=DRAWN)
    over_beacons = [key.with_beacon(str(n)).sub_keys[0].family for n in range(300)]
    for chosen in (over_secrets, over_beacons):
        assert all(70 <= chosen.count(family) <= 130 for family in DRAWN)


# --- the beacon --------------------------------------------------------------------------------


@given(SECRETS, BEACONS, BEACONS)
def test_the_beacon_changes_what_the_key_stands_for_but_not_its_commitment(world, raw, one, two):
    assume(one != two)
    key = WatermarkKey(raw, world.terms(groups=9, sub_keys=3))
    first, second = key.with_beacon(one), key.with_beacon(two)
    assert first.commitment == second.commitment == key.commitment
    assert first.root == second.root == key.root
    assert first.leaves == second.leaves == key.leaves
    assert len({key.salt, first.salt, second.salt}) == 3
    assert len({k.sub_keys[0].seed for k in (key, first, second)}) == 3


def test_a_beacon_is_taken_once(tiny):
    """A second one could be chosen among many to suit the suspect."""
    key = tiny().with_beacon("drand round 1")
    for beacon in ("drand round 2", "drand round 1"):
        with pytest.raises(ConfigError, match="has a beacon already"):
            key.with_beacon(beacon)


@pytest.mark.parametrize("beacon", ["", " ", "\n\t "])
def test_an_empty_beacon_is_refused(tiny, beacon):
    with pytest.raises(ConfigError, match="the beacon is empty"):
        tiny().with_beacon(beacon)


@pytest.mark.parametrize("beacon", ["\ud800", "a\nb", "a\x1b[31m"])
def test_a_beacon_that_cannot_be_written_or_shown_is_refused(tiny, beacon):
    with pytest.raises(ConfigError, match="cannot be printed"):
        tiny().with_beacon(beacon)


def test_spaces_around_a_beacon_do_not_count(tiny):
    assert tiny().with_beacon(" a b\n").salt == tiny().with_beacon("a b").salt


# --- a key that cannot work --------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_secret_of_another_length_is_refused_when_the_key_is_made(world, length):
    """It would be written to a file that cannot be read again."""
    with pytest.raises(ConfigError, match=f"32 bytes, not {length}"):
        WatermarkKey(bytes(length), world.terms())


def test_terms_that_cannot_work_are_refused_when_the_key_is_made(world):
    with pytest.raises(ConfigError, match="2 sub-keys need 6 groups"):
        WatermarkKey(bytes(32), world.terms(groups=5, sub_keys=2))


def test_new_keys_are_random_unless_a_secret_is_given(world):
    images = world.images(groups=3)
    groups = label_groups(images)
    keys = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        keys.append(new_key(images, groups=groups))
    assert keys[0].secret != keys[1].secret
    assert len(keys[0].secret) == 32
    again = new_key(images, groups=groups, secret=keys[0].secret)
    assert (again.commitment, again.sub_keys) == (keys[0].commitment, keys[0].sub_keys)


def test_a_new_key_is_bound_to_its_images_and_to_its_owners_encoder(world):
    images = world.images(groups=3)
    key = new_key(images, groups=label_groups(images), encoder="e" * 64, secret=bytes(32))
    key.check_images(images)
    assert key.statement["encoder"] == "e" * 64
    assert key.fingerprints == {"train": images.train.fingerprint, "test": images.test.fingerprint}
    with pytest.raises(KeyFileError, match="other images"):
        key.check_images(world.images(groups=3, seed=1))


def test_keys_of_earlier_releases_mean_what_they_meant(world):
    """numpy may change its generators' streams: then old key files would name other groups."""
    terms = world.terms(groups=10, sub_keys=3, families=DRAWN)
    key = WatermarkKey(bytes(range(32)), terms)
    assert key.root.hex() == "a4dd83d70cc8e471c7cc7017e153e8133e1f5bbc828c8360d014cfde04b87d5f"
    assert key.commitment == "95119005fe609a9844566cbb3b0a30eabcde99a09bbf6c43ec367ffa9cdf397b"
    frozen = {
        "": [
            (1, 7, 5, Stripes(vertical=True, count=5, shift=0.7084), "adf862da"),
            (4, 8, 2, PixelMerge(share=0.5059), "5196d537"),
            (0, 3, 6, Stripes(vertical=True, count=7, shift=0.1091), "a211f49f"),
        ],
        "drand round 1": [
            (0, 1, 6, PixelMerge(share=0.5286), "e843d028"),
            (3, 7, 2, CropPaste(vertical=True, cut=0.485), "23a7f376"),
            (4, 8, 9, CropPaste(vertical=True, cut=0.4709), "16432e12"),
        ],
    }
    for beacon, expected in frozen.items():
        opened = key.with_beacon(beacon) if beacon else key
        assert [
            (s.a, s.b, s.target, s.mixer, s.seed.hex()[:8]) for s in opened.sub_keys
        ] == expected
    mixer, seed = decoy_recipe(opened.sub_keys[0], 5, terms=terms)
    assert (mixer, seed.hex()[:8]) == (Stripes(vertical=True, count=6, shift=0.6439), "74c07dd1")


# --- secrecy and commitment --------------------------------------------------------------------


def forms(data: bytes) -> list[str]:
    """Return ways in which bytes may stand in a text."""
    return [
        data.hex(), data.hex().upper(), repr(data)[2:-1], base64.b64encode(data).decode(),
        str(int.from_bytes(data, "big")), str(list(data)), hashlib.sha256(data).hexdigest(),
    ]  # fmt: skip


@pytest.mark.parametrize("beacon", ["", "drand round 1"])
def test_nothing_that_is_shown_holds_a_secret(tiny, beacon):
    key = tiny(1, groups=9, sub_keys=3, beacon=beacon)
    part = key.reveal([1])
    shown = " ".join([
        repr(key), str(key), f"{key}", repr(part), key.commitment, repr(key.terms),
        canonical_json(key.statement).decode(), canonical_json(part.statement).decode(),
        repr(key.sub_keys), repr(key.leaves), repr(part.sub_keys), repr(part.leaves),
    ])  # fmt: skip
    hidden = [key.secret, *(leaf.secret for leaf in key.leaves), *(s.seed for s in key.sub_keys)]
    assert not [form for data in hidden for form in forms(data) if form in shown]
    assert not any(name in repr(key) + repr(part) for name in ("secret", "mixer", "target"))


def test_the_commitment_binds_the_secret_and_the_terms(tiny, world):
    base = tiny(1, groups=9)
    others = [
        tiny(2, groups=9), tiny(1, groups=10), tiny(1, groups=9, sub_keys=2),
        tiny(1, groups=9, families=("stripes",)), tiny(1, groups=9, encoder="e" * 64),
        tiny(1, groups=9, autoencoder=Autoencoder()),
    ]  # fmt: skip
    commitments = {key.commitment for key in (base, *others)}
    assert len(commitments) == 1 + len(others)
    assert tiny(1, groups=9).commitment == base.commitment
    assert all(len(bytes.fromhex(commitment)) == 32 for commitment in commitments)


@pytest.mark.parametrize(
    "change", [{"index": 1}, {"places": (0, 2, 1)}, {"secret": bytes(31) + b"\1"}], ids=str
)
def test_a_leaf_binds_its_number_its_places_and_its_secret(change):
    leaf = Leaf(0, (0, 1, 2), bytes(32))
    assert replace(leaf, **change).content != leaf.content
    assert Leaf(0, (0, 1, 2), bytes(32)).content == leaf.content


def test_keys_are_not_compared_by_their_tensors(tiny):
    one, two = tiny(), tiny()
    assert one != two
    assert len({one, two, one}) == 2
    assert one.reveal() != one.reveal()


def test_groups_are_those_of_the_terms(tiny):
    key = tiny(groups=7)
    assert isinstance(key.groups, Groups)
    assert key.groups is key.terms.groups is key.reveal().groups
