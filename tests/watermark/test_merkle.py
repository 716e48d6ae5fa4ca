"""The Merkle tree is that of RFC 6962, and a proof is of one place in a tree of one size."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.watermark.merkle import (
    leaf_hash,
    merkle_path,
    merkle_root,
    node_hash,
    path_sides,
    proves,
    root_from_path,
)

SIZES = range(1, 18)


def leaves(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


def split(count: int) -> int:
    """Return the largest power of two below ``count``."""
    return 2 ** ((count - 1).bit_length() - 1)


def reference_root(data: list[bytes]) -> bytes:
    """Return MTH(D[n]) of RFC 6962, section 2.1, by its recursive definition."""
    if len(data) == 1:
        return sha256(b"\x00" + data[0]).digest()
    k = split(len(data))
    return sha256(b"\x01" + reference_root(data[:k]) + reference_root(data[k:])).digest()


def reference_path(m: int, data: list[bytes]) -> list[tuple[str, bytes]]:
    """Return PATH(m, D[n]) of RFC 6962, section 2.1.1, with the side of each sibling."""
    if len(data) == 1:
        return []
    k = split(len(data))
    if m < k:
        return [*reference_path(m, data[:k]), ("right", reference_root(data[k:]))]
    return [*reference_path(m - k, data[k:]), ("left", reference_root(data[:k]))]


@pytest.mark.parametrize("count", SIZES)
def test_root_and_paths_are_those_of_the_recursive_definition(count):
    data = leaves(count)
    hashes = [leaf_hash(leaf) for leaf in data]
    assert merkle_root(hashes) == reference_root(data)
    for index in range(count):
        path = merkle_path(hashes, index)
        assert path == reference_path(index, data)
        assert path_sides(index, count) == [side for side, _ in path]
        assert root_from_path(hashes[index], path) == merkle_root(hashes)


def test_roots_are_those_of_certificate_transparency():
    """The test vectors of the log that RFC 6962 was written for."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
              "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
    roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    hashes = [leaf_hash(bytes.fromhex(text)) for text in inputs]
    assert [merkle_root(hashes[: n + 1]).hex() for n in range(8)] == roots


@given(st.lists(st.binary(max_size=8), min_size=2, max_size=17, unique=True), st.data())
def test_every_change_of_a_leaf_or_their_order_changes_the_root(data, draw):
    root = merkle_root([leaf_hash(leaf) for leaf in data])
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = [*data[:place], data[place] + b"x", *data[place + 1 :]]
    moved = [*data[:place], *data[place + 1 :]]
    rotated = [*data[1:], data[0]]
    for other in (changed, moved, rotated):
        assert merkle_root([leaf_hash(leaf) for leaf in other]) != root


@given(st.integers(1, 17), st.data())
def test_a_proof_holds_for_its_own_leaf_place_and_size_only(count, data):
    hashes = [leaf_hash(leaf) for leaf in leaves(count)]
    root, index = merkle_root(hashes), data.draw(st.integers(0, count - 1))
    path = merkle_path(hashes, index)
    assert proves(hashes[index], path, root=root, index=index, count=count)
    wrong = data.draw(st.sampled_from(["leaf", "root", *(["path"] if path else [])]))
    if wrong == "leaf":
        assert not proves(leaf_hash(b"other"), path, root=root, index=index, count=count)
    elif wrong == "root":
        assert not proves(hashes[index], path, root=leaf_hash(root), index=index, count=count)
    else:
        place = data.draw(st.integers(0, len(path) - 1))
        side, sibling = path[place]
        bit = 1 << data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(sibling, "big") ^ bit).to_bytes(32, "big")
        other_side = "left" if side == "right" else "right"
        for step in ([(side, flipped)], [(other_side, sibling)], [("", sibling)],
                     [(side, sibling[:-1])], [], [(side, sibling)] * 2):  # fmt: skip
            forged = [*path[:place], *step, *path[place + 1 :]]
            assert not proves(hashes[index], forged, root=root, index=index, count=count)


@pytest.mark.parametrize("announced", range(1, 9))
def test_a_root_opens_to_one_leaf_for_each_place_that_was_announced(announced):
    """Or an owner could commit to a million sub-keys and reveal those that suit the suspect."""
    for real in SIZES:
        hashes = [leaf_hash(leaf) for leaf in leaves(real)]
        root, paths = merkle_root(hashes), [merkle_path(hashes, place) for place in range(real)]
        for index in range(announced):
            passing = [
                place
                for place in range(real)
                if proves(hashes[place], paths[place], root=root, index=index, count=announced)
            ]
            assert passing == [index] if real == announced else len(passing) <= 1


def test_a_node_does_not_pass_for_a_leaf():
    one, two = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(one + two) != node_hash(one, two)
    assert merkle_root([one, two]) not in (leaf_hash(one + two), sha256(one + two).digest())
