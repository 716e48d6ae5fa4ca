"""One HTTP call that keeps trying: backoff with jitter, ``Retry-After``, limits on waiting."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from ssl_wm.encoders.asking.errors import RemoteError, TooLargeError

LOG = logging.getLogger(__name__)
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST = 256 * 2**20
"""Bytes of an answer."""


@dataclass(frozen=True)
class Patience:
    """How long a call is tried.

    Attributes:
        tries: tries of a call, the first one included.
        first: seconds of the first pause; each later one is twice as long.
        longest: seconds of a pause, unless the service asks for a longer one.
        total: seconds that the service may ask to wait; beyond it the call fails.
        timeout: seconds that the service may be silent.
    """

    tries: int = 8
    first: float = 0.25
    longest: float = 30.0
    total: float = 300.0
    timeout: float = 60.0

    def pause(self, failures: int, *, asked: float | None, chance: float) -> float:
        """Return the seconds before the next try.

        Without ``asked`` a uniform share ("full jitter") of an exponentially growing pause;
        with it at least that, and up to a tenth and the first pause more, so that clients
        which were refused together do not come back together.

        Args:
            failures: tries that failed, at least 1.
            asked: what ``Retry-After`` says.
            chance: uniform in [0, 1).
        """
        if asked is not None:
            return asked + chance * (0.1 * asked + self.first)
        return chance * min(self.longest, self.first * 2.0 ** min(failures, 30))


class Caller:
    """Sends JSON to one service; safe to use from several threads, which pause together.

    Args:
        key: sent as ``Authorization: Bearer``; never shown.
        patience: how long a call is tried.
        connections: most at once.
        too_large: whether a refusal (status, JSON) means that fewer images may pass.
        sleep: pauses the thread; None waits for the seconds or for ``stop``.
        chance: draws from [0, 1).
    """

    def __init__(
        self,
        *,
        url: str,
        key: str | None,
        patience: Patience,
        connections: int,
        too_large: Callable[[int, Any], bool],
        sleep: Callable[[float], object] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._shown = shown(url)
        self._patience = patience
        self._too_large = too_large
        self._stopped = threading.Event()
        self._sleep, self._chance = sleep or self._stopped.wait, chance
        self._lock = threading.Lock()
        self._not_before = 0.0
        host = urlsplit(url).hostname or ""
        if key is not None and url.startswith("http://") and host not in LOOPBACK:
            LOG.warning("the key for %s is sent without encryption; use https", self._shown)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key is not None else {},
            timeout=httpx.Timeout(patience.timeout, connect=min(10.0, patience.timeout)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False, trust_env=host not in LOOPBACK,
        )  # fmt: skip

    def post(self, body: Any, *, headers: Mapping[str, str], on_failure: Callable[[], None]) -> Any:
        """Send ``body`` as JSON until an answer comes, and return the answer's JSON.

        Args:
            body: a JSON value.
            headers: besides the key and the type.
            on_failure: called after each try that failed and may be made again.

        Raises:
            TooLargeError: the service wants less at a time.
            RemoteError: it refuses for good, or all tries failed.
        """
        data = json.dumps(body, separators=(",", ":")).encode()
        whole = {**headers, "Content-Type": "application/json"}
        return self._try("POST", self._url, content=data, headers=whole, on_failure=on_failure)

    def get(self, path: str) -> Any:
        """Return the JSON at ``path`` of the same host.

        Raises:
            RemoteError: as in ``post``.
        """
        parts = urlsplit(self._url)
        url = f"{parts.scheme}://{parts.netloc}{path}"
        return self._try("GET", url, content=None, headers={}, on_failure=lambda: None)

    def start(self) -> None:
        """Take calls again after ``stop``."""
        self._stopped.clear()

    def stop(self) -> None:
        """Give up calls that wait for another try."""
        self._stopped.set()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _try(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: Mapping[str, str],
        on_failure: Callable[[], None],
    ) -> Any:
        failures = 0
        while True:
            self._wait_turn()
            asked: float | None = None
            try:
                status, heads, data = self._once(method, url, content=content, headers=headers)
            except httpx.TransportError as error:
                trouble = type(error).__name__
            except httpx.HTTPError as error:
                raise RemoteError(f"{self._shown}: {type(error).__name__}") from error
            else:
                if status == 200:
                    return self._parse(data)
                self._check_final(status, data)
                trouble, asked = f"status {status}", retry_after(heads)
            failures += 1
            on_failure()
            if self._stopped.is_set():
                raise RemoteError(f"{self._shown}: given up")
            if failures >= self._patience.tries:
                raise RemoteError(
                    f"{self._shown} did not answer in {failures} tries (last: {trouble}); answers "
                    "so far are kept: run it again later"
                )
            self._pause(failures, asked=asked, trouble=trouble)

    def _once(
        self, method: str, url: str, *, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        with self._client.stream(method, url, content=content, headers=headers) as answer:
            parts: list[bytes] = []
            size = 0
            for part in answer.iter_bytes():
                size += len(part)
                if size > MOST:
                    raise RemoteError(f"{self._shown} answered more than {MOST} bytes")
                parts.append(part)
            return answer.status_code, answer.headers, b"".join(parts)

    def _parse(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise RemoteError(f"{self._shown} answered something that is not JSON") from None

    def _check_final(self, status: int, data: bytes) -> None:
        """Raise where trying again cannot help."""
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        said = _message(body)
        if self._too_large(status, body):
            raise TooLargeError(f"{self._shown} refuses the request's size ({said})")
        if status in (401, 403):
            raise RemoteError(
                f"{self._shown} refuses the key (status {status}{said}); give one by the "
                "environment variable or the file that the address names"
            )
        if status not in AGAIN:
            raise RemoteError(f"{self._shown} refuses the request (status {status}{said})")

    def _pause(self, failures: int, *, asked: float | None, trouble: str) -> None:
        if asked is not None and asked > self._patience.total:
            raise RemoteError(
                f"{self._shown} asks to wait {asked:.0f} s ({trouble}), longer than the "
                f"{self._patience.total:.0f} s allowed; answers so far are kept: run it again then"
            )
        pause = self._patience.pause(failures, asked=asked, chance=self._chance())
        LOG.info("%s: %s, try %d after %.2f s", self._shown, trouble, failures + 1, pause)
        if asked is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + asked)
        self._sleep(pause)

    def _wait_turn(self) -> None:
        with self._lock:
            left = self._not_before - time.monotonic()
        if left > 0:
            self._sleep(left)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After-Ms`` or ``Retry-After`` (number or date) asks for.

    >>> retry_after({"retry-after": "3"})
    3.0
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) / unit
        except ValueError:
            continue
        if 0 <= seconds < 1e9:
            return seconds
    try:
        then = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, IndexError):
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def shown(url: str) -> str:
    """Return ``url`` for messages: without its query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return f": {' '.join(str(said).split())[:200]}" if said else ""
