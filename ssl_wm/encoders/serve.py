"""Serve an encoder over HTTP until told to stop; extra ``[serve]`` (FastAPI, uvicorn).

``Service`` answers, ``create_app`` gives its routes, ``serve`` runs them in the foreground and
``serving`` in a thread, for tests and measurements.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ssl_wm.encoders.serving.app import create_app
from ssl_wm.encoders.serving.gate import App
from ssl_wm.encoders.serving.logs import LOG, JsonLines, log_event
from ssl_wm.encoders.serving.service import Service
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.files import read_json, write_json

__all__ = ["Service", "create_app", "serve", "serving"]


def serve(
    service: Service, *, usage: Path | None = None, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer requests until SIGTERM or SIGINT; started requests are finished first.

    One JSON line a request goes to standard error.

    Args:
        service: what answers, where and within which limits.
        usage: file that keeps what accounts have used over restarts.
        on_ready: called with the address once requests are taken.

    Raises:
        EncoderError: the port cannot be had.
        ConfigError: the usage file is damaged.
    """
    save = keep_usage(service, usage) if usage is not None else None
    app = create_app(service, save=save)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    before, spread = LOG.level, LOG.propagate
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs bytes of bodies
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        with _listen(service.config.host, service.config.port) as listener:
            url = _url(service.config.host, listener)
            server = _server(app, service)
            with _signals(server):
                log_event("listening", url=url, model=service.model, width=service.width)
                if on_ready is not None:
                    on_ready(url)
                server.run(sockets=[listener])
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        LOG.propagate = spread


@contextlib.contextmanager
def serving(service: Service, *, wrap: Callable[[App], App] | None = None) -> Iterator[str]:
    """Run ``service`` in a thread on a free loopback port; yields its address.

    Args:
        service: what answers; ``host`` and ``port`` of its settings are not used.
        wrap: puts ASGI middleware around the application.

    Raises:
        EncoderError: it did not start.
    """
    app: Any = create_app(service)
    with _listen("127.0.0.1", 0) as listener:
        server = _server(wrap(app) if wrap else app, service)
        thread = threading.Thread(target=partial(server.run, sockets=[listener]), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise EncoderError("the service did not start")
                time.sleep(0.005)
            yield _url("127.0.0.1", listener)
        finally:
            server.should_exit = True
            thread.join()


def keep_usage(service: Service, path: Path) -> Callable[[], None]:
    """Restore the accounts' usage from ``path`` and return a function that saves it there.

    Raises:
        ConfigError: the file is damaged.
    """
    accounts = service.accounts
    if path.exists():
        state = read_json(path, error=ConfigError, what="usage file")
        try:
            accounts.restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"usage file {path} is damaged ({type(error).__name__}); mend it, or move it away "
                "to start counting anew"
            ) from error
    saved = accounts.state()

    def save() -> None:
        nonlocal saved
        state = accounts.state()
        if state != saved or not path.exists():
            write_json(path, state, mode=0o600)
            saved = state

    return save


def _server(app: Any, service: Service) -> uvicorn.Server:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="on",
        timeout_graceful_shutdown=service.config.shutdown_seconds, backlog=128,
    )  # fmt: skip
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; asyncio sends without delay only where TCP is named."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise EncoderError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}; "
            "choose another --host or --port"
        ) from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """Have SIGTERM and SIGINT end the server well, and the process with it, from now on."""

    def stop(*_: object) -> None:
        server.should_exit = True

    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
