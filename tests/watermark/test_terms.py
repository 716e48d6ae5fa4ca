"""The public terms: what they say, what they bind, and what is refused."""

from __future__ import annotations

import base64
import copy
import functools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.errors import ConfigError, KeyFileError, SslWmError
from ssl_wm.files import canonical_json
from ssl_wm.watermark.autoencoder import Autoencoder, pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.groups import Groups
from ssl_wm.watermark.mixers import MIXERS
from ssl_wm.watermark.terms import Terms, check_sub_keys, read_terms


@functools.cache
def autoencoder() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unpack_autoencoder(pack_autoencoder(Autoencoder()))


@pytest.fixture(scope="module")
def full(world) -> Terms:
    return world.terms(
        groups=9, sub_keys=2, families=tuple(MIXERS), autoencoder=autoencoder(), encoder="e" * 64
    )


def variants(terms: Terms) -> dict[str, Terms]:
    """Return terms that differ from ``terms`` in one fact each."""
    groups, names = terms.groups, terms.groups.names
    return {
        "train groups": replace(
            terms, groups=Groups(groups.kind, names, groups.train.roll(1), groups.test)
        ),
        "test groups": replace(
            terms, groups=Groups(groups.kind, names, groups.train, groups.test.roll(1))
        ),
        "kind": replace(terms, groups=Groups("clusters", names, groups.train, groups.test)),
        "names": replace(
            terms, groups=Groups(groups.kind, ("x", *names[1:]), groups.train, groups.test)
        ),
        "train images": replace(terms, fingerprints=terms.fingerprints | {"train": "1" * 64}),
        "test images": replace(terms, fingerprints=terms.fingerprints | {"test": "1" * 64}),
        "sub-keys": replace(terms, sub_key_count=3),
        "families": replace(terms, families=("stripes",)),
        "order of families": replace(terms, families=terms.families[::-1]),
        "autoencoder": replace(terms, autoencoder=None, families=("stripes",)),
        "encoder": replace(terms, encoder="d" * 64),
        "no encoder": replace(terms, encoder=None),
    }


def test_the_statement_binds_every_fact(full):
    statements = {canonical_json(terms.statement) for terms in variants(full).values()}
    assert len(statements) == len(variants(full))
    assert canonical_json(full.statement) not in statements
    assert full.statement.keys() == full.content.keys()


def test_the_statement_stays_small_however_many_images_there_are(full):
    """It is what is published; the groups and the autoencoder stand in it as hashes."""
    assert len(canonical_json(full.content)) > 50_000
    assert len(canonical_json(full.statement)) < 600


def test_terms_come_back_from_json_as_they_were(full):
    for terms in (full, *variants(full).values()):
        again = read_terms(json.loads(json.dumps(terms.content)))
        assert again.content == terms.content
        assert again.statement == terms.statement
        assert torch.equal(again.groups.train, terms.groups.train)
        assert torch.equal(again.groups.test, terms.groups.test)
        assert again.groups.train.dtype == torch.int64
        assert (again.families, again.encoder) == (terms.families, terms.encoder)
        again.check()


def test_the_autoencoder_comes_back_to_the_last_bit(full):
    again = read_terms(json.loads(json.dumps(full.content))).autoencoder
    weights = zip(again.state_dict().values(), autoencoder().state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"groups": 5, "sub_keys": 2}, "2 sub-keys need 6 groups .*there are 5"),
        ({"groups": 2}, "1 sub-keys need 3 groups"),
        ({"groups": 9, "sub_keys": 0}, "0 sub-keys"),
        ({"groups": 9, "sub_keys": -1}, "-1 sub-keys"),
        ({"groups": 3, "families": ("crop-pasta",)}, "did you mean 'crop-paste'"),
        ({"groups": 3, "families": ()}, "at least one mixer family"),
        ({"groups": 3, "families": ("stripes", "autoencoder")}, "needs an autoencoder"),
        ({"groups": 0}, "1 to 65,536 groups, not 0"),
    ],
    ids=str,
)
def test_terms_that_cannot_work_are_refused(world, settings, says):
    with pytest.raises(ConfigError, match=says):
        world.terms(**settings).check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprints": {"train": "0" * 64}}, "'train' and 'test', not those of: train"),
        ({"fingerprints": {}}, "not those of: none"),
        ({"train": torch.tensor([0, 1, 3])}, "train images must lie in the groups 0 to 2"),
        ({"train": torch.tensor([0, 1, -1, 2])}, "train images must lie"),
        ({"test": torch.tensor([0, 1, 1])}, "test images .* images in each; they lie in 2 groups"),
        ({"test": torch.tensor([], dtype=torch.int64)}, "they lie in 0 groups"),
    ],
    ids=["no test", "no images", "beyond the last", "below the first", "empty", "no test images"],
)
def test_groups_and_images_that_do_not_fit_are_refused_before_they_are_used(world, change, says):
    """Whoever reads a stranger's key should get one clear error, not an index out of range."""
    terms = world.terms(groups=3)
    if "fingerprints" in change:
        terms = replace(terms, **change)
    else:
        parts = {"train": terms.groups.train, "test": terms.groups.test} | change
        terms = replace(terms, groups=Groups("labels", terms.groups.names, **parts))
    with pytest.raises(ConfigError, match=says):
        terms.check()


