"""The HTTP routes of the embedding API (FastAPI)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pybase64
from fastapi import FastAPI, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from ssl_wm.encoders.serving.accounts import Account
from ssl_wm.encoders.serving.bodies import LimitedBody
from ssl_wm.encoders.serving.decoding import Asked, check_count, parse_encoding, parse_json
from ssl_wm.encoders.serving.gate import ROUTE, Gate, as_json, refuse
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.service import Service, failure

_NAME = re.compile(r"[\x21-\x7e]{1,128}")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "contentEncoding": "base64"},
                        },
                        "encoding_format": {"enum": ["float", "base64"]},
                    },
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
        },
    }
}


def create_app(
    service: Service, *, save: Callable[[], None] | None = None, every: float = 5.0
) -> FastAPI:
    """Return the ASGI application of ``service``.

    Args:
        service: what answers.
        save: keeps the accounts' usage; called every few seconds and at the end.
        every: seconds between two calls of ``save``.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        saving = asyncio.create_task(_save_often(save, every)) if save else None
        try:
            yield
        finally:
            await service.close()
            if saving is not None and save is not None:
                saving.cancel()
                await asyncio.to_thread(save)

    app = FastAPI(title="ssl-wm embeddings", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(RefusedError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(ROUTE, openapi_extra=_BODY, response_class=Response)
    async def embeddings(request: Request) -> Response:
        """Return the embeddings of PNG and JPEG images, in order."""
        return await _embeddings(service, request)

    @app.get("/v1/usage", response_class=Response)
    async def usage(request: Request) -> Response:
        """Return what the asking account has used, and of no other."""
        return as_json(authenticate(service, request).usage())

    @app.get("/healthz", response_class=Response)
    async def healthz() -> Response:
        """Return whether the service takes requests, and what it serves."""
        status = "stopping" if service.stopping else "ok"
        facts = {"status": status, "model": service.model, "width": service.width}
        return as_json(facts, status=503 if service.stopping else 200)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        service.metrics.waiting.set(service.batcher.waiting)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _save_often(save: Callable[[], None], every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(save)


def authenticate(service: Service, request: Request) -> Account:
    """Return the account whose key the request carries.

    Raises:
        RefusedError: 401, there is no key or an unknown one.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    account = service.accounts.find(key.strip()) if scheme.lower() == "bearer" else None
    if account is None:
        raise RefusedError(
            401, "unauthorized", "send a valid key in the header 'Authorization: Bearer KEY'"
        )
    request.state.account = account.name
    return account


async def _embeddings(service: Service, request: Request) -> Response:
    body = LimitedBody(request.receive, limits=service.config, buffered=service.buffered)
    try:
        try:
            account = authenticate(service, request)
            account.admit_request()
            return await _answer(service, request, account, body)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            refused = failure(error)
            await body.drain(seconds=1.0 if refused.status == 401 else None)
            raise refused from None
    finally:
        body.close()


async def _answer(
    service: Service, request: Request, account: Account, body: LimitedBody
) -> Response:
    loop = asyncio.get_running_loop()
    name = _replay_name(request)
    asked = await _read(service, Request(request.scope, body), body)
    content = await loop.run_in_executor(service.pool, _digest, asked.files)
    rows, again = service.start(account, asked.files, name=name, content=content)
    answer = await asyncio.shield(rows)
    account.requests += 1
    count = len(asked.files)
    request.state.images = count
    if again:
        account.replayed += count
        service.metrics.replayed.inc(count)
    data = await loop.run_in_executor(
        service.pool, render, answer, asked.encoding, service.model, 0 if again else count
    )
    headers = {"Idempotency-Replayed": "true"} if again else None
    return Response(data, media_type="application/json", headers=headers)


def _replay_name(request: Request) -> str | None:
    name: str | None = request.headers.get("idempotency-key")
    if name is not None and not _NAME.fullmatch(name):
        raise RefusedError(
            422, "idempotency_key", "an Idempotency-Key is 1 to 128 visible ASCII characters"
        )
    return name


async def _read(service: Service, request: Request, body: LimitedBody) -> Asked:
    """Return what the request asks.

    Raises:
        RefusedError: 408, 413, 415, 422 or 503.
    """
    limits = service.config
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "unsupported", "send the body without Content-Encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 15 or int(declared) > limits.max_bytes):
        raise body.too_long()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(service, request)
    if kind != "application/json":
        raise RefusedError(415, "unsupported", "send application/json or multipart/form-data")
    data = await request.body()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.pool, lambda: parse_json(data, limits=limits))


async def _read_form(service: Service, request: Request) -> Asked:
    limits = service.config
    try:
        form = await request.form(max_files=limits.max_images + 1, max_fields=8)
    except HTTPException as error:
        many = "too many files" in str(error.detail).lower()
        check_count(limits.max_images + 1 if many else 1, limits=limits)
        raise RefusedError(
            422, "unusable", "the form cannot be read; send files as 'images'"
        ) from None
    try:
        files, encoding = [], parse_encoding("float")
        for field, value in form.multi_items():
            if field == "images" and isinstance(value, UploadFile):
                files.append(await value.read())
            elif field == "encoding_format":
                encoding = parse_encoding(value)
            elif field != "model":
                raise RefusedError(
                    422, "unusable", "a form holds files 'images' and the field 'encoding_format'"
                )
    finally:
        await form.close()
    check_count(len(files), limits=limits)
    return Asked(tuple(files), encoding)


def _digest(files: Sequence[bytes]) -> str:
    parts = (part for data in files for part in (len(data).to_bytes(8, "big"), data))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def render(rows: Tensor, encoding: str, model: str, billed: int) -> bytes:
    """Return the JSON answer for embeddings (N, D) float32.

    "float" writes numbers that read back as the same float32; "base64" the little-endian
    float32 bytes of each embedding.
    """
    items: list[Any] = list(rows.contiguous().numpy())
    if encoding == "base64":
        items = [pybase64.b64encode_as_string(row.astype("<f4").tobytes()) for row in items]
    data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(items)]
    facts = {"object": "list", "model": model, "width": rows.shape[1], "data": data}
    answer = {**facts, "usage": {"billed_images": billed}}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
