"""The manifest of an evidence bundle: any byte, file or name that changed is named.

``manifest.json`` lists every other file with its size and SHA-256. Its own ``seal`` is the
SHA-256 of the rest of it (sorted keys, no spaces), so a change in the manifest shows too. The
seal says nothing of who made the bundle or when: whoever holds one can make another. Publish
or notarise it to fix the day.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_wm.errors import SslWmError, VerificationError
from ssl_wm.files import canonical_json, sha256_bytes, sha256_file, write_bytes

FORMAT, VERSION = "ssl-wm-evidence", 4
READ = (1, 2, 3, 4)
"""Versions that are read. Settings of 1 know no counting of joint keys (``later.py``), keys of
1 and 2 no carriers; 3 holds the coordinates that carriers are made of in the carriers' place."""
MANIFEST = "manifest.json"
DAMAGE = (SslWmError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
          ValueError, OSError, MemoryError)  # fmt: skip
"""What reading a file that was made to mislead can raise."""


def write_manifest(folder: Path, names: Iterable[str]) -> str:
    """Write the manifest over the files ``names`` of ``folder`` and return its seal."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    content["files"] = {name: _entry(folder / name) for name in sorted(names)}
    content["seal"] = seal_of(content)
    write_bytes(folder / MANIFEST, _manifest_bytes(content))
    return str(content["seal"])


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Return the seal of a manifest: SHA-256 of its canonical JSON without the seal itself."""
    return sha256_bytes(canonical_json({k: v for k, v in manifest.items() if k != "seal"}))


def changes(folder: Path) -> list[str]:
    """Return one line "FILE: what is wrong" for each file that is not as it was sealed.

    Raises:
        VerificationError: there is no such folder.
    """
    if not folder.is_dir():
        raise VerificationError(f"there is no evidence folder at {folder}; name one that was made")
    try:
        manifest = read_manifest(folder)
    except DAMAGE as error:
        return [f"{MANIFEST}: {error}; the other files cannot be held against it"]
    listed: dict[str, Any] = manifest["files"]
    found = {path.name for path in folder.iterdir()} - {MANIFEST}
    problems = []
    for name in sorted(found & set(listed)):
        problem = _difference(folder / name, listed[name])
        problems += [f"{shown(name)}: {problem}"] if problem else []
    added = {name: _entry(folder / name) for name in sorted(found - set(listed))}
    for name in sorted(set(listed) - found):
        moved = [shown(other) for other, entry in added.items() if entry == listed[name]]
        told = f"; {moved[0]} has its content, so it was renamed" if moved else ""
        problems.append(f"{shown(name)}: missing{told}")
    return [*problems, *(f"{shown(name)}: no part of the bundle" for name in added)]


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into a ``VerificationError`` that names it."""
    try:
        yield
    except DAMAGE as error:
        raise VerificationError(f"{file}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return what an error says on one line of at most 400 signs, or its kind."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def shown(name: str) -> str:
    """Return a file's name as it can be printed on one line."""
    return name if name.isprintable() else ascii(name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of ``folder``.

    Raises:
        VerificationError: it is missing, changed, or of another format.
        OSError: it cannot be read.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise VerificationError("missing, so this is no evidence bundle, or it lost its list")
    if not _is_plain(path):
        raise VerificationError("no plain file")
    data = path.read_bytes()
    try:
        content = json.loads(data)
        whole = seal_of(content) == content["seal"] and _manifest_bytes(content) == data
    except DAMAGE:
        whole = False
    if not whole:
        raise VerificationError("changed after the bundle was sealed: its seal does not fit it")
    if content.get("format") != FORMAT or content.get("version") not in READ:
        raise VerificationError(
            f"format {content.get('format')!r}, version {content.get('version')!r}; this program "
            f"reads {FORMAT}, versions {', '.join(map(str, READ))}. Use the ssl-wm that made it"
        )
    files = content.get("files")
    if set(content) != {"format", "version", "files", "seal"} or not isinstance(files, dict):
        raise VerificationError("does not list the files as a manifest does")
    return dict(content)


def _manifest_bytes(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _entry(path: Path) -> dict[str, Any] | None:
    """Return size and hash of a plain file; None of anything else."""
    try:
        if not _is_plain(path):
            return None
        return {"size": path.stat().st_size, "sha256": sha256_file(path)}
    except OSError:
        return None


def _difference(path: Path, listed: Any) -> str:
    """Return what is wrong with a file, or ""."""
    try:
        if not _is_plain(path):
            return "no plain file any more"
        size = path.stat().st_size
        if not isinstance(listed, dict) or size != listed.get("size"):
            wanted = listed.get("size") if isinstance(listed, dict) else None
            return f"changed: {size} bytes, {wanted} were sealed"
        if listed != {"size": size, "sha256": sha256_file(path)}:
            return "changed: its SHA-256 is not the one that was sealed"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""
