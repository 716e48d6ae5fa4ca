"""The defences at work: what one account is answered, and what is remembered of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_wm.encoders.serving import defences
from ssl_wm.encoders.serving.settings import DefenceConfig
from ssl_wm.rng import torch_stream


@dataclass
class _Known:
    """What an account's answers depend on besides its images."""

    rotation: Tensor | None
    seen: Tensor
    requests: int = 0


class Shield:
    """Applies the defences of ``config`` to answers, each account apart from all others.

    Args:
        config: which defences are on.
        width: D of the embeddings.
        secret: 32 random bytes; maps and hyperplanes are drawn from them by labelled streams,
            so that a restart with the same secret gives each account its map again.
    """

    def __init__(self, config: DefenceConfig, *, width: int, secret: bytes) -> None:
        self._config = config
        self._width = width
        self._secret = secret
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        bits = config.b4b.bits if config.b4b else 1
        stream = torch_stream(secret, "b4b planes")
        self._planes = defences.hash_planes(width, bits=bits, generator=stream)

    @property
    def is_on(self) -> bool:
        """Whether any defence changes the answers."""
        return bool(self._config.active)

    def coverage(self, account: str) -> float:
        """Return the share of hash buckets in [0, 1] that ``account`` has touched."""
        with self._lock:
            known = self._known.get(account)
            return float(known.seen.float().mean()) if known else 0.0

    def apply(self, rows: Tensor, *, account: str) -> Tensor:
        """Return what ``account`` is answered in place of the embeddings ``rows`` (N, D)."""
        config = self._config
        if not self.is_on:
            return rows
        sigmas, rotation, number = self._note(rows, account)
        stream = torch_stream(self._secret, "noise", account, number)
        if sigmas is not None:
            rows = defences.add_noise(rows, sigma=sigmas, generator=stream)
        if config.noise is not None:
            rows = defences.add_noise(rows, sigma=config.noise, generator=stream)
        if rotation is not None:
            rows = rows @ rotation
        if config.normalise:
            rows = defences.unit_length(rows)
        if config.top_k is not None:
            rows = defences.keep_largest(rows, k=config.top_k)
        if config.rounding is not None:
            rows = defences.round_off(rows, decimals=config.rounding)
        return rows

    def _note(self, rows: Tensor, account: str) -> tuple[Tensor | None, Tensor | None, int]:
        """Return the noise deviations (N,), the account's map and its request's number."""
        b4b = self._config.b4b
        with self._lock:
            known = self._known.setdefault(account, self._new(account))
            known.requests += 1
            sigmas = None
            if b4b is not None:
                buckets = defences.hash_buckets(rows, planes=self._planes)
                shares, known.seen = defences.coverage_after(buckets, seen=known.seen)
                sigmas = defences.b4b_sigma(shares, lam=b4b.lam, alpha=b4b.alpha, beta=b4b.beta)
            return sigmas, known.rotation, known.requests

    def _new(self, account: str) -> _Known:
        if account in self._known:
            return self._known[account]
        rotation = None
        if self._config.rotate:
            stream = torch_stream(self._secret, "rotation", account)
            rotation = defences.random_rotation(self._width, generator=stream)
        return _Known(rotation, torch.zeros(2 ** self._planes.shape[1], dtype=torch.bool))