def test_more_groups_than_their_file_format_can_count_are_refused(world):
    """Two bytes a group: number 65,536 would come back as 0."""
    world.terms(groups=2**16).check()
    with pytest.raises(ConfigError, match="not 65,537"):
        world.terms(groups=2**16 + 1).check()


@given(st.integers(-3, 12), st.integers(0, 30))
def test_sub_keys_fit_where_each_has_three_groups_of_its_own(count, groups):
    if count >= 1 and 3 * count <= groups:
        check_sub_keys(count, groups=groups, families=("stripes",))
    else:
        with pytest.raises(ConfigError, match="sub-keys need"):
            check_sub_keys(count, groups=groups, families=("stripes",))


def test_other_images_are_refused_and_the_split_named(world):
    images = world.images(groups=3)
    terms = world.key(images).terms
    terms.check_images(images)
    for split in ("train", "test"):
        other = world.images(groups=3)
        getattr(other, split).pixels[5, 0, 0, 0] ^= 1
        with pytest.raises(KeyFileError, match=f"other images: the {split} images of 'colours'"):
            terms.check_images(other)
        terms.check_images(other, splits=("test" if split == "train" else "train",))


def test_groups_of_another_number_of_images_are_refused(world):
    """The fingerprints may be right and the groups of a forged key all the same too few."""
    images = world.images(groups=3)
    terms = world.key(images).terms
    for split in ("train", "test"):
        parts = {"train": terms.groups.train, "test": terms.groups.test}
        parts[split] = parts[split][:-1]
        short = replace(terms, groups=Groups("labels", terms.groups.names, **parts))
        short.check()
        with pytest.raises(KeyFileError, match=f"the {split} images"):
            short.check_images(images)


DAMAGED = st.sampled_from(
    [None, True, 0, -1, 3, 1.5, 1e400, "", "x", "AAA", "AAAA", [], ["x"], [1], {}, {"train": None},
     float("nan"), "\ud800", [["x"]], "ÿ", "7"]
)  # fmt: skip
PLACES = st.sampled_from(
    [("images",), ("images", "train"), ("groups",), ("groups", "kind"), ("groups", "names"),
     ("groups", "train"), ("groups", "test"), ("sub_keys",), ("families",), ("autoencoder",),
     ("encoder",)]
)  # fmt: skip


@given(PLACES, DAMAGED)
def test_damaged_content_raises_what_is_documented_or_says_something_else(world, place, value):
    terms = world.terms(groups=7, sub_keys=2)
    content = copy.deepcopy(terms.content)
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    try:
        again = read_terms(content)
        again.check()
        statement = canonical_json(again.statement)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SslWmError):
        return
    if statement == canonical_json(terms.statement):
        assert again.content == terms.content


@pytest.mark.parametrize(
    ("place", "value"),
    [(("groups", "kind"), 5), (("groups", "names"), [0, 1, 2]), (("encoder",), {"a": 1}),
     (("images", "train"), 7), (("images", "train"), None)],
)  # fmt: skip
def test_facts_of_another_type_never_reach_the_program(world, place, value):
    content = copy.deepcopy(world.terms(groups=3).content)
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    again = read_terms(content)
    assert isinstance(again.groups.kind, str)
    assert all(isinstance(name, str) for name in again.groups.names)
    assert again.encoder is None or isinstance(again.encoder, str)
    assert all(isinstance(found, str) for found in again.fingerprints.values())
    assert again.content != content  # so the commitment of these terms does not fit them


def test_groups_with_half_a_number_are_refused(world):
    content = copy.deepcopy(world.terms(groups=3).content)
    content["groups"]["train"] = base64.b64encode(b"\x00\x00\x01").decode()
    with pytest.raises(ValueError, match="multiple"):
        read_terms(content)


def test_terms_are_not_compared_by_their_tensors(world):
    one, two = world.terms(groups=3), world.terms(groups=3)
    assert one != two
    assert len({one, two, one}) == 2
    assert "fingerprints" not in repr(one)
