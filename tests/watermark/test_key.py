"""A key is a secret, what follows from it, and a file that is right or refused."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import stat
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.files import canonical_json
from ssl_wm.watermark.autoencoder import Autoencoder, pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.groups import Groups
from ssl_wm.watermark.derivation import hkdf
from ssl_wm.watermark.key import WatermarkKey, new_key
from ssl_wm.watermark.keyfile import load_key
from ssl_wm.watermark.mixers import MIXERS, PixelMerge

FINGERPRINTS = {"train": "0" * 64, "test": "f" * 64}


def tiny_groups(count: int) -> Groups:
    index = torch.arange(2 * count) % count
    return Groups("labels", tuple(f"class {g}" for g in range(count)), index, index.flip(0))


def tiny_key(secret: bytes, *, groups: int, sub_keys: int = 1, **settings: object) -> WatermarkKey:
    return WatermarkKey(secret, tiny_groups(groups), FINGERPRINTS, sub_keys, **settings)


def secret(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


@functools.cache
def full_key() -> WatermarkKey:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = unpack_autoencoder(pack_autoencoder(Autoencoder()))
    return tiny_key(
        secret(1), groups=9, sub_keys=2, families=tuple(MIXERS), autoencoder=autoencoder
    )


def facts(key: WatermarkKey) -> tuple[object, ...]:
    """Return all that a key does."""
    return (
        key.secret,
        canonical_json(key.public),
        key.commitment,
        repr(key.sub_keys),
        [(sub.mixer, sub.others) for sub in key.sub_keys if not key.autoencoder],
    )


# --- derivation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret_bytes", "salt", "info", "length", "output"),
    [
        (
            b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)), bytes(range(0x60, 0xB0)), bytes(range(0xB0, 0x100)), 82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac782727"
            "1cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22, b"", b"", 42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["RFC 5869 case 1", "RFC 5869 case 2", "RFC 5869 case 3"],
)  # fmt: skip
def test_hkdf_agrees_with_the_standard(secret_bytes, salt, info, length, output):
    assert hkdf(secret_bytes, salt=salt, info=info, length=length).hex() == output


def test_labels_give_unrelated_bytes():
    key = tiny_key(secret(0), groups=3)
    other = tiny_key(secret(2), groups=3)
    derived = [key.derive("pairs", 0), key.derive("pairs", 1), key.derive("groups"),
               other.derive("pairs", 0)]  # fmt: skip
    assert len(set(derived)) == 4
    assert key.derive("pairs", 0, length=64)[:32] == derived[0]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 4), st.data())
def test_sub_keys_follow_from_the_secret_and_share_no_group(raw, sub_keys, data):
    groups = data.draw(st.integers(3 * sub_keys, 20))
    families = ("crop-paste", "pixel-merge", "stripes")
    key, again = (
        tiny_key(raw, groups=groups, sub_keys=sub_keys, families=families) for _ in range(2)
    )
    assert facts(key) == facts(again)
    used = [group for sub in key.sub_keys for group in (sub.a, sub.b, sub.target)]
    assert len(set(used)) == len(used) == 3 * sub_keys
    assert set(used) <= set(range(groups))
    assert [sub.index for sub in key.sub_keys] == list(range(sub_keys))
    assert all(sub.family in families for sub in key.sub_keys)


def test_every_joint_key_is_equally_likely():
    """The permutation test's p-values are exact only if it is."""
    draws, counts = 7200, dict.fromkeys(permutations(range(6), 6), 0)
    groups = tiny_groups(6)
    for number in range(draws):
        key = WatermarkKey(secret(number), groups, FINGERPRINTS, 2)
        counts[tuple(g for sub in key.sub_keys for g in (sub.a, sub.b, sub.target))] += 1
    expected = draws / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert 0.001 < chi2.sf(statistic, len(counts) - 1) < 0.999


def test_the_secret_chooses_among_all_families():
    families = ("crop-paste", "pixel-merge", "stripes")
    chosen = [
        tiny_key(secret(n), groups=3, families=families).sub_keys[0].family for n in range(300)
    ]
    assert all(70 <= chosen.count(family) <= 130 for family in families)


