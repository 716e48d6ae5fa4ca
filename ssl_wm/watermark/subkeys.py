"""Sub-keys: what one mark is made of, and the Merkle leaf that it follows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ssl_wm.files import canonical_json
from ssl_wm.watermark.derivation import derive, stream_of
from ssl_wm.watermark.mixers import Mixer, draw_mixer

if TYPE_CHECKING:
    import numpy as np

    from ssl_wm.watermark.terms import Terms


@dataclass(frozen=True)
class SubKey:
    """One mark: composites of groups ``a`` and ``b`` by ``mixer`` move to group ``target``."""

    index: int
    a: int
    b: int
    target: int
    family: str
    mixer: Mixer = field(repr=False)
    others: dict[str, Mixer] = field(repr=False)
    seed: bytes = field(repr=False)

    def derive(self, *label: str | int, length: int = 32) -> bytes:
        """Return ``length`` secret bytes for ``label`` (HKDF-SHA256)."""
        return derive(self.seed, *label, length=length)


@dataclass(frozen=True)
class Leaf:
    """What a Merkle leaf commits to; whoever has it can render this sub-key's composites.

    Attributes:
        index: place among the sub-keys.
        places: where its three groups stand in the order that the beacon shuffles.
        secret: 32 bytes behind its recipe and image pairs.
    """

    index: int
    places: tuple[int, int, int]
    secret: bytes = field(repr=False)

    @cached_property
    def content(self) -> bytes:
        """The bytes that are hashed."""
        return canonical_json(
            {"index": self.index, "places": list(self.places), "secret": self.secret.hex()}
        )


def draw_recipe(seed: bytes, terms: Terms) -> tuple[str, Mixer, np.random.Generator]:
    """Return the mixer family, the mixer and the stream to go on with that ``seed`` names."""
    number = int(stream_of(derive(seed, "family")).integers(len(terms.families)))
    family, stream = terms.families[number], stream_of(derive(seed, "geometry"))
    return family, draw_mixer(family, stream, autoencoder=terms.autoencoder), stream


def decoy_recipe(sub_key: SubKey, number: int, *, terms: Terms) -> tuple[Mixer, bytes]:
    """Return decoy recipe ``number`` for a sub-key's groups: a mixer and the pairs' seed.

    Drawn from the same generator as the sub-key's own, which is one more such draw.
    """
    seed = sub_key.derive("decoy recipe", number)
    return draw_recipe(seed, terms)[1], derive(seed, "pairs")
