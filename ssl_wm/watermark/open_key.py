"""What verification uses of a key: public terms, a commitment, and the sub-keys that are used."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ssl_wm.files import canonical_json, sha256_bytes
from ssl_wm.watermark.derivation import derive, hkdf, stream_of
from ssl_wm.watermark.mixers import other_mixers
from ssl_wm.watermark.subkeys import Leaf, SubKey, draw_recipe

if TYPE_CHECKING:
    import numpy as np

    from ssl_wm.data.image_set import Images
    from ssl_wm.watermark.groups import Groups
    from ssl_wm.watermark.terms import Terms

COMMITMENT_TAG = b"ssl-wm/commitment/v2\0"


class OpenKey(ABC):
    """What verification uses: public terms, a commitment, and sub-keys that may be used.

    Attributes:
        terms: the public facts.
        beacon: the public value published after the commitment; "" where there is none.
        root: of the Merkle tree over the leaves.
        leaves: those that are known.
    """

    terms: Terms
    beacon: str

    @property
    @abstractmethod
    def root(self) -> bytes:
        """Return the Merkle root."""

    @property
    @abstractmethod
    def leaves(self) -> Sequence[Leaf]:
        """Return the leaves that are known."""

    @property
    def groups(self) -> Groups:
        """The public partition of the images."""
        return self.terms.groups

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the training and the test images."""
        return self.terms.fingerprints

    @property
    def statement(self) -> dict[str, Any]:
        """What the commitment is the hash of: the terms and the Merkle root."""
        return {**self.terms.statement, "root": self.root.hex()}

    @property
    def commitment(self) -> str:
        """SHA-256 that binds the leaves to the terms and reveals nothing of them."""
        return sha256_bytes(COMMITMENT_TAG + canonical_json(self.statement))

    @property
    def name(self) -> str:
        """What notes of a run call the key: its commitment, and what was chosen of it."""
        return self.commitment

    @cached_property
    def salt(self) -> bytes:
        """Public bytes that nobody could choose: of the commitment and then the beacon."""
        framed = canonical_json({"beacon": self.beacon, "commitment": self.commitment})
        return hashlib.sha256(b"ssl-wm/beacon/v2\0" + framed).digest()

    @cached_property
    def sub_keys(self) -> tuple[SubKey, ...]:
        """The sub-keys that are used.

        The public salt shuffles all groups; a leaf's places then name its own. Places differ
        within a key, so groups do too, and whatever the places are, the groups of all leaves
        together are one uniform draw without replacement.
        """
        order = stream_of(derive(self.salt, "order")).permutation(len(self.groups))
        return tuple(self._open(leaf, order) for leaf in self.used)

    @property
    def used(self) -> Sequence[Leaf]:
        """The leaves whose sub-keys are marked and shown."""
        return self.leaves

    def _open(self, leaf: Leaf, order: np.ndarray) -> SubKey:
        seed = hkdf(leaf.secret, salt=self.salt, info=b"seed", length=32)
        a, b, target = (int(order[place]) for place in leaf.places)
        family, mixer, stream = draw_recipe(seed, self.terms)
        others = other_mixers(family, mixer, stream, autoencoder=self.terms.autoencoder)
        return SubKey(leaf.index, a, b, target, family, mixer, others, seed)

    def check_images(self, images: Images, *, splits: tuple[str, ...] = ("train", "test")) -> None:
        """Make sure that ``images`` are those the key was made for.

        Raises:
            KeyFileError: a fingerprint differs.
        """
        self.terms.check_images(images, splits=splits)
