"""The public terms of a key: everything that a verifier must know and nobody must hide."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_wm.errors import ConfigError, KeyFileError, choose
from ssl_wm.files import canonical_json, sha256_bytes
from ssl_wm.watermark.autoencoder import pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.groups import Groups
from ssl_wm.watermark.mixers import MIXERS

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.watermark.autoencoder import Autoencoder

SPLITS = ("train", "test")
MOST_GROUPS = 2**16
MOST_CARRIERS = 10
CarriersIn = Literal["answers", "places"]


@dataclass(frozen=True, eq=False)
class Terms:
    """What may be known of a key before anything of it is revealed.

    Attributes:
        groups: the partition of the images that groups are drawn from.
        fingerprints: SHA-256 of the training and the test images.
        sub_key_count: number of sub-keys; their groups are disjoint.
        families: mixer families that the secret may choose among.
        autoencoder: of the autoencoder-blend mixer; None leaves that family out.
        encoder: digest of the owner's clean encoder, where it was committed to.
        carriers: number of carriers (``carriers.py``) of each sub-key; 0 where the mark has none.
        carriers_in: what they are functions of: the clean encoder's "answers", or the "places"
            inside it (``places.py``).
    """

    groups: Groups = field(repr=False)
    fingerprints: dict[str, str] = field(repr=False)
    sub_key_count: int = 1
    families: tuple[str, ...] = ("crop-paste",)
    autoencoder: Autoencoder | None = field(default=None, repr=False)
    encoder: str | None = None
    carriers: int = 0
    carriers_in: CarriersIn = "answers"

    def check(self) -> None:
        """Check that the groups and mixers suffice.

        Raises:
            ConfigError: too few groups for the sub-keys, too many carriers or no encoder to read
                them against, an image without a group or a group without images, a fingerprint
                missing, or a mixer family that is unknown or lacks its autoencoder.
        """
        if set(self.fingerprints) != set(SPLITS):
            raise ConfigError(
                "a key names the fingerprints of the images 'train' and 'test', not those of: "
                f"{', '.join(sorted(self.fingerprints)) or 'none'}"
            )
        self._check_groups()
        if self.carriers and self.encoder is None:
            raise ConfigError(
                "carriers are functions of the clean encoder's answers, so the key has to commit "
                "to that encoder: name it (--encoder, with clusters as groups), or leave them out "
                "(--carriers 0)"
            )
        if not 0 <= self.carriers <= MOST_CARRIERS:
            raise ConfigError(f"a sub-key has 0 to {MOST_CARRIERS} carriers; got {self.carriers}")
        choose(self.carriers_in, get_args(CarriersIn), what="carriers_in")
        check_sub_keys(self.sub_key_count, groups=len(self.groups), families=self.families)
        if "autoencoder" in self.families and self.autoencoder is None:
            raise ConfigError(
                "the mixer family 'autoencoder' needs an autoencoder; let keygen train one "
                "(autoencoder_steps above 0) or leave the family out"
            )

    def _check_groups(self) -> None:
        if not 0 < len(self.groups) <= MOST_GROUPS:
            raise ConfigError(
                f"a key has 1 to {MOST_GROUPS:,} groups, not {len(self.groups):,}; ask for fewer "
                "clusters or name images with fewer classes"
            )
        for split in SPLITS:
            present = self._present[split]
            if present != set(range(len(self.groups))):
                raise ConfigError(
                    f"the {split} images must lie in the groups 0 to {len(self.groups) - 1}, with "
                    f"images in each; they lie in {len(present)} groups. Make the key again"
                )

    @cached_property
    def content(self) -> dict[str, Any]:
        """The terms as JSON-ready data, from which ``read_terms`` makes them again."""
        return {
            "images": dict(self.fingerprints),
            "groups": {
                "kind": self.groups.kind,
                "names": list(self.groups.names),
                "train": _encode_groups(self.groups.train),
                "test": _encode_groups(self.groups.test),
            },
            "sub_keys": self.sub_key_count,
            "families": list(self.families),
            "autoencoder": base64.b64encode(self._packed).decode(),
            "encoder": self.encoder,
            **self._carriers,
        }

    @property
    def _carriers(self) -> dict[str, Any]:
        """What the content says of carriers; older keys say nothing."""
        told: dict[str, Any] = {"carriers": self.carriers} if self.carriers else {}
        return told | ({"carriers_in": self.carriers_in} if self.carriers_in != "answers" else {})

    @cached_property
    def statement(self) -> dict[str, Any]:
        """The terms in brief: what is large stands as its SHA-256."""
        return {
            **self.content,
            "groups": sha256_bytes(canonical_json(self.content["groups"])),
            "autoencoder": sha256_bytes(self._packed),
        }

    @cached_property
    def _present(self) -> dict[str, set[int]]:
        return {split: set(self.groups.of(split).unique().tolist()) for split in SPLITS}

    @cached_property
    def _packed(self) -> bytes:
        return pack_autoencoder(self.autoencoder) if self.autoencoder else b""

    def check_images(self, images: Images, *, splits: tuple[str, ...] = ("train", "test")) -> None:
        """Make sure that ``images`` are those the key was made for.

        Raises:
            KeyFileError: a fingerprint differs.
        """
        for split in splits:
            image_set = images.train if split == "train" else images.test
            same = image_set.fingerprint == self.fingerprints[split]
            if not same or len(image_set) != len(self.groups.of(split)):
                raise KeyFileError(
                    f"this key was made for other images: the {split} images of "
                    f"'{images.spec}' ({len(image_set)}) have another fingerprint than the "
                    f"key's ({len(self.groups.of(split))} images). Name the images, size and "
                    "limit that keygen was given"
                )


def read_terms(content: dict[str, Any]) -> Terms:
    """Return the terms that ``Terms.content`` describes.

    What has another type than it should is made that type, so that no key's commitment, which
    the caller compares, fits it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the content is damaged.
        SslWmError: its autoencoder is.
    """
    groups = content["groups"]
    packed = base64.b64decode(content["autoencoder"], validate=True)
    return Terms(
        groups=Groups(
            str(groups["kind"]),
            tuple(str(name) for name in groups["names"]),
            _decode_groups(groups["train"]),
            _decode_groups(groups["test"]),
        ),
        fingerprints={str(split): str(found) for split, found in content["images"].items()},
        sub_key_count=int(content["sub_keys"]),
        families=tuple(content["families"]),
        autoencoder=unpack_autoencoder(packed) if packed else None,
        encoder=None if content["encoder"] is None else str(content["encoder"]),
        carriers=int(content.get("carriers", 0)),
        carriers_in=content.get("carriers_in", "answers"),
    )


def check_sub_keys(count: int, *, groups: int, families: tuple[str, ...]) -> None:
    """Make sure that ``count`` sub-keys fit ``groups`` groups and the families exist.

    Raises:
        ConfigError: too few groups, or an unknown mixer family.
    """
    if not families:
        raise ConfigError(f"a key needs at least one mixer family of: {', '.join(MIXERS)}")
    for family in families:
        choose(family, MIXERS, what="mixer")
    if count < 1 or 3 * count > groups:
        raise ConfigError(
            f"{count} sub-keys need {3 * max(count, 1)} groups (three each); there are {groups}. "
            "Ask for fewer sub-keys or more clusters"
        )


def _encode_groups(groups: Tensor) -> str:
    return base64.b64encode(groups.numpy().astype("<u2").tobytes()).decode()


def _decode_groups(text: str) -> Tensor:
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u2")
    return torch.from_numpy(values.astype(np.int64))
