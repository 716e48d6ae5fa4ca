"""Settings of the embedding API: limits, defences and accounts, all frozen."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class B4bConfig(BaseModel):
    """Coverage-dependent noise (``defences.b4b_sigma``).

    Attributes:
        bits: hyperplanes of the hash; there are 2**bits buckets.
        lam: the curvature lambda; noise is at most of this order while coverage is small.
        alpha: deviation of the noise when the share of buckets touched is ``beta``.
        beta: that share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(12, ge=1, le=20)
    lam: float = Field(1e-6, gt=0)
    alpha: float = Field(1.0, gt=0)
    beta: float = Field(0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.alpha <= self.lam:
            raise ValueError("'alpha' must be above 'lam', or the noise would not grow")
        return self


class DefenceConfig(BaseModel):
    """What is done to answers, in this order; nothing by default.

    Attributes:
        b4b: noise that grows with how much of the space an account has seen.
        noise: deviation of Gaussian noise that every answer gets.
        rotate: an orthogonal map of each account's own.
        normalise: answers of length 1.
        top_k: keep the k largest coordinates by absolute value, the others are 0.
        rounding: decimals that are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    b4b: B4bConfig | None = None
    noise: float | None = Field(None, gt=0, allow_inf_nan=False)
    rotate: bool = False
    normalise: bool = False
    top_k: int | None = Field(None, ge=1)
    rounding: int | None = Field(None, ge=0, le=10)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the defences that are on, in the order of their use."""
        return tuple(name for name in type(self).model_fields if self._is_on(name))

    def _is_on(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False


class AccountConfig(BaseModel):
    """One customer.

    Attributes:
        name: as shown in logs; never the key.
        sha256: SHA-256 (hex) of the key; the key itself is nowhere kept.
        images_per_second: refill of the bucket of images; None sets no rate.
        burst: size of that bucket, and the largest request while a rate is set.
        requests_per_second: refill of the bucket of requests, which refused ones drain too;
            the bucket holds two seconds' worth; None sets no rate.
        quota: images in each period; None sets no quota.
        period: seconds; periods are counted from the epoch (1970-01-01 UTC).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    images_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst: int = Field(1000, ge=1)
    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    quota: int | None = Field(None, ge=0)
    period: int = Field(2_592_000, ge=1)


class AccountsConfig(BaseModel):
    """The accounts file: every customer with a name and a key of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accounts: tuple[AccountConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(account, what) for account in self.accounts]
            if len(set(values)) < len(values):
                raise ValueError(f"two accounts have the same {what}; each needs its own")
        return self


class ServeConfig(BaseModel):
    """Where the service listens and what it accepts.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        batch: images a pass of the encoder; every pass has this size or a smaller one whose
            answers were measured to be the same bit for bit (``steady.py``).
        workers: passes at once, each with an equal share of torch's threads; None takes 2 on a
            CPU and 1 on a GPU. Two keep the cores busy while one waits for its threads; one
            answers a lone small request sooner.
        wait_ms: how long a pass that is not full waits for more images.
        queue: images that may wait for the encoder; beyond it requests are answered 503.
        queue_bytes: bytes of decoded pixels that may wait; beyond it 503.
        max_requests: requests in work at once; beyond it 503.
        max_buffered: bytes of bodies that are read or in work at once; beyond it 503.
        max_images: images a request.
        max_bytes: bytes of a request's body.
        max_pixels: pixels of one image, read from its header before anything is decoded; None
            takes 2048 x 2048 for an encoder that resizes images, else 512 x 512.
        max_request_pixels: pixels of all images of a request together.
        read_seconds: for a request's body to arrive; then 408.
        shutdown_seconds: that started requests are given when the service is told to stop.
        replay_bytes: memory for answers that are kept for repeated ``Idempotency-Key``s.
        replay_seconds: how long they are kept.
        defence: what is done to the answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    batch: int = Field(64, ge=1, le=4096)
    workers: int | None = Field(None, ge=1, le=64)
    wait_ms: float = Field(2.0, ge=0, le=1000)
    queue: int = Field(4096, ge=1)
    queue_bytes: int = Field(512 * 2**20, ge=1024)
    max_requests: int = Field(64, ge=1)
    max_buffered: int = Field(256 * 2**20, ge=1024)
    max_images: int = Field(512, ge=1)
    max_bytes: int = Field(16 * 2**20, ge=1024)
    max_pixels: int | None = Field(None, ge=4)
    max_request_pixels: int = Field(32 * 2**20, ge=4)
    read_seconds: float = Field(30.0, gt=0)
    shutdown_seconds: int = Field(30, ge=0)
    replay_bytes: int = Field(64 * 2**20, ge=0)
    replay_seconds: float = Field(3600.0, ge=0)
    defence: DefenceConfig = DefenceConfig()

    def for_encoder(self, *, resizes: bool) -> ServeConfig:
        """Return these settings with ``max_pixels`` set for an encoder that resizes or not."""
        chosen = self.max_pixels or (2048 * 2048 if resizes else 512 * 512)
        return self.model_copy(update={"max_pixels": chosen})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.queue < self.max_images:
            raise ValueError(
                f"'queue' ({self.queue}) must hold the largest request, 'max_images' "
                f"({self.max_images})"
            )
        if self.queue_bytes < 3 * self.max_request_pixels:
            raise ValueError(
                f"'queue_bytes' ({self.queue_bytes}) must hold the largest request, three times "
                f"'max_request_pixels' ({self.max_request_pixels})"
            )
        if self.max_buffered < self.max_bytes:
            raise ValueError(
                f"'max_buffered' ({self.max_buffered}) must hold the largest body, 'max_bytes' "
                f"({self.max_bytes})"
            )
        return self
