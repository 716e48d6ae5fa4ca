"""Reading a request's body within its limits of bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.settings import ServeConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Buffered:
    """Bytes of bodies that all requests hold in memory together."""

    def __init__(self) -> None:
        self.total = 0


class LimitedBody:
    """An ASGI ``receive`` that refuses bodies that are too long, too slow or too many.

    Args:
        receive: the server's own.
        limits: bytes, buffered bytes and seconds.
        buffered: what all requests hold; ``close`` takes this body's share off.
    """

    def __init__(self, receive: Receive, *, limits: ServeConfig, buffered: Buffered) -> None:
        self._receive = receive
        self._limits = limits
        self._buffered = buffered
        self._deadline = asyncio.get_running_loop().time() + limits.read_seconds
        self._ended = False
        self.size = 0

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            RefusedError: 408, 413 or 503.
        """
        message = await self._next()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.size += size
            self._buffered.total += size
            if self.size > self._limits.max_bytes:
                raise self.too_long()
            if self._buffered.total > self._limits.max_buffered:
                raise RefusedError(503, "busy", "too much is being sent at once", wait=1.0)
        return message

    def too_long(self) -> RefusedError:
        """Return the refusal of a body that is too long."""
        return RefusedError(
            413, "too_large",
            f"the body has more than {self._limits.max_bytes} bytes; send fewer images at a time",
        )  # fmt: skip

    async def drain(self, *, seconds: float | None = None) -> None:
        """Read and forget what still comes, for ``seconds`` or until the body's time is over.

        A connection that is closed while the client still sends may lose the answer.
        """
        if seconds is not None:
            now = asyncio.get_running_loop().time()
            self._deadline = min(self._deadline, now + seconds)
        try:
            while not self._ended:
                await self._next()
        except RefusedError:
            return

    def close(self) -> None:
        """Say that this body is in memory no more."""
        self._buffered.total -= self.size
        self.size = 0

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._ended = True
            raise RefusedError(
                408, "slow", f"the body did not arrive within {self._limits.read_seconds:g} s"
            ) from None
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message
