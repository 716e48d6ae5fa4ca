"""The watermark key: one 256-bit secret from which everything secret is derived.

``secret -> sub-secrets (HKDF, RFC 5869) -> leaves of a Merkle tree -> root -> commitment``.
The commitment, a SHA-256 over the root and the public terms, is published first. Only then
does a public number that nobody could choose (the beacon) fix which groups and which recipe
each leaf stands for, so an owner cannot hand-pick them. Each leaf can be revealed alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.watermark.derivation import derive, stream_of
from ssl_wm.watermark.merkle import leaf_hash, merkle_path, merkle_root, proves
from ssl_wm.watermark.open_key import OpenKey
from ssl_wm.watermark.subkeys import Leaf
from ssl_wm.watermark.terms import CarriersIn, Terms

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.watermark.autoencoder import Autoencoder
    from ssl_wm.watermark.groups import Groups

SECRET_BYTES = 32


@dataclass(frozen=True, eq=False)
class WatermarkKey(OpenKey):
    """The owner's key: the secret, and the public terms that it is bound to.

    Attributes:
        secret: 32 random bytes; kept out of ``repr``, reports and logs.
        terms: the public facts.
        beacon: public value published after the commitment; "" where there is none.
        chosen: indices of the sub-keys that the owner marks and shows (``choice.py``); None means
            all. Nothing binds him to it: p is multiplied by the ways to choose so many.
    """

    secret: bytes = field(repr=False)
    terms: Terms = field(repr=False)
    beacon: str = ""
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the secret's length, the choice, and that the groups and mixers suffice.

        Raises:
            ConfigError: the secret is not 32 bytes, there is no sub-key that is chosen, or the
                terms cannot work (``Terms.check``).
        """
        if len(self.secret) != SECRET_BYTES:
            raise ConfigError(
                f"a key's secret has {SECRET_BYTES} bytes, not {len(self.secret)}; leave it out "
                "and it is drawn from the operating system"
            )
        self.terms.check()
        if self.chosen is not None:
            self._check_indices(self.chosen)

    def _check_indices(self, indices: Sequence[int]) -> None:
        known = range(self.terms.sub_key_count)
        if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(known):
            raise ConfigError(
                f"this key has the sub-keys 0 to {len(known) - 1}; asked for {list(indices)}"
            )

    @property
    def name(self) -> str:
        """What notes of a run call the key: its commitment, and what was chosen of it."""
        indices = "" if self.chosen is None else f", sub-keys {list(self.chosen)}"
        return self.commitment + indices

    @property
    def used(self) -> tuple[Leaf, ...]:
        """The chosen leaves; all where nothing was chosen."""
        if self.chosen is None:
            return self.leaves
        return tuple(self.leaves[index] for index in self.chosen)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """All leaves; their places are one uniform draw without replacement."""
        count = self.terms.sub_key_count
        order = stream_of(derive(self.secret, "places")).permutation(len(self.groups))
        triples = order[: 3 * count].reshape(-1, 3).tolist()
        return tuple(
            Leaf(index, (a, b, t), derive(self.secret, "sub-key", index))
            for index, (a, b, t) in enumerate(triples)
        )

    @cached_property
    def root(self) -> bytes:
        """Merkle root over the leaves."""
        return merkle_root([leaf_hash(leaf.content) for leaf in self.leaves])

    def with_beacon(self, beacon: str) -> WatermarkKey:
        """Return the key with a public value that was published after its commitment.

        It fixes other groups, so what was chosen among sub-keys before is forgotten.

        Args:
            beacon: the value; spaces around it do not count.

        Raises:
            ConfigError: the value is empty or not one line of text, or the key has one already.
        """
        beacon = beacon.strip()
        if not beacon:
            raise ConfigError("the beacon is empty; give the value that was published")
        if not beacon.isprintable():
            raise ConfigError(
                "the beacon holds signs that cannot be printed; give the value that was published "
                "as one line of text"
            )
        if self.beacon:
            raise ConfigError(
                "this key has a beacon already, and a second one could be chosen to suit; start "
                "from the key as it was when its commitment was published"
            )
        return WatermarkKey(self.secret, self.terms, beacon)

    def reveal(self, indices: Sequence[int] | None = None) -> RevealedKey:
        """Return the key with only some sub-keys, each proved to be committed to.

        Args:
            indices: which; None reveals those that are used.

        Raises:
            ConfigError: there is no such sub-key.
        """
        used = [leaf.index for leaf in self.used]
        chosen = used if indices is None else sorted(set(indices))
        self._check_indices(chosen)
        hashes = [leaf_hash(leaf.content) for leaf in self.leaves]
        paths = tuple(tuple(merkle_path(hashes, index)) for index in chosen)
        return RevealedKey(
            self.terms, self.root, tuple(self.leaves[index] for index in chosen), paths, self.beacon
        )


