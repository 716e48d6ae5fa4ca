"""What every request passes: a limit on requests at once, a line of log, counts and times."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from ssl_wm.encoders.serving.logs import log_event
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.service import Service

ROUTE = "/v1/embeddings"
_BODY_HEADS = (b"content-length", b"transfer-encoding")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def as_json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return ``value`` as a JSON answer."""
    return Response(
        json.dumps(value), status_code=status, media_type="application/json", headers=headers
    )


async def refuse(request: Request, error: Exception) -> Response:
    """Return the answer that tells why a request is refused."""
    if isinstance(error, HTTPException):
        error = RefusedError(error.status_code, "http", str(error.detail))
    if not isinstance(error, RefusedError):
        raise error
    request.state.reason = error.kind
    return as_json(error.body(), status=error.status, headers=error.headers())


class Gate:
    """Counts, times and logs every request, and refuses those beyond the limit.

    A connection whose client still sends when it is answered is closed.

    Args:
        app: the application behind it.
        service: limits and metrics.
    """

    def __init__(self, app: App, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, began, status = self._service, time.perf_counter(), 500
        name = uuid.uuid4().hex[:16]

        unread = any(head in _BODY_HEADS for head, _ in scope["headers"])

        async def take() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", name.encode())]
                added += [(b"connection", b"close")] if unread else []
                message["headers"] = [*message["headers"], *added]
            await send(message)

        state = scope.setdefault("state", {})
        heavy = scope["path"] == ROUTE
        service.in_work += heavy
        try:
            if heavy and service.in_work > service.config.max_requests:
                error = RefusedError(503, "busy", "too many requests at once", wait=1.0)
                request = Request(scope, take)
                response = await refuse(request, error)
                await response(scope, take, tell)
            else:
                await self._app(scope, take, tell)
        finally:
            service.in_work -= heavy
            seconds = time.perf_counter() - began
            self._note(scope, state, name=name, status=status, seconds=seconds)

    def _note(
        self, scope: Scope, state: dict[str, Any], *, name: str, status: int, seconds: float
    ) -> None:
        metrics = self._service.metrics
        metrics.requests.labels(str(status)).inc()
        reason = state.get("reason")
        if reason:
            metrics.refused.labels(reason).inc()
        if scope["path"] == ROUTE:
            metrics.seconds.observe(seconds)
        facts = {key: state[key] for key in ("account", "images", "reason") if key in state}
        log_event(
            "request", id=name, method=scope["method"], path=scope["path"][:200], status=status,
            seconds=round(seconds, 4), **facts,
        )  # fmt: skip
