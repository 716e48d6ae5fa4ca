"""Merkle tree over a key's sub-keys, so that each can be revealed alone.

Leaves and nodes are hashed with different prefixes, and an odd node moves up as it is (RFC 6962,
section 2.1), so no leaf can pass for a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return ``SHA-256(0x00 || leaf)``."""
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return ``SHA-256(0x01 || left || right)``."""
    return sha256(b"\1" + left + right).digest()


def merkle_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over one or more leaf hashes.

    >>> merkle_root([leaf_hash(b"a")]) == leaf_hash(b"a")
    True
    """
    level = list(hashes)
    while len(level) > 1:
        level = _above(level)
    return level[0]


def merkle_path(hashes: Sequence[bytes], index: int) -> list[tuple[str, bytes]]:
    """Return what leads from leaf ``index`` to the root: (side, hash) of each sibling.

    >>> hashes = [leaf_hash(name) for name in (b"a", b"b", b"c")]
    >>> [side for side, _ in merkle_path(hashes, 1)]
    ['left', 'right']
    """
    level, path = list(hashes), []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(("left" if sibling < index else "right", level[sibling]))
        level, index = _above(level), index // 2
    return path


def path_sides(index: int, count: int) -> list[str]:
    """Return the sides that the path of leaf ``index`` has in a tree over ``count`` leaves.

    A proof with other sides is of another leaf or of a larger tree, whose owner could pick
    among more leaves than were announced.

    >>> path_sides(1, 3), path_sides(2, 3)
    (['left', 'right'], ['left'])
    """
    sides = []
    while count > 1:
        sibling = index ^ 1
        if sibling < count:
            sides.append("left" if sibling < index else "right")
        index, count = index // 2, (count + 1) // 2
    return sides


def proves(
    leaf: bytes, path: Sequence[tuple[str, bytes]], *, root: bytes, index: int, count: int
) -> bool:
    """Return whether ``path`` proves a leaf's hash to be number ``index`` of ``count`` leaves."""
    return (
        [side for side, _ in path] == path_sides(index, count)
        and all(len(sibling) == len(leaf) for _, sibling in path)
        and root_from_path(leaf, path) == root
    )


def root_from_path(leaf: bytes, path: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the root to which a leaf's hash and its path lead.

    >>> hashes = [leaf_hash(name) for name in (b"a", b"b", b"c")]
    >>> root_from_path(hashes[2], merkle_path(hashes, 2)) == merkle_root(hashes)
    True
    """
    reached = leaf
    for side, sibling in path:
        reached = node_hash(sibling, reached) if side == "left" else node_hash(reached, sibling)
    return reached


def _above(level: Sequence[bytes]) -> list[bytes]:
    pairs = [node_hash(*level[start : start + 2]) for start in range(0, len(level) - 1, 2)]
    return pairs + list(level[len(level) - len(level) % 2 :])
