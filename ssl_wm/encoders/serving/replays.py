"""Answers that are kept a while, so that a call sent twice is computed and billed once.

A client that lost an answer (a reset, a time-out, its own end) sends the same request with the
same ``Idempotency-Key`` again. The key counts within one account only, and only for the very
same content.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ssl_wm.encoders.serving.refusals import RefusedError

Name = tuple[str, str]


@dataclass
class _Entry:
    content: str
    rows: asyncio.Future[Tensor]
    until: float
    size: int = 0


class Replays:
    """Answers by account and ``Idempotency-Key``, at most ``most`` bytes of them.

    Used from the event loop's thread alone.

    Args:
        most: bytes of embeddings that are kept; the oldest go first.
        seconds: how long an answer is kept.
        clock: seconds that never run backwards.
    """

    def __init__(
        self, *, most: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[Name, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, account: str, key: str, *, content: str) -> asyncio.Future[Tensor] | None:
        """Return the answer, perhaps still in work, to a request seen before; else None.

        Raises:
            RefusedError: 422, this account used ``key`` for other ``content`` (a SHA-256).
        """
        self._expire()
        entry = self._entries.get((account, key))
        if entry is None:
            return None
        if entry.content != content:
            raise RefusedError(
                422, "idempotency_key",
                "this Idempotency-Key was used for another request; choose a new one",
            )  # fmt: skip
        return entry.rows

    def start(self, account: str, key: str, *, content: str, rows: asyncio.Future[Tensor]) -> None:
        """Remember that ``rows`` will answer this request; a failure is forgotten at once."""
        entry = _Entry(content, rows, until=self._clock() + self._seconds)
        self._entries[(account, key)] = entry
        rows.add_done_callback(lambda done: self._finish((account, key), entry))

    def _finish(self, name: Name, entry: _Entry) -> None:
        if self._entries.get(name) is not entry:
            return
        if entry.rows.cancelled() or entry.rows.exception() is not None:
            del self._entries[name]
            return
        rows = entry.rows.result()
        entry.size = rows.numel() * rows.element_size() + 1024
        entry.until = self._clock() + self._seconds
        self._entries.move_to_end(name)
        self._bytes += entry.size
        self._expire()

    def _expire(self) -> None:
        now, left, gone = self._clock(), self._bytes, []
        for name, entry in self._entries.items():
            if not entry.size:  # still in work
                continue
            if left <= self._most and entry.until > now:
                break
            gone.append(name)
            left -= entry.size
        for name in gone:
            del self._entries[name]
        self._bytes = left
