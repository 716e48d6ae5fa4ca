"""Key files: the owner's secret key, its public commitment, and revealed sub-keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_wm.errors import KeyFileError, SslWmError
from ssl_wm.files import read_json, write_json
from ssl_wm.watermark.key import SECRET_BYTES, RevealedKey, WatermarkKey
from ssl_wm.watermark.open_key import OpenKey
from ssl_wm.watermark.subkeys import Leaf
from ssl_wm.watermark.terms import read_terms

FORMAT, VERSION = "ssl-wm-key", 2
COMMITMENT_FORMAT, REVEALED_FORMAT = "ssl-wm-commitment", "ssl-wm-revealed-key"
_DAMAGE = (
    KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, SslWmError
)  # fmt: skip


def save_key(key: WatermarkKey, path: Path) -> None:
    """Write the key (secret included) to ``path`` with mode 0600."""
    chosen = {} if key.chosen is None else {"chosen": list(key.chosen)}
    write_json(path, {**_head(FORMAT, key), **chosen, "secret": key.secret.hex()}, mode=0o600)


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
            f"key {path} has format version {whole.get('version')!r}; this program reads version "
            f"{VERSION}. Use the ssl-wm that made it"
        )
    try:
        key = WatermarkKey(
            _secret(whole["secret"]), read_terms(whole["terms"]), _text(whole["beacon"]),
            _chosen(whole.get("chosen")),
        )  # fmt: skip
        same = _is_bound(key, whole)
    except _DAMAGE as error:
        raise KeyFileError(f"key {path} is damaged: {_of(error)}. Use the original file") from error
    if not same:
        raise KeyFileError(
            f"key {path} was changed after it was made: its content does not match its "
            "commitment, or its beacon its salt. Use the original file"
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

    The beacon is only checked to be the one that was written: whether it is what was published
    is for the reader to compare.

    Raises:
        KeyFileError: the content is damaged, of another version, or a proof fails.
    """
    if not isinstance(content, Mapping):
        raise KeyFileError(f"these are no revealed sub-keys but a {type(content).__name__}")
    if content.get("format") != REVEALED_FORMAT or content.get("version") != VERSION:
        raise KeyFileError(
            f"these are no revealed sub-keys of version {VERSION}: format "
            f"{content.get('format')!r}, version {content.get('version')!r}"
        )
    try:
        leaves, paths = [], []
        for leaf in content["leaves"]:
            a, b, target = (int(place) for place in leaf["places"])
            leaves.append(Leaf(int(leaf["index"]), (a, b, target), _secret(leaf["secret"])))
            paths.append(tuple((str(side), bytes.fromhex(text)) for side, text in leaf["path"]))
        key = RevealedKey(
            read_terms(content["terms"]),
            bytes.fromhex(content["root"]),
            tuple(leaves),
            tuple(paths),
            _text(content["beacon"]),
        )
        same = _is_bound(key, content)
    except KeyFileError:
        raise
    except _DAMAGE as error:
        raise KeyFileError(
            f"the revealed sub-keys are damaged: {_of(error)}. Ask for the original file"
        ) from error
    if not same:
        raise KeyFileError(
            "the revealed sub-keys do not match the commitment that they name, or their beacon "
            "does not match its salt. Ask for the original file"
        )
    return key


def _head(form: str, key: OpenKey) -> dict[str, Any]:
    return {
        "format": form,
        "version": VERSION,
        "commitment": key.commitment,
        "beacon": key.beacon,
        "salt": _salt(key),
        "terms": key.terms.content,
    }


def _is_bound(key: OpenKey, content: Mapping[str, Any]) -> bool:
    return key.commitment == content["commitment"] and _salt(key) == content.get("salt")


def _salt(key: OpenKey) -> str | None:
    """Return what shows damage to the beacon, which the commitment, being older, cannot."""
    return key.salt.hex() if key.beacon else None


def _secret(text: str) -> bytes:
    secret = bytes.fromhex(text)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {len(secret)} bytes instead of {SECRET_BYTES}")
    return secret


def _chosen(indices: object) -> tuple[int, ...] | None:
    if indices is None:
        return None
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):
        raise TypeError("the chosen sub-keys are not named by their numbers")
    return tuple(indices)


def _of(error: BaseException) -> str:
    """Return an error's name and message on one line."""
    return " ".join(f"{type(error).__name__} {error}".split())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("the beacon is not text")
    return value
