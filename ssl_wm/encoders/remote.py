"""An encoder behind HTTP, with the contract of a local one; extra ``[remote]`` (httpx).

``load_encoder("http://host:8000")`` gives it. Options follow a ``#``, which is never sent:
``https://host/v1/embeddings#cache=answers&batch=128&key_env=MY_KEY`` (``RemoteConfig``).

Images are sent as PNG files of their 8-bit pixels, losslessly; images with float pixels are
rounded to 8 bits first, as a photograph would be. No gradient flows through it. httpx does the
calls because it pools connections between threads and has a time-out for each phase of a call.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import ValidationError
from torch import Tensor, nn

from ssl_wm.encoders.asking.adapters import Adapter, Answer, OpenAIAdapter, OwnAdapter, Request
from ssl_wm.encoders.asking.asker import Asker, eight_bits
from ssl_wm.encoders.asking.calls import shown
from ssl_wm.encoders.asking.config import RemoteConfig, RemoteCounts
from ssl_wm.encoders.asking.errors import RemoteError
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.errors import ConfigError, EncoderError, choose

__all__ = [
    "Adapter", "Answer", "OpenAIAdapter", "OwnAdapter", "RemoteConfig", "RemoteCounts",
    "RemoteEncoder", "RemoteError", "Request", "open_remote",
]  # fmt: skip

UNTOUCHED = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=None)


class RemoteEncoder(Encoder):
    """A service as an encoder: (B, 3, H, W), uint8 or float in [0, 1] -> (B, D) float32.

    Nothing is sent before the first call.

    Args:
        url: the service's address; the adapter's path is added where it has none.
        config: how it is asked.
        adapter: for a service of another kind (``asking.adapters``).
        key: the key, where neither a variable nor a file holds it.

    Raises:
        EncoderError: the address is unusable.
        ConfigError: the key's file cannot be read, or an option is missing.
        OutputError: the cache folder cannot be written to.
    """

    def __init__(
        self,
        url: str,
        *,
        config: RemoteConfig | None = None,
        adapter: Adapter | None = None,
        key: str | None = None,
    ) -> None:
        given = config or RemoteConfig()
        chosen = adapter or _adapter(given)
        whole = _address(url, chosen)
        asker = Asker(whole, given, chosen, key=key or _read_key(given))
        super().__init__(
            _Remote(asker), arch=f"remote {shown(whole)}", preprocessing=UNTOUCHED,
            made={"stage": "remote encoder", "url": shown(whole), "reuse": given.reuse},
        )  # fmt: skip
        self._asker = asker
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the service's embeddings (B, D) of ``images`` (B, 3, H, W), in order.

        Raises:
            RemoteError: the service cannot be reached, refuses, or its answers are wrong in
                number, width or value, or come from another model than before.
            EncoderError: the images are not (B, 3, H, W).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise EncoderError(
                f"an encoder takes images (B, 3, H, W); got shape {tuple(images.shape)}"
            )
        return self._asker.ask(eight_bits(images))

    @property
    def counts(self) -> RemoteCounts:
        """Images and calls so far."""
        return self._asker.counts()

    def usage(self) -> dict[str, Any]:
        """Return what an ``ssl-wm serve`` says of this account: images billed, quota left.

        Raises:
            RemoteError: the service does not tell.
        """
        told = self._asker.caller.get("/v1/usage")
        if not isinstance(told, dict):
            raise RemoteError("the service's usage is not a JSON object")
        return told

    def close(self) -> None:
        """Close connections and the file of kept answers."""
        self._asker.close()


def open_remote(text: str) -> RemoteEncoder:
    """Return the encoder of an address with options after ``#``.

    Raises:
        EncoderError, ConfigError, OutputError: as in ``RemoteEncoder``.
    """
    url, _, fragment = text.partition("#")
    options = dict(parse_qsl(fragment, keep_blank_values=True))
    for name in options:
        choose(name, RemoteConfig.model_fields, what="option of a remote encoder")
    try:
        config = RemoteConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"option '{name}' of {shown(url)}: {first['msg']}") from None
    return RemoteEncoder(url, config=config)


class _Remote(nn.Module):
    """The service as a module without weights, for whatever looks at ``backbone``."""

    def __init__(self, asker: Asker) -> None:
        super().__init__()
        self._asker = asker

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D)."""
        return self._asker.ask(eight_bits(images))


def _adapter(config: RemoteConfig) -> Adapter:
    if config.adapter == "ssl-wm":
        return OwnAdapter()
    if config.model is None:
        raise ConfigError("the adapter 'openai' needs the model's name: add '&model=NAME'")
    return OpenAIAdapter(config.model)


def _address(url: str, adapter: Adapter) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EncoderError("a remote encoder's address is http://HOST:PORT or https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise EncoderError(
            "a remote encoder's address must hold no user or password; put the key into an "
            "environment variable or a file (options key_env and key_file)"
        )
    path = parts.path if parts.path not in ("", "/") else adapter.path
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _read_key(config: RemoteConfig) -> str | None:
    if config.key_file is None:
        return os.environ.get(config.key_env, "").strip() or None
    try:
        key = config.key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {config.key_file}: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"the key file {config.key_file} must hold one line, the key")
    return key
