"""A key file is right or refused, is for its owner alone, and what is published tells nothing."""

from __future__ import annotations

import base64
import functools
import json
import stat
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from key_files import check_refused_or_identical, facts

from ssl_wm.errors import KeyFileError
from ssl_wm.files import canonical_json, sha256_bytes
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.keyfile import load_key, save_commitment, save_key
from ssl_wm.watermark.open_key import COMMITMENT_TAG

BEACON = "drand round 1"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[WatermarkKey], bytes]:
    """Return a function from a key to the bytes of its file."""

    @functools.cache
    def write(key: WatermarkKey) -> bytes:
        path = tmp_path_factory.mktemp("saved") / "owner.key"
        save_key(key, path)
        return path.read_bytes()

    return write


# --- the owner's file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "full"])
def test_a_key_comes_back_as_it_was_and_only_its_owner_can_read_it(tmp_path, request, name):
    key, path = request.getfixturevalue(name), tmp_path / "owner.key"
    path.touch(0o644)
    save_key(key, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["owner.key"]
    again = load_key(path)
    assert again.secret == key.secret
    assert facts(again) == facts(key)
    assert torch.equal(again.groups.train, key.groups.train)
    assert torch.equal(again.groups.test, key.groups.test)


def test_mixers_of_a_key_from_its_file_give_the_same_pixels(tmp_path, full):
    save_key(full, tmp_path / "k")
    a, b = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for one, two in zip(full.sub_keys, load_key(tmp_path / "k").sub_keys, strict=True):
        for mixer, same in [(one.mixer, two.mixer), *zip(
            one.others.values(), two.others.values(), strict=True
        )]:  # fmt: skip
            mixed = [m.mix(a, b, generator=torch.Generator().manual_seed(1)) for m in (mixer, same)]
            assert torch.equal(*mixed)


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_bit_never_gives_another_key(tmp_path_factory, saved, plain, full, data):
    key = data.draw(st.sampled_from([plain, plain, plain, full]))
    content = bytearray(saved(key))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "k"
    path.write_bytes(content)
    check_refused_or_identical(lambda: load_key(path), key)


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_a_flipped_bit_of_the_beacon_is_noticed(tmp_path, saved, plain, bit):
    """The commitment is older than the beacon and cannot bind it; another beacon, other groups."""
    content = saved(plain)
    for place in range(content.index(BEACON.encode()), content.index(BEACON.encode()) + 13):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        (tmp_path / "k").write_bytes(changed)
        with pytest.raises(KeyFileError):
            load_key(tmp_path / "k")


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_hex_digit_or_a_cut_is_refused(tmp_path_factory, saved, plain, data):
    content, path = saved(plain), tmp_path_factory.getbasetemp() / "k"
    fields = [plain.secret.hex(), plain.commitment, plain.salt.hex(),
              *plain.fingerprints.values()]  # fmt: skip
    place = content.index(data.draw(st.sampled_from(fields)).encode()) + data.draw(
        st.integers(0, 63)
    )
    changed = bytearray(content)
    changed[place] = data.draw(st.sampled_from(b"0123456789abcdef"))
    if bytes(changed) != content:
        path.write_bytes(bytes(changed))
        with pytest.raises(KeyFileError, match="was changed after it was made"):
            load_key(path)
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    with pytest.raises(KeyFileError):
        load_key(path)


VALUES = st.sampled_from(
    [None, True, 0, -1, 2, 3, 99, 1.5, 1e400, "", "x", "a\nb", "AAA", [], ["x"], [1], {},
     {"train": None}, float("nan"), "\ud800", [["x"]], "ÿ"]
)  # fmt: skip
FIELDS = st.sampled_from(
    [("secret",), ("commitment",), ("beacon",), ("salt",), ("format",), ("version",), ("terms",),
     *(("terms", name) for name in ("images", "groups", "sub_keys", "families", "autoencoder",
                                    "encoder")),
     ("terms", "images", "train"),
     *(("terms", "groups", name) for name in ("kind", "names", "train", "test"))]
)  # fmt: skip


@settings(max_examples=200)
@given(FIELDS, VALUES)
def test_a_field_changed_by_hand_never_gives_another_key(
    tmp_path_factory, saved, plain, field, value
):
    path, whole = tmp_path_factory.getbasetemp() / "k", json.loads(saved(plain))
    inner = whole
    for name in field[:-1]:
        inner = inner[name]
    inner[field[-1]] = value
    path.write_text(json.dumps(whole))
    check_refused_or_identical(lambda: load_key(path), plain)
    del inner[field[-1]]
    path.write_text(json.dumps(whole))
    with pytest.raises(KeyFileError):
        load_key(path)


def test_a_beacon_given_or_taken_by_hand_is_refused(tmp_path, saved, plain, full):
    for key, beacon in ((plain, ""), (plain, BEACON + "2"), (full, BEACON)):
        whole = json.loads(saved(key)) | {"beacon": beacon}
        (tmp_path / "k").write_text(json.dumps(whole))
        with pytest.raises(KeyFileError, match="its beacon its salt"):
            load_key(tmp_path / "k")


@pytest.mark.parametrize("version", [1, 3, "2", None])
def test_a_key_of_another_program_says_so(tmp_path, saved, plain, version):
    whole = json.loads(saved(plain)) | {"version": version}
    (tmp_path / "k").write_text(json.dumps(whole))
    with pytest.raises(KeyFileError, match=f"version {version!r}; this program reads version 2"):
        load_key(tmp_path / "k")


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b'{"format": "ssl-wm-commitment"}'])
def test_another_json_file_is_no_key(tmp_path, content):
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(KeyFileError, match="is not a watermark key"):
        load_key(tmp_path / "k")


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(KeyFileError, match=r"key .*gone\.key does not exist"):
        load_key(tmp_path / "gone.key")


# --- the commitment ----------------------------------------------------------------------------


def hidden(key: WatermarkKey) -> list[str]:
    """Return what must not stand in anything published, in several spellings."""
    bytes_ = [key.secret, *(leaf.secret for leaf in key.leaves), *(s.seed for s in key.sub_keys)]
    return [form for each in bytes_ for form in (each.hex(), base64.b64encode(each).decode(),
            str(int.from_bytes(each, "big")), sha256_bytes(each))]  # fmt: skip


def test_the_published_commitment_holds_no_secret_and_can_be_checked_by_anyone(tmp_path, full):
    save_commitment(full, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    assert not [form for form in hidden(full) if form in text]
    assert not any(name in text for name in ("secret", "places", "leaves", "target", "mixer"))
    whole = json.loads(text)
    assert whole.keys() == {"format", "version", "commitment", "statement"}
    assert (whole["format"], whole["version"]) == ("ssl-wm-commitment", 2)
    assert whole["commitment"] == full.commitment
    assert sha256_bytes(COMMITMENT_TAG + canonical_json(whole["statement"])) == full.commitment


def test_the_published_file_is_the_same_before_and_after_the_beacon_and_for_a_part(tmp_path, full):
    opened = full.with_beacon(BEACON)
    files = []
    for number, key in enumerate((full, opened, opened.reveal([1]))):
        save_commitment(key, tmp_path / str(number))
        files.append((tmp_path / str(number)).read_bytes())
    assert files[0] == files[1] == files[2]