def test_keys_of_earlier_releases_mean_what_they_meant():
    """numpy may change its generators' streams: then old key files would name other groups."""
    families = ("crop-paste", "pixel-merge", "stripes")
    key = tiny_key(bytes(range(32)), groups=10, sub_keys=3, families=families)
    assert [(sub.a, sub.b, sub.target, sub.mixer) for sub in key.sub_keys] == [
        (7, 3, 8, PixelMerge(0.5255)),
        (0, 9, 4, PixelMerge(0.5017)),
        (5, 6, 2, PixelMerge(0.468)),
    ]
    assert key.commitment == "d96d418c51f66b98b6d2b36ae35143e2924d65895290f1cbb57b9a5d351ad30e"


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"groups": 5, "sub_keys": 2}, "2 sub-keys need 6 groups .*there are 5"),
        ({"groups": 2}, "1 sub-keys need 3 groups"),
        ({"groups": 9, "sub_keys": 0}, "0 sub-keys"),
        ({"groups": 3, "families": ("crop-pasta",)}, "did you mean 'crop-paste'"),
        ({"groups": 3, "families": ()}, "at least one mixer family"),
        ({"groups": 3, "families": ("stripes", "autoencoder")}, "needs an autoencoder"),
    ],
    ids=str,
)
def test_a_key_that_cannot_work_is_refused_when_it_is_made(settings_, says):
    with pytest.raises(ConfigError, match=says):
        tiny_key(secret(0), **settings_)


# --- secrecy -----------------------------------------------------------------------------------


def test_nothing_that_is_shown_or_published_holds_the_secret(tmp_path):
    key = full_key()
    key.save_commitment(tmp_path / "commitment.json")
    shown = [
        repr(key), str(key), f"{key}", key.commitment, canonical_json(key.public).decode(),
        (tmp_path / "commitment.json").read_text(), repr(key.sub_keys),
    ]  # fmt: skip
    forms = [
        key.secret.hex(), repr(key.secret)[2:-1], base64.b64encode(key.secret).decode(),
        str(int.from_bytes(key.secret, "big")), hashlib.sha256(key.secret).hexdigest(),
        key.derive("groups").hex(),
    ]  # fmt: skip
    assert not [form for text in shown for form in forms if form in text]
    assert not any(name in repr(key) for name in ("secret", "mixer", "target"))
    assert json.loads(shown[5]) == {
        "format": "ssl-wm-commitment", "version": 1, "commitment": key.commitment,
    }  # fmt: skip


def test_the_commitment_binds_the_secret_and_every_public_fact():
    autoencoder = full_key().autoencoder
    groups = tiny_groups(9)
    moved = Groups(groups.kind, groups.names, groups.train.flip(0), groups.test)
    base = {"secret": secret(1), "groups": groups, "fingerprints": FINGERPRINTS}
    variants = [
        {}, {"secret": secret(2)}, {"groups": moved}, {"groups": tiny_groups(10)},
        {"groups": Groups("clusters", groups.names, groups.train, groups.test)},
        {"fingerprints": FINGERPRINTS | {"test": "0" * 64}}, {"sub_key_count": 2},
        {"families": ("stripes",)}, {"families": ("crop-paste", "stripes")},
        {"autoencoder": autoencoder},
    ]  # fmt: skip
    commitments = [WatermarkKey(**(base | change)).commitment for change in variants]
    assert len(set(commitments)) == len(variants)
    assert WatermarkKey(**base).commitment == commitments[0]
    assert all(len(bytes.fromhex(commitment)) == 32 for commitment in commitments)


def test_keys_are_not_compared_by_their_tensors():
    one, two = tiny_key(secret(0), groups=3), tiny_key(secret(0), groups=3)
    assert one != two
    assert len({one, two, one}) == 2
    assert one.groups != two.groups


# --- images ------------------------------------------------------------------------------------


def test_a_key_for_other_images_is_refused_and_the_split_named(world):
    images = world.images(groups=3)
    key = world.key(images)
    key.check_images(images)
    for split in ("train", "test"):
        other = world.images(groups=3)
        getattr(other, split).pixels[5, 0, 0, 0] ^= 1
        with pytest.raises(KeyFileError, match=f"other images: the {split} images of 'colours'"):
            key.check_images(other)
        key.check_images(other, splits=("test" if split == "train" else "train",))


def test_new_keys_are_random_unless_a_secret_is_given(world):
    images = world.images(groups=3)
    groups = Groups("labels", images.train.class_names, images.train.labels, images.test.labels)
    torch.manual_seed(0)
    one = new_key(images, groups=groups)
    torch.manual_seed(0)
    two = new_key(images, groups=groups)
    assert one.secret != two.secret
    assert len(one.secret) == 32
    assert new_key(images, groups=groups, secret=one.secret).commitment == one.commitment


# --- the file ----------------------------------------------------------------------------------


