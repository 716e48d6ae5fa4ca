"""How a service is asked and how its answers read: one small class for each kind of service.

A service of another kind needs a class with ``build_request`` and ``parse_response``:

    class Mine(Adapter):
        path = "/embed"

        def build_request(self, images):
            return Request({"pictures": [base64.b64encode(i).decode() for i in images]})

        def parse_response(self, body, *, count):
            return Answer(torch.tensor(body["vectors"]))

    encoder = RemoteEncoder("https://host", adapter=Mine())
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_wm.encoders.asking.errors import RemoteError


@dataclass(frozen=True)
class Request:
    """What is sent: a JSON value, and headers besides the key and the type."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came: embeddings (N, D) float32 in the order of the images, and the model's name."""

    rows: Tensor
    model: str | None = None


class Adapter(ABC):
    """One kind of service.

    Attributes:
        path: put after an address that has no path of its own.
    """

    path: str = ""

    @abstractmethod
    def build_request(self, images: Sequence[bytes]) -> Request:
        """Return the request for PNG files ``images``; the same images give the same request."""

    @abstractmethod
    def parse_response(self, body: Any, *, count: int) -> Answer:
        """Return the answer in the JSON value ``body`` to ``count`` images.

        Raises:
            RemoteError: it holds something else. LookupError, TypeError and ValueError are
                taken for that too.
        """

    def is_too_large(self, status: int, body: Any) -> bool:
        """Return whether a refusal means that fewer images at a time may pass."""
        return status == 413


class OwnAdapter(Adapter):
    """The service that ``ssl-wm serve`` runs; embeddings come as float32 bytes."""

    path = "/v1/embeddings"

    def build_request(self, images: Sequence[bytes]) -> Request:
        """Return ``{"images": [base64, ...], "encoding_format": "base64"}``."""
        texts = [base64.b64encode(image).decode() for image in images]
        return Request({"images": texts, "encoding_format": "base64"})

    def parse_response(self, body: Any, *, count: int) -> Answer:
        """Return the embeddings by their ``index``, and the model's name."""
        return Answer(rows_by_index(body["data"], count=count), str(body["model"]))


class OpenAIAdapter(Adapter):
    """Services in the style of OpenAI's ``/v1/embeddings`` that take images as data URLs.

    Args:
        model: the model's name, sent with each request.
        encoding_format: "float" or "base64" (little-endian float32).
    """

    path = "/v1/embeddings"

    def __init__(self, model: str, *, encoding_format: str = "float") -> None:
        self._model = model
        self._encoding = encoding_format

    def build_request(self, images: Sequence[bytes]) -> Request:
        """Return ``{"model": ..., "input": [data URL, ...], "encoding_format": ...}``."""
        texts = [f"data:image/png;base64,{base64.b64encode(i).decode()}" for i in images]
        body = {"model": self._model, "input": texts, "encoding_format": self._encoding}
        return Request(body)

    def parse_response(self, body: Any, *, count: int) -> Answer:
        """Return the embeddings by their ``index``, and the model's name if it is told."""
        model = body.get("model")
        return Answer(rows_by_index(body["data"], count=count), model and str(model))


def rows_by_index(data: Any, *, count: int) -> Tensor:
    """Return ``[{"index": i, "embedding": numbers or base64}, ...]`` as (count, D) float32.

    Raises:
        RemoteError: entries are missing, come twice or differ in width.
    """
    if len(data) != count:
        raise RemoteError(
            f"the service answered {len(data)} embeddings for {count} images; one each is expected"
        )
    rows: dict[int, Tensor] = {}
    for place, item in enumerate(data):
        rows[int(item.get("index", place))] = _row(item["embedding"])
    if sorted(rows) != list(range(count)):
        raise RemoteError("the service answered some images twice and others not at all")
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        raise RemoteError(f"the service answered embeddings of widths {sorted(widths)} in one call")
    return torch.stack([rows[place] for place in range(count)])


def _row(value: Any) -> Tensor:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except binascii.Error:
            raise RemoteError("an embedding is neither a list of numbers nor base64") from None
        return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
    return torch.tensor([float(number) for number in value], dtype=torch.float32)
