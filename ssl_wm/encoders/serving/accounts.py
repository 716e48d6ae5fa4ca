"""Accounts: whose key it is, how fast and how much it may ask, and what it was billed."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.settings import AccountConfig, AccountsConfig

Clock = Callable[[], float]


class TokenBucket:
    """Tokens that refill at ``rate`` a second up to ``size``; it starts full.

    Args:
        rate: tokens a second.
        size: most tokens it holds.
        clock: seconds that never run backwards.
    """

    def __init__(self, *, rate: float, size: float, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._size = size
        self._clock = clock
        self._tokens = size
        self._then = clock()

    def take(self, count: float) -> float:
        """Take ``count`` tokens and return 0, or take none and return the seconds to wait."""
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if count <= self._tokens:
            self._tokens -= count
            return 0.0
        return (count - self._tokens) / self._rate

    def give_back(self, count: float) -> None:
        """Put tokens back that were taken for nothing."""
        self._tokens = min(self._size, self._tokens + count)


class Account:
    """One customer at work. Used from one thread alone, the one that runs the event loop.

    Attributes:
        settings: name, rates and quota.
        images: images answered in all, which is what is billed.
        requests: requests answered with embeddings, replays included.
        replayed: images of requests that were answered again from memory, not billed.
    """

    def __init__(
        self, settings: AccountConfig, *, clock: Clock = time.monotonic, date: Clock = time.time
    ) -> None:
        self.settings = settings
        self.images = 0
        self.requests = 0
        self.replayed = 0
        self._date = date
        self._period = self._current_period()
        self._used = 0
        self._reserved = 0
        rate, each = settings.images_per_second, settings.requests_per_second
        self._image_bucket = (
            TokenBucket(rate=rate, size=settings.burst, clock=clock) if rate else None
        )
        self._request_bucket = (
            TokenBucket(rate=each, size=max(1.0, 2 * each), clock=clock) if each else None
        )

    @property
    def name(self) -> str:
        """The account's name."""
        return self.settings.name

    def admit_request(self) -> None:
        """Count a request before its body is read.

        Raises:
            RefusedError: 429, requests come faster than agreed.
        """
        wait = self._request_bucket.take(1) if self._request_bucket else 0.0
        if wait:
            raise RefusedError(
                429, "rate_limit", "too many requests a second; wait as told", wait=wait
            )

    def reserve(self, count: int) -> None:
        """Set ``count`` images aside; ``settle`` or ``release`` must follow.

        Raises:
            RefusedError: 413, the request can never pass; 429, the rate or the quota is used up.
        """
        settings = self.settings
        if self._image_bucket is not None and count > settings.burst:
            raise RefusedError(
                413, "too_many_images",
                f"{count} images in a request, and this account may send {settings.burst}; send "
                "fewer at a time",
            )  # fmt: skip
        self._turn_period()
        left = self.remaining
        if left is not None and count > left:
            wait = (self._period + 1) * settings.period - self._date()
            raise RefusedError(
                429, "quota",
                f"{left} images of this account's quota of {settings.quota} are left and "
                f"{count} came; the quota is renewed in {wait:.0f} s",
                wait=wait,
            )  # fmt: skip
        wait = self._image_bucket.take(count) if self._image_bucket else 0.0
        if wait:
            raise RefusedError(
                429, "rate_limit", "too many images a second; wait as told", wait=wait
            )
        self._reserved += count

    def settle(self, count: int) -> None:
        """Bill ``count`` reserved images that were embedded."""
        self._turn_period()
        self._reserved -= count
        self._used += count
        self.images += count

    def release(self, count: int) -> None:
        """Free ``count`` reserved images that could not be answered; they cost nothing."""
        self._reserved -= count
        if self._image_bucket is not None:
            self._image_bucket.give_back(count)

    @property
    def remaining(self) -> int | None:
        """Images left of the quota in this period; None without a quota."""
        if self.settings.quota is None:
            return None
        return max(0, self.settings.quota - self._used - self._reserved)

    def usage(self) -> dict[str, Any]:
        """Return what this account has used and has left."""
        self._turn_period()
        return {
            "account": self.name, "images": self.images, "requests": self.requests,
            "replayed": self.replayed, "quota": self.settings.quota, "remaining": self.remaining,
        }  # fmt: skip

    def state(self) -> dict[str, int]:
        """Return what must outlive a restart."""
        counts = {"images": self.images, "requests": self.requests, "replayed": self.replayed}
        return {**counts, "period": self._period, "used": self._used}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from a ``state``; a quota used in an earlier period counts no more."""
        self.images = int(state["images"])
        self.requests = int(state["requests"])
        self.replayed = int(state["replayed"])
        self._period, self._used = int(state["period"]), int(state["used"])
        self._turn_period()

    def _current_period(self) -> int:
        return int(self._date() // self.settings.period)

    def _turn_period(self) -> None:
        now = self._current_period()
        if now != self._period:
            self._period, self._used = now, 0


class Accounts:
    """All customers, found by key.

    Args:
        config: the accounts; of keys they hold SHA-256 only.
        clock: seconds that never run backwards, for rates.
        date: seconds since the epoch, for quota periods.
    """

    def __init__(
        self, config: AccountsConfig, *, clock: Clock = time.monotonic, date: Clock = time.time
    ) -> None:
        made = [Account(each, clock=clock, date=date) for each in config.accounts]
        self._by_digest = [(bytes.fromhex(each.settings.sha256), each) for each in made]

    def find(self, key: str) -> Account | None:
        """Return the account of ``key``; every digest is compared, each in constant time."""
        asked = hashlib.sha256(key.encode()).digest()
        found = None
        for digest, account in self._by_digest:
            if hmac.compare_digest(digest, asked):
                found = account
        return found

    def state(self) -> dict[str, dict[str, int]]:
        """Return what must outlive a restart, by account."""
        return {account.name: account.state() for _, account in self._by_digest}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from a ``state``; accounts that are not in it start anew."""
        for _, account in self._by_digest:
            if account.name in state:
                account.restore(state[account.name])
