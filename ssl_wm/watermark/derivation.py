"""Key derivation: secret bytes and random streams for labelled purposes (HKDF, RFC 5869)."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np

SALT = b"ssl-wm/key/v2"


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


def derive(secret: bytes, *label: str | int, length: int = 32) -> bytes:
    """Return ``length`` bytes below ``secret`` for ``label``.

    >>> derive(b"s", "pairs", 0) == derive(b"s", "pairs", 1)
    False
    """
    info = "/".join(str(part) for part in label).encode()
    return hkdf(secret, salt=SALT, info=info, length=length)


def stream_of(seed: bytes) -> np.random.Generator:
    """Return the numpy generator (Philox) that the first 16 bytes of ``seed`` name."""
    return np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
