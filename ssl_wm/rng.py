"""Named random streams: every draw names its purpose, nothing seeds a global generator.

Because a stream depends on ``(seed, names)`` alone, a resumed run draws what the
uninterrupted run would have drawn, and no generator state needs saving.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int | bytes, *names: str | int) -> int:
    """Return a 63-bit seed for the stream ``names`` below ``seed``.

    >>> derive_seed(0, "views", 3) == derive_seed(0, "views", 3)
    True
    >>> derive_seed(0, "views", 3) == derive_seed(0, "views", 4)
    False
    """
    root = seed if isinstance(seed, bytes) else str(int(seed)).encode()
    parts = [root, *(str(name).encode() for name in names)]
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return int.from_bytes(hashlib.sha256(framed).digest()[:8], "big") >> 1


def torch_stream(
    seed: int | bytes, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator on ``device`` for the stream ``names`` below ``seed``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *names))
    return generator


def numpy_stream(seed: int | bytes, *names: str | int) -> np.random.Generator:
    """Return a numpy generator (Philox) for the stream ``names`` below ``seed``."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *names)))
