"""The watermark key: one 256-bit secret from which everything secret is derived.

Groups of each sub-key, mixer geometry and image pairs come from the secret through HKDF
(RFC 5869) with a label each; nothing is picked by hand. What is public (the groups, the
images' fingerprints, the mixer families allowed) is fixed beside it and bound to it by the
commitment, a SHA-256 that can be published before any suspect is known.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssl_wm.errors import ConfigError, KeyFileError, SslWmError, choose
from ssl_wm.files import canonical_json, read_json, sha256_bytes, write_json
from ssl_wm.watermark.autoencoder import pack_autoencoder, unpack_autoencoder
from ssl_wm.watermark.groups import Groups
from ssl_wm.watermark.mixers import MIXERS, Mixer, draw_mixer, other_mixers

if TYPE_CHECKING:
    from ssl_wm.data.sources import Images
    from ssl_wm.watermark.autoencoder import Autoencoder

FORMAT, VERSION = "ssl-wm-key", 1
SALT = b"ssl-wm/key/v1"


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


@dataclass(frozen=True, eq=False)
class WatermarkKey:
    """A secret and the public facts that it is bound to.

    Attributes:
        secret: 32 random bytes; kept out of ``repr``, reports and logs.
        groups: the public partition of the images.
        fingerprints: SHA-256 of the training and the test images.
        sub_key_count: number of sub-keys; their groups are disjoint.
        families: mixer families that the secret may choose among.
        autoencoder: of the autoencoder-blend mixer; None leaves that family out.
    """

    secret: bytes = field(repr=False)
    groups: Groups = field(repr=False)
    fingerprints: dict[str, str] = field(repr=False)
    sub_key_count: int = 1
    families: tuple[str, ...] = ("crop-paste",)
    autoencoder: Autoencoder | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check that the groups and mixers suffice.

        Raises:
            ConfigError: too few groups for the sub-keys, or a mixer family that is unknown or
                lacks its autoencoder.
        """
        check_sub_keys(self.sub_key_count, groups=len(self.groups), families=self.families)
        if "autoencoder" in self.families and self.autoencoder is None:
            raise ConfigError(
                "the mixer family 'autoencoder' needs an autoencoder; let keygen train one "
                "(autoencoder_steps above 0) or leave the family out"
            )

    def derive(self, *label: str | int, length: int = 32) -> bytes:
        """Return ``length`` secret bytes for ``label`` (HKDF-SHA256)."""
        info = "/".join(str(part) for part in label).encode()
        return hkdf(self.secret, salt=SALT, info=info, length=length)

    @cached_property
    def sub_keys(self) -> tuple[SubKey, ...]:
        """The sub-keys; their 3 n groups are one uniform draw without replacement."""
        stream = _stream(self.derive("groups"))
        order = stream.permutation(len(self.groups))[: 3 * self.sub_key_count]
        triples = order.reshape(-1, 3).tolist()
        return tuple(self._sub_key(index, *triple) for index, triple in enumerate(triples))

    def _sub_key(self, index: int, a: int, b: int, target: int) -> SubKey:
        family = self.families[
            int(_stream(self.derive("family", index)).integers(len(self.families)))
        ]
        geometry = _stream(self.derive("geometry", index))
        mixer = draw_mixer(family, geometry, autoencoder=self.autoencoder)
        others = other_mixers(family, mixer, geometry, autoencoder=self.autoencoder)
        return SubKey(index, a, b, target, family, mixer, others)

    @cached_property
    def public(self) -> dict[str, Any]:
        """What may be known of the key: all but the secret."""
        packed = pack_autoencoder(self.autoencoder) if self.autoencoder else b""
        return {
            "format": FORMAT,
            "version": VERSION,
            "images": dict(self.fingerprints),
            "groups": {
                "kind": self.groups.kind,
                "names": list(self.groups.names),
                "train": _encode_groups(self.groups.train),
                "test": _encode_groups(self.groups.test),
            },
            "sub_keys": self.sub_key_count,
            "families": list(self.families),
            "autoencoder": base64.b64encode(packed).decode(),
        }

    @property
    def commitment(self) -> str:
        """SHA-256 that binds the secret to the public facts and reveals nothing of it."""
        whole = {"public": sha256_bytes(canonical_json(self.public)), "secret": self.secret.hex()}
        return sha256_bytes(b"ssl-wm/commitment/v1\0" + canonical_json(whole))

    def check_images(self, images: Images, *, splits: tuple[str, ...] = ("train", "test")) -> None:
        """Make sure that ``images`` are those the key was made for.

        Raises:
            KeyFileError: a fingerprint differs.
        """
        for split in splits:
            image_set = images.train if split == "train" else images.test
            if image_set.fingerprint != self.fingerprints[split]:
                raise KeyFileError(
                    f"this key was made for other images: the {split} images of "
                    f"'{images.spec}' ({len(image_set)}) have another fingerprint than the "
                    f"key's ({len(self.groups.of(split))} images). Name the images, size and "
                    "limit that keygen was given"
                )

    def save(self, path: Path) -> None:
        """Write the key (secret included) to ``path`` with mode 0600."""
        whole = {**self.public, "secret": self.secret.hex(), "commitment": self.commitment}
        write_json(path, whole, mode=0o600)

    def save_commitment(self, path: Path) -> None:
        """Write what may be published before a dispute: the commitment and its format."""
        write_json(
            path, {"format": "ssl-wm-commitment", "version": VERSION, "commitment": self.commitment}
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


def new_key(
    images: Images,
    *,
    groups: Groups,
    sub_keys: int = 1,
    families: tuple[str, ...] = ("crop-paste",),
    autoencoder: Autoencoder | None = None,
    secret: bytes | None = None,
) -> WatermarkKey:
    """Return a fresh key for ``images``.

    Args:
        images: what the composites are made of.
        groups: labels or clusters of these images.
        sub_keys: how many marks, with disjoint groups.
        families: mixer families that the secret may choose among.
        autoencoder: of the blend mixer.
        secret: 32 bytes; drawn from the operating system when None. Only experiments that
            must repeat pass one.

    Raises:
        ConfigError: the groups do not suffice.
    """
    fingerprints = {"train": images.train.fingerprint, "test": images.test.fingerprint}
    secret = secrets.token_bytes(32) if secret is None else secret
    return WatermarkKey(secret, groups, fingerprints, sub_keys, families, autoencoder)


def load_key(path: Path) -> WatermarkKey:
    """Return the key in ``path``.

    Raises:
        KeyFileError: the file is missing, damaged, changed by hand or of a newer format.
    """
    whole = read_json(path, error=KeyFileError, what="key")
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise KeyFileError(f"{path} is not a watermark key; make one with 'ssl-wm keygen'")
    if whole.get("version") != VERSION:
        raise KeyFileError(
            f"key {path} has format version {whole.get('version')}; this program reads version "
            f"{VERSION}. Install a newer ssl-wm"
        )
    try:
        key = _parse(whole)
        commitment = key.commitment
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SslWmError) as error:
        raise KeyFileError(f"key {path} is damaged: {type(error).__name__} {error}") from error
    if commitment != whole.get("commitment"):
        raise KeyFileError(
            f"key {path} was changed after it was made: its content does not match its "
            "commitment. Use the original file"
        )
    return key