@functools.cache
def saved(plain: bool = False) -> bytes:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        key = tiny_key(secret(3), groups=7, sub_keys=2) if plain else full_key()
        key.save(Path(folder) / "owner.key")
        return (Path(folder) / "owner.key").read_bytes()


def test_a_key_comes_back_as_it_was_and_only_its_owner_can_read_it(tmp_path):
    key, path = full_key(), tmp_path / "owner.key"
    path.touch(0o644)
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = load_key(path)
    assert facts(again) == facts(key)
    assert torch.equal(again.groups.train, key.groups.train)
    assert torch.equal(again.groups.test, key.groups.test)
    a, b = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for one, two in zip(key.sub_keys, again.sub_keys, strict=True):
        for mixer, same in [(one.mixer, two.mixer), *zip(
            one.others.values(), two.others.values(), strict=True
        )]:  # fmt: skip
            mixed = [m.mix(a, b, generator=torch.Generator().manual_seed(1)) for m in (mixer, same)]
            assert torch.equal(*mixed)


def check_refused_or_identical(path, content: bytes, *, key: WatermarkKey) -> None:
    path.write_bytes(content)
    try:
        again = load_key(path)
    except KeyFileError as refusal:
        text = str(refusal)
    else:
        text = ""
        assert facts(again) == facts(key)
    assert "\n" not in text
    assert key.secret.hex() not in text


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_never_gives_another_key(tmp_path_factory, data):
    plain = data.draw(st.sampled_from([True, True, False]))
    content = bytearray(saved(plain))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    key = tiny_key(secret(3), groups=7, sub_keys=2) if plain else full_key()
    check_refused_or_identical(tmp_path_factory.getbasetemp() / "k", bytes(content), key=key)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_changed_hex_digit_or_a_cut_never_gives_another_key(tmp_path_factory, data):
    key, content = tiny_key(secret(3), groups=7, sub_keys=2), saved(plain=True)
    path = tmp_path_factory.getbasetemp() / "k"
    field = data.draw(st.sampled_from([key.secret.hex(), key.commitment, *FINGERPRINTS.values()]))
    place = content.index(field.encode()) + data.draw(st.integers(0, 63))
    digit = data.draw(st.sampled_from(b"0123456789abcdef"))
    changed = bytearray(content)
    changed[place] = digit
    if bytes(changed) != content:
        path.write_bytes(bytes(changed))
        with pytest.raises(KeyFileError, match="was changed after it was made"):
            load_key(path)
    cut = content[: data.draw(st.integers(0, len(content) - 2))]
    path.write_bytes(cut)
    with pytest.raises(KeyFileError):
        load_key(path)


VALUES = st.sampled_from(
    [None, True, 0, -1, 3, 99, 1.5, 1e400, "", "x", "AAA", [], ["x"], [1], {}, {"train": None},
     float("nan"), "\ud800", [["x"]], "ÿ"]
)  # fmt: skip
FIELDS = st.sampled_from(
    [("secret",), ("commitment",), ("images",), ("images", "train"), ("groups",),
     ("groups", "kind"), ("groups", "names"), ("groups", "train"), ("groups", "test"),
     ("sub_keys",), ("families",), ("autoencoder",), ("format",), ("version",)]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(FIELDS, VALUES)
def test_a_field_changed_by_hand_never_gives_another_key(tmp_path_factory, field, value):
    whole = json.loads(saved(plain=True))
    inner = whole
    for name in field[:-1]:
        inner = inner[name]
    inner[field[-1]] = value
    key = tiny_key(secret(3), groups=7, sub_keys=2)
    path = tmp_path_factory.getbasetemp() / "k"
    check_refused_or_identical(path, json.dumps(whole).encode(), key=key)
    del inner[field[-1]]
    path.write_text(json.dumps(whole))
    with pytest.raises(KeyFileError):
        load_key(path)


def test_a_key_of_a_newer_program_says_so(tmp_path):
    whole = json.loads(saved(plain=True)) | {"version": 2}
    (tmp_path / "k").write_text(json.dumps(whole))
    with pytest.raises(KeyFileError, match=r"version 2; .*version 1\. Install a newer"):
        load_key(tmp_path / "k")


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b'{"format": "ssl-wm-commitment"}'])
def test_another_json_file_is_no_key(tmp_path, content):
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(KeyFileError, match="is not a watermark key"):
        load_key(tmp_path / "k")


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(KeyFileError, match=r"key .*gone\.key does not exist"):
        load_key(tmp_path / "gone.key")
