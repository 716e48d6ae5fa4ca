"""Key derivation follows its standard, and numpy's streams stay what they were."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.watermark.derivation import SALT, derive, hkdf, stream_of


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "output"),
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
def test_hkdf_agrees_with_the_standard(secret, salt, info, length, output):
    assert hkdf(secret, salt=salt, info=info, length=length).hex() == output


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=40))
def test_the_first_block_is_two_plain_hmacs(secret, salt, info):
    middle = hmac.new(salt, secret, hashlib.sha256).digest()
    expected = hmac.new(middle, info + b"\x01", hashlib.sha256).digest()
    assert hkdf(secret, salt=salt, info=info, length=32) == expected


@given(st.binary(min_size=32, max_size=32), st.integers(0, 200), st.integers(0, 200))
def test_more_bytes_of_a_label_begin_with_the_fewer(secret, one, two):
    short, long = sorted((one, two))
    derived = derive(secret, "pairs", length=long)
    assert len(derived) == long
    assert derived[:short] == derive(secret, "pairs", length=short)


def test_the_standards_limit_is_kept():
    assert len(derive(b"s", "x", length=255 * 32)) == 255 * 32
    with pytest.raises(ValueError, match="range"):
        derive(b"s", "x", length=255 * 32 + 1)


def test_labels_and_secrets_give_unrelated_bytes():
    labels = [("pairs",), ("pairs", 0), ("pairs", 1), ("places",), ("sub-key", 0), ("sub-key", 10)]
    derived = [derive(secret, *label) for secret in (b"a" * 32, b"b" * 32) for label in labels]
    assert len(set(derived)) == len(derived)
    assert derived[1] == hkdf(b"a" * 32, salt=SALT, info=b"pairs/0", length=32)
    ones = sum(int.from_bytes(d, "big").bit_count() for d in derived)
    assert 0.45 < ones / (256 * len(derived)) < 0.55


def test_streams_are_those_of_earlier_releases():
    """numpy may change its generators' streams: then old keys would name other groups."""
    stream = stream_of(bytes(range(32)))
    drawn = (stream.permutation(10).tolist(), int(stream.integers(10**6)), stream.uniform())
    assert drawn == ([4, 6, 3, 8, 2, 0, 7, 9, 1, 5], 553801, 0.7498073297928596)
    short, long = (stream_of(bytes(range(size))) for size in (16, 32))
    assert short.integers(10**9) == long.integers(10**9)


@pytest.mark.parametrize("place", [0, 7, 15])
def test_every_byte_of_a_seed_matters_to_its_stream(place):
    seed = bytearray(32)
    seed[place] = 1
    assert stream_of(bytes(seed)).integers(2**62) != stream_of(bytes(32)).integers(2**62)
