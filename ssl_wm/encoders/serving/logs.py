"""What the service tells of itself: one JSON line a request, and Prometheus metrics.

Neither holds image contents, keys or the names of accounts in the metrics, which anyone may
read who can reach the port.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOG = logging.getLogger("ssl_wm.serve")


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, and what ``log_event`` was given."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return json.dumps({**head, **fields}, ensure_ascii=False, default=str)


def log_event(event: str, *, level: int = logging.INFO, trace: bool = False, **fields: Any) -> None:
    """Log ``event`` with ``fields``; ``trace`` adds the current exception's traceback."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=trace)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "ssl_wm_requests", "Requests by HTTP status.", ["status"], registry=registry
        )
        self.refused = Counter(
            "ssl_wm_refused", "Refused requests by reason.", ["reason"], registry=registry
        )
        self.images = Counter("ssl_wm_images", "Images embedded and billed.", registry=registry)
        self.replayed = Counter(
            "ssl_wm_replayed_images", "Images answered again from memory.", registry=registry
        )
        self.seconds = Histogram(
            "ssl_wm_request_seconds", "Seconds from a request's head to its answer.",
            registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "ssl_wm_batch_images", "Images in a pass of the encoder.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512), registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "ssl_wm_images_waiting", "Images that wait for the encoder.", registry=registry
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
