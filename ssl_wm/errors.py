"""One error tree: every message says what was expected, what came and what to do.

The command line prints the message alone (no traceback) and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SslWmError(Exception):
    """Base of every error a user can cause or mend."""


class ConfigError(SslWmError):
    """A setting is unknown, missing or out of range."""


class DataError(SslWmError):
    """Images are missing, unreadable or not the ones that were expected."""


class EncoderError(SslWmError):
    """An encoder cannot be loaded or breaks the contract (B, 3, H, W) -> (B, D)."""


class KeyFileError(SslWmError):
    """A key file is damaged, of a newer format or made for other images."""


class OutputError(SslWmError):
    """A result cannot be written where it was asked for."""


class TrainingError(SslWmError):
    """Training met a non-finite loss or a collapsed encoder; the last good state is kept."""


class VerificationError(SslWmError):
    """A verdict cannot be reached with what was given."""


def choose(name: str, table: Iterable[str], *, what: str) -> str:
    """Return ``name`` when it is in ``table``; else raise, naming the nearest entry.

    Raises:
        ConfigError: ``name`` is not in ``table``.

    >>> choose("cosine", ["mse", "cosine"], what="attack")
    'cosine'
    >>> choose("cosin", ["mse", "cosine"], what="attack")
    Traceback (most recent call last):
    ...
    ssl_wm.errors.ConfigError: unknown attack 'cosin'; did you mean 'cosine'? Known: mse, cosine
    """
    names = list(table)
    if name in names:
        return name
    begun = [known for known in names if name and known.startswith(name)]
    near = begun or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise ConfigError(f"unknown {what} '{name}'{hint} Known: {', '.join(names)}")
