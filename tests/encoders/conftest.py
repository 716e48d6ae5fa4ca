"""A service on loopback for the tests, with faults on demand."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from ssl_wm.encoders.serve import Service, serving
from ssl_wm.encoders.serving.settings import AccountConfig, AccountsConfig, ServeConfig

KEYS = {"alice": "alice-key", "bob": "bob-key"}


def accounts(**settings: object) -> AccountsConfig:
    """Return Alice, with ``settings``, and Bob, without any."""
    made = [
        AccountConfig(
            name=name, sha256=hashlib.sha256(key.encode()).hexdigest(),
            **(settings if name == "alice" else {}),
        )
        for name, key in KEYS.items()
    ]  # fmt: skip
    return AccountsConfig(accounts=tuple(made))


def make_service(encoder, *, account: dict | None = None, **settings: object) -> Service:
    """Return a service of ``encoder``; ``account`` limits Alice."""
    limits = ServeConfig(**{"batch": 16, "wait_ms": 1.0, **settings})
    known = accounts(**(account or {}))
    return Service(encoder, config=limits, accounts=known, secret=b"s" * 32)


@contextmanager
def running(encoder, *, wrap: Callable | None = None, **settings: object):
    """Serve ``encoder`` and yield its address, the service and a client of Alice's."""
    service = make_service(encoder, **settings)
    with serving(service, wrap=wrap) as url:
        headers = {"Authorization": f"Bearer {KEYS['alice']}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
            yield SimpleNamespace(url=url, service=service, client=client)


class Faults:
    """ASGI middleware that spoils what ``plan(number)`` names, for the number-th request.

    "429" and "500" come before the service is asked; "lost" closes the connection after it has
    answered, "broken" before it is asked; "slow" answers after ``seconds``.
    """

    def __init__(self, app, plan: Callable[[int], str | None], *, seconds: float = 1.0) -> None:
        self.app, self.plan, self.seconds = app, plan, seconds
        self.number = 0
        self.made: list[str] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        self.number += 1
        fault = self.plan(self.number)
        if fault is None:
            return await self.app(scope, receive, send)
        self.made.append(fault)
        if fault in ("429", "500"):
            while (await receive()).get("more_body"):
                pass
            heads = [(b"retry-after-ms", b"20")] if fault == "429" else []
            heads.append((b"content-length", b"0"))
            await send({"type": "http.response.start", "status": int(fault), "headers": heads})
            return await send({"type": "http.response.body", "body": b""})
        if fault == "slow":
            await asyncio.sleep(self.seconds)
            return await self.app(scope, receive, send)
        if fault == "lost":

            async def nowhere(_):
                return None

            await self.app(scope, receive, nowhere)
        heads = [(b"content-length", b"9")]  # 9 bytes are told and none come: closed
        await send({"type": "http.response.start", "status": 200, "headers": heads})
        return await send({"type": "http.response.body", "body": b""})


def png(pixels: np.ndarray | None = None, *, side: int = 8, seed: int = 0, kind: str = "PNG"):
    """Return an image file of ``pixels`` (H, W, 3) or of random ones."""
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def web() -> SimpleNamespace:
    """Return the makers above."""
    return SimpleNamespace(
        running=running, make_service=make_service, accounts=accounts, Faults=Faults, png=png,
        keys=KEYS, dumps=json.dumps,
    )  # fmt: skip