def _parse(whole: dict[str, Any]) -> WatermarkKey:
    groups = whole["groups"]
    packed = base64.b64decode(whole["autoencoder"], validate=True)
    secret = bytes.fromhex(whole["secret"])
    if len(secret) != 32:
        raise ValueError("the secret is not 32 bytes")
    return WatermarkKey(
        secret=secret,
        groups=Groups(
            groups["kind"],
            tuple(groups["names"]),
            _decode_groups(groups["train"]),
            _decode_groups(groups["test"]),
        ),
        fingerprints=dict(whole["images"]),
        sub_key_count=int(whole["sub_keys"]),
        families=tuple(whole["families"]),
        autoencoder=unpack_autoencoder(packed) if packed else None,
    )


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    r"""Return ``length`` bytes of HKDF-SHA256 (RFC 5869, sections 2.2 and 2.3).

    >>> hkdf(b"\x0b" * 22, salt=bytes(range(13)), info=bytes(range(0xf0, 0xfa)), length=8).hex()
    '3cb25f25faacd57a'
    """
    root = hmac.digest(salt, secret, hashlib.sha256)
    output, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(root, block + info + bytes([counter]), hashlib.sha256)
        output += block
    return output[:length]


def _stream(seed: bytes) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))


def _encode_groups(groups: Tensor) -> str:
    return base64.b64encode(groups.numpy().astype("<u2").tobytes()).decode()


def _decode_groups(text: str) -> Tensor:
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u2")
    return torch.from_numpy(values.astype(np.int64))