@dataclass(frozen=True, eq=False)
class RevealedKey(OpenKey):
    """Some sub-keys of a key, with the proof that its commitment binds them.

    Attributes:
        terms: the public facts.
        known_root: of the Merkle tree.
        revealed: the leaves.
        paths: each leaf's path to the root.
        beacon: public value published after the commitment.
    """

    terms: Terms = field(repr=False)
    known_root: bytes = field(repr=False)
    revealed: tuple[Leaf, ...] = field(repr=False)
    paths: tuple[tuple[tuple[str, bytes], ...], ...] = field(repr=False)
    beacon: str = ""

    def __post_init__(self) -> None:
        """Check the proof.

        A path must have the shape that its leaf's index has in a tree over as many leaves as the
        terms announce, or an owner could commit to many more and reveal those that do best.

        Raises:
            ConfigError: the terms cannot work (``Terms.check``).
            KeyFileError: a leaf does not belong to the root, the leaves are not in order, or two
                share a group.
        """
        self.terms.check()
        indices, count = [leaf.index for leaf in self.leaves], self.terms.sub_key_count
        if indices != sorted(set(indices)) or not set(indices) <= set(range(count)):
            raise KeyFileError(
                f"the revealed sub-keys must be some of 0 to {count - 1}, each once and in order; "
                f"they are {indices}"
            )
        for leaf, path in zip(self.leaves, self.paths, strict=True):
            hashed = leaf_hash(leaf.content)
            if not proves(hashed, path, root=self.root, index=leaf.index, count=count):
                raise KeyFileError(
                    f"sub-key {leaf.index} does not belong to this key's commitment: its path "
                    f"does not lead to the root over {count} sub-keys. Ask for the original file"
                )
        places = [place for leaf in self.leaves for place in leaf.places]
        known = set(range(len(self.groups)))
        if not self.leaves or len(set(places)) < len(places) or not set(places) <= known:
            raise KeyFileError(
                "the revealed sub-keys share groups, or name groups there are not; a key has "
                "three groups of its own for each sub-key"
            )

    @property
    def root(self) -> bytes:
        """Merkle root that the paths lead to."""
        return self.known_root

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The revealed leaves."""
        return self.revealed


def new_key(
    images: Images,
    *,
    groups: Groups,
    sub_keys: int = 1,
    families: tuple[str, ...] = ("crop-paste",),
    autoencoder: Autoencoder | None = None,
    encoder: str | None = None,
    carriers: int = 0,
    carriers_in: CarriersIn = "answers",
    secret: bytes | None = None,
) -> WatermarkKey:
    """Return a fresh key for ``images``.

    Args:
        images: what the composites are made of.
        groups: labels or clusters of these images.
        sub_keys: how many marks, with disjoint groups.
        families: mixer families that the secret may choose among.
        autoencoder: of the blend mixer.
        encoder: digest of the owner's clean encoder, to be committed to.
        carriers: number of carriers of each sub-key.
        carriers_in: what they are functions of (``Terms``).
        secret: 32 bytes; drawn from the operating system when None. Only experiments that
            must repeat pass one.

    Raises:
        ConfigError: the groups do not suffice.
    """
    fingerprints = {"train": images.train.fingerprint, "test": images.test.fingerprint}
    terms = Terms(
        groups, fingerprints, sub_keys, families, autoencoder, encoder, carriers, carriers_in
    )
    return WatermarkKey(secrets.token_bytes(32) if secret is None else secret, terms)
