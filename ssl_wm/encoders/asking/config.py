"""How a service is asked, and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RemoteConfig(BaseModel):
    """How a service is asked.

    Attributes:
        cache: folder where answers are kept; None keeps them for this process alone.
        batch: images a call; halved, and remembered, when the service wants fewer.
        concurrency: calls at once.
        width: D that the embeddings must have.
        reuse: whether an image that was answered before is answered from what is kept. "no"
            sends every image every time (repeat-and-average).
        canary: after this many images the first one is sent again and its answer compared;
            0 never. Each is a call that is billed.
        timeout: seconds that the service may be silent.
        tries: tries of a call.
        backoff: longest first pause in seconds after a failure; each later one may be twice as
            long, up to 30.
        patience: seconds that the service may ask to wait.
        key_env: environment variable that holds the key.
        key_file: file that holds the key; it goes before the variable.
        adapter: kind of service.
        model: the model's name, for adapters that send one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Path | None = None
    batch: int = Field(64, ge=1)
    concurrency: int = Field(4, ge=1, le=256)
    width: int | None = Field(None, ge=1)
    reuse: bool = True
    canary: int = Field(0, ge=0)
    timeout: float = Field(60.0, gt=0)
    tries: int = Field(8, ge=1)
    backoff: float = Field(0.25, gt=0)
    patience: float = Field(300.0, ge=0)
    key_env: str = "SSL_WM_API_KEY"
    key_file: Path | None = None
    adapter: Literal["ssl-wm", "openai"] = "ssl-wm"
    model: str | None = None


@dataclass(frozen=True)
class RemoteCounts:
    """Images and calls; with a cache folder ``unique`` and ``repeated`` span all runs.

    Attributes:
        unique: different images that the service answered.
        repeated: images that it answered again (canaries, ``reuse=no``).
        kept: images of this process that were answered from what is kept.
        calls: calls of this process that were answered.
        retries: tries of this process that failed.
        doubtful: images in such tries; a service without ``Idempotency-Key`` may bill them.
        drifts: canaries whose answer had changed.
    """

    unique: int
    repeated: int
    kept: int
    calls: int
    retries: int
    doubtful: int
    drifts: int

    @property
    def billed(self) -> int:
        """Images that the service's owner charges for."""
        return self.unique + self.repeated
