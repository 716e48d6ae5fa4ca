"""What ``ssl-wm serve`` does: read settings, open the encoder, answer until told to stop."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssl_wm.config import explain, merge, parse, read_yaml
from ssl_wm.console import say
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.serving.settings import (
    AccountConfig,
    AccountsConfig,
    DefenceConfig,
    ServeConfig,
)
from ssl_wm.errors import ConfigError, choose

KEY_VARIABLE = "SSL_WM_API_KEY"
SECRET_BYTES = 32


def serve(
    encoder: str,
    *,
    flags: Mapping[str, Any],
    defences: Sequence[str],
    config: Path | None,
    keys: Path | None,
    secret: Path | None,
    usage: Path | None,
) -> None:
    """Serve ``encoder`` until SIGTERM or SIGINT.

    Raises:
        ConfigError: the extra is missing, or a setting or a file is wrong.
        EncoderError: the encoder cannot be loaded or the port cannot be had.
    """
    try:
        from ssl_wm.encoders import serve as service
    except ModuleNotFoundError as error:
        if str(error.name).startswith("ssl_wm"):
            raise
        raise ConfigError(
            f"serving needs {error.name}; install the extra with: pip install 'ssl-wm[serve]'"
        ) from error
    settings = read_settings(config, flags, defences)
    seed = read_secret(secret) if secret is not None else secrets.token_bytes(SECRET_BYTES)
    accounts = read_accounts(keys) if keys is not None else None
    opened = load_encoder(encoder)
    made = service.Service(
        opened, config=settings, accounts=accounts or single_account(), secret=seed
    )
    on = ", ".join(settings.defence.active) or "none"
    service.serve(
        made,
        usage=usage,
        on_ready=lambda url: say(f"serving {made.model} at {url}, defences: {on}"),
    )


def read_settings(
    config: Path | None, flags: Mapping[str, Any], defences: Sequence[str]
) -> ServeConfig:
    """Return the settings of a YAML file with flags on top.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    data = read_yaml(config) if config is not None else {}
    given = {f"defence.{name}": value for name, value in map(read_defence, defences)}
    return parse(ServeConfig, merge(data, {**flags, **given}), source=str(config or "settings"))


def read_defence(text: str) -> tuple[str, Any]:
    """Return the setting and the value that ``--defence`` names.

    Raises:
        ConfigError: there is no such defence, or its value is missing or too much.

    >>> read_defence("top-k=16")
    ('top_k', '16')
    """
    name, _, value = text.partition("=")
    known = [each.replace("_", "-") for each in DefenceConfig.model_fields]
    field = choose(name, known, what="defence").replace("-", "_")
    if field in ("rotate", "normalise", "b4b"):
        if value:
            raise ConfigError(f"--defence {name} takes no value; its settings go into --config")
        return field, {} if field == "b4b" else True
    if not value:
        raise ConfigError(f"--defence {name} needs a value, e.g. {name}=2")
    return field, value


def read_accounts(path: Path) -> AccountsConfig:
    """Return the accounts in a YAML file.

    Raises:
        ConfigError: the file is missing or a setting in it is wrong.
    """
    try:
        return AccountsConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{path}: {explain(error, AccountsConfig)}") from None
        where = ".".join(str(part) for part in first["loc"])  # not the value: it may be a key
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {f'setting {where}: ' if where else ''}{said}") from None


def single_account() -> AccountsConfig:
    """Return one account, "default", with the key of the environment or a random one, shown."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        key = secrets.token_urlsafe(32)
        say(f"no --keys and no {KEY_VARIABLE}: the key of this run is {key}")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return AccountsConfig(accounts=(AccountConfig(name="default", sha256=digest),))


def read_secret(path: Path) -> bytes:
    """Return the bytes in ``path``.

    Raises:
        ConfigError: it cannot be read or holds fewer than 32 bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read --secret {path}: {error.strerror}") from error
    if len(data) < SECRET_BYTES:
        raise ConfigError(
            f"--secret {path} holds {len(data)} bytes; at least {SECRET_BYTES} random ones are "
            "needed"
        )
    return data
