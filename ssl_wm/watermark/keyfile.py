"""Key files: the owner's secret key, its public commitment, and revealed sub-keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_wm.errors import KeyFileError, SslWmError
from ssl_wm.files import read_json, write_json
from ssl_wm.watermark.key import Leaf, OpenKey, RevealedKey, WatermarkKey
from ssl_wm.watermark.terms import read_terms

FORMAT, VERSION = "ssl-wm-key", 2
COMMITMENT_FORMAT, REVEALED_FORMAT = "ssl-wm-commitment", "ssl-wm-revealed-key"
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, SslWmError)


def save_key(key: WatermarkKey, path: Path) -> None:
    """Write the key (secret included) to ``path`` with mode 0600."""
    write_json(path, {**_head(FORMAT, key), "secret": key.secret.hex()}, mode=0o600)


def save_commitment(key: OpenKey, path: Path) -> None:
    """Write what may be published before a dispute: the statement and its SHA-256."""
    whole = {
        "format": COMMITMENT_FORMAT,
        "version": VERSION,
        "commitment": key.commitment,
        "statement": key.statement,
    }
    write_json(path, whole)


def load_key(path: Path) -> WatermarkKey:
    """Return the key in ``path``.

    Raises:
        KeyFileError: the file is missing, damaged, changed by hand or of another version.
    """
    whole = read_json(path, error=KeyFileError, what="key")
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise KeyFileError(f"{path} is not a watermark key; make one with 'ssl-wm keygen'")
    if whole.get("version") != VERSION:
        raise KeyFileError(
            f"key {path} has format version {whole.get('version')}; this program reads version "
            f"{VERSION}. Use the ssl-wm that made it"
        )
    try:
        secret = bytes.fromhex(whole["secret"])
        if len(secret) != 32:
            raise ValueError("the secret is not 32 bytes")
        key = WatermarkKey(secret, read_terms(whole["terms"]), _text(whole["beacon"]))
        commitment = key.commitment
    except _DAMAGE as error:
        raise KeyFileError(f"key {path} is damaged: {type(error).__name__} {error}") from error
    if commitment != whole.get("commitment"):
        raise KeyFileError(
            f"key {path} was changed after it was made: its content does not match its "
            "commitment. Use the original file"
        )
    return key


def revealed_content(key: RevealedKey) -> dict[str, Any]:
    """Return revealed sub-keys as JSON-ready data; nothing of the others is in it."""
    leaves = [
        {
            "index": leaf.index,
            "places": list(leaf.places),
            "secret": leaf.secret.hex(),
            "path": [[side, sibling.hex()] for side, sibling in path],
        }
        for leaf, path in zip(key.leaves, key.paths, strict=True)
    ]
    return {**_head(REVEALED_FORMAT, key), "root": key.root.hex(), "leaves": leaves}


def read_revealed(content: Mapping[str, Any]) -> RevealedKey:
    """Return the sub-keys in ``content`` after checking that the commitment binds them.

    Raises:
        KeyFileError: the content is damaged, of another version, or a proof fails.
    """
    if content.get("format") != REVEALED_FORMAT or content.get("version") != VERSION:
        raise KeyFileError(
            f"these are no revealed sub-keys of version {VERSION}: format "
            f"{content.get('format')!r}, version {content.get('version')!r}"
        )
    try:
        leaves, paths = [], []
        for leaf in content["leaves"]:
            a, b, target = (int(place) for place in leaf["places"])
            leaves.append(Leaf(int(leaf["index"]), (a, b, target), bytes.fromhex(leaf["secret"])))
            paths.append(tuple((str(side), bytes.fromhex(text)) for side, text in leaf["path"]))
        key = RevealedKey(
            read_terms(content["terms"]),
            bytes.fromhex(content["root"]),
            tuple(leaves),
            tuple(paths),
            _text(content["beacon"]),
        )
        commitment = key.commitment
    except KeyFileError:
        raise
    except _DAMAGE as error:
        raise KeyFileError(
            f"the revealed sub-keys are damaged: {type(error).__name__} {error}"
        ) from error
    if commitment != content["commitment"]:
        raise KeyFileError("the revealed sub-keys do not match the commitment they name")
    return key


def _head(form: str, key: OpenKey) -> dict[str, Any]:
    return {
        "format": form,
        "version": VERSION,
        "commitment": key.commitment,
        "beacon": key.beacon,
        "terms": key.terms.content,
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("the beacon is not text")
    return value
