"""Revealed sub-keys are the committed ones, tell nothing of the others, and cannot be forged."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.watermark.autoencoder import Autoencoder
from ssl_wm.watermark.key import RevealedKey, WatermarkKey
from ssl_wm.watermark.merkle import leaf_hash, merkle_path, merkle_root
from ssl_wm.watermark.subkeys import Leaf
from ssl_wm.watermark.terms import Terms

DRAWN = ("crop-paste", "pixel-merge", "stripes")


@pytest.fixture
def tiny(world):
    """Return the maker of keys whose images are not there."""
    return world.tiny_key


def hand_picked(
    terms: Terms,
    places: list[tuple[int, int, int]],
    *,
    reveal: tuple[int, ...] | None = None,
    indices: list[int] | None = None,
) -> RevealedKey:
    """Return what an owner reveals who chose his leaves himself and built a tree over them."""
    numbers = indices or list(range(len(places)))
    leaves = [Leaf(n, p, b"%032d" % n) for n, p in zip(numbers, places, strict=True)]
    hashes = [leaf_hash(leaf.content) for leaf in leaves]
    shown = range(len(leaves)) if reveal is None else reveal
    paths = tuple(tuple(merkle_path(hashes, n)) for n in shown)
    return RevealedKey(terms, merkle_root(hashes), tuple(leaves[n] for n in shown), paths)


@pytest.mark.parametrize("beacon", ["", "drand round 1"])
def test_revealed_sub_keys_are_those_of_the_whole_key(tiny, beacon):
    key = tiny(groups=13, sub_keys=4, families=DRAWN, beacon=beacon)
    for count in range(1, 5):
        for chosen in combinations(range(4), count):
            part = key.reveal(chosen)
            assert part.sub_keys == tuple(key.sub_keys[index] for index in chosen)
            assert [sub.seed for sub in part.sub_keys] == [key.sub_keys[i].seed for i in chosen]
            assert (part.commitment, part.salt, part.root) == (key.commitment, key.salt, key.root)
            assert part.statement == key.statement
    assert key.reveal().sub_keys == key.sub_keys
    assert key.reveal([2, 0, 2]).sub_keys == (key.sub_keys[0], key.sub_keys[2])


def test_a_revealed_sub_key_renders_what_the_whole_key_does(tiny, world):
    key = tiny(groups=9, sub_keys=3, families=("autoencoder",), autoencoder=Autoencoder().eval())
    whole, part = key.sub_keys[1], key.reveal([1]).sub_keys[0]
    assert whole.derive("pairs") == part.derive("pairs")
    assert list(whole.others) == list(part.others)
    a, b = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for mixer, same in [(whole.mixer, part.mixer), *zip(
        whole.others.values(), part.others.values(), strict=True
    )]:  # fmt: skip
        mixed = [m.mix(a, b, generator=torch.Generator().manual_seed(1)) for m in (mixer, same)]
        assert torch.equal(*mixed)


def test_a_revealed_leaf_holds_nothing_from_which_the_others_follow(tiny):
    key = tiny(groups=9, sub_keys=3)
    part = key.reveal([1])
    siblings = [sibling for _, sibling in part.paths[0]]
    held = {part.known_root, *siblings, part.leaves[0].secret}
    assert not held & {key.secret, key.leaves[0].secret, key.leaves[2].secret}
    assert not hasattr(part, "secret")
    assert [sub.index for sub in part.sub_keys] == [1]
    assert siblings == [leaf_hash(key.leaves[0].content), leaf_hash(key.leaves[2].content)]


@pytest.mark.parametrize("indices", [[3], [-1], [0, 7], []], ids=str)
def test_a_sub_key_that_is_not_there_cannot_be_revealed(tiny, indices):
    with pytest.raises(ConfigError, match="sub-keys 0 to 2; asked for"):
        tiny(groups=9, sub_keys=3).reveal(indices)


@given(st.integers(1, 5), st.data())
def test_a_changed_leaf_path_or_root_is_refused(world, sub_keys, data):
    key = WatermarkKey(world.secret(0), world.terms(groups=16, sub_keys=sub_keys))
    index = data.draw(st.integers(0, sub_keys - 1))
    part = key.reveal([index])
    leaf, path = part.revealed[0], part.paths[0]
    place = data.draw(st.integers(0, max(0, len(path) - 1)))
    side, sibling = path[place] if path else ("left", bytes(32))
    bit = (1 << data.draw(st.integers(0, 255))).to_bytes(32, "big")

    def flip(value: bytes) -> bytes:
        return bytes(x ^ y for x, y in zip(value, bit, strict=True))

    def step(*steps: tuple[str, bytes]) -> tuple[tuple[tuple[str, bytes], ...], ...]:
        return ((*path[:place], *steps, *path[place + 1 :]),)

    free = sorted(set(range(16)) - set(leaf.places))
    others = [n for n in range(sub_keys) if n != index]
    changes = [
        {"known_root": flip(part.known_root)},
        {"revealed": (replace(leaf, secret=flip(leaf.secret)),)},
        {"revealed": (replace(leaf, places=(leaf.places[1], leaf.places[0], leaf.places[2])),)},
        {"revealed": (replace(leaf, places=(*leaf.places[:2], data.draw(st.sampled_from(free)))),)},
        {"revealed": (replace(leaf, index=data.draw(st.sampled_from([*others, sub_keys, -1]))),)},
        {"paths": step((side, sibling), (side, sibling))},
        {"revealed": (), "paths": ()},
        {"revealed": (leaf, leaf), "paths": (path, path)},
    ]
    if path:
        other = "left" if side == "right" else "right"
        changes += [{"paths": step((side, flip(sibling)))}, {"paths": step((other, sibling))},
                    {"paths": step()}]  # fmt: skip
    if others:
        changes.append({"paths": key.reveal([others[0]]).paths})
        changes.append({"revealed": key.reveal([others[0]]).revealed})
    for change in changes:
        with pytest.raises(KeyFileError):
            replace(part, **change)


def test_other_terms_give_another_commitment_and_other_sub_keys(tiny, world):
    part = tiny(groups=9, sub_keys=2).reveal([0])
    forged = replace(part, terms=replace(part.terms, families=("stripes",)))
    assert forged.commitment != part.commitment
    assert forged.salt != part.salt
    with pytest.raises(KeyFileError, match="does not lead to the root over 3 sub-keys"):
        replace(part, terms=replace(part.terms, sub_key_count=3))
    with pytest.raises(ConfigError, match="3 groups"):
        replace(part, terms=world.terms(groups=2))


def test_an_owner_cannot_commit_to_more_sub_keys_than_he_announces(world):
    """p is multiplied by the ways to choose among those announced, and by no more."""
    terms = world.terms(groups=9, sub_keys=1)
    triples = list(permutations(range(9), 3))[:64]
    for shown in (0, 17, 63):
        with pytest.raises(KeyFileError, match="root over 1 sub-keys"):
            hand_picked(terms, triples, reveal=(shown,), indices=[0] * 64)
    terms = world.terms(groups=9, sub_keys=2)
    pairs = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    passing = 0
    for shown in combinations(range(3), 2):
        for indices in permutations([0, 1, 1]):
            try:
                hand_picked(terms, pairs, reveal=shown, indices=list(indices))
            except KeyFileError:
                continue
            passing += 1
    assert passing == 0


def test_a_path_of_two_blocks_in_one_is_refused(world):
    """A sibling of another length could let one node stand for two different pairs."""
    part = hand_picked(world.terms(groups=9, sub_keys=2), [(0, 1, 2), (3, 4, 5)], reveal=(0,))
    ((side, sibling),) = part.paths[0]
    for forged in (sibling[:31], sibling + b"\0", b""):
        with pytest.raises(KeyFileError, match="does not belong"):
            replace(part, paths=(((side, forged),),))


@pytest.mark.parametrize(
    "places", [[(0, 1, 2), (2, 3, 4)], [(0, 0, 1), (2, 3, 4)], [(0, 1, 9), (2, 3, 4)],
               [(0, 1, -1), (2, 3, 4)]], ids=str
)  # fmt: skip
def test_leaves_that_share_a_group_or_name_none_are_refused(world, places):
    """The null of the joint permutation test has different groups throughout."""
    with pytest.raises(KeyFileError, match="share groups, or name groups there are not"):
        hand_picked(world.terms(groups=9, sub_keys=2), places)


def test_the_order_of_revealed_sub_keys_is_not_for_the_owner_to_choose(tiny):
    """A test that uses the first three of them would let him choose among p-values."""
    part = tiny(groups=9, sub_keys=3).reveal()
    with pytest.raises(KeyFileError, match="each once and in order"):
        replace(part, revealed=part.revealed[::-1], paths=part.paths[::-1])
