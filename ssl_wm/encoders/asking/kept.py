"""Answers that were paid for, on disk: asked for again, they come from here.

One SQLite file: an answer is in it whole or not at all, whatever ends the process; several
processes may share it. Each row carries a checksum, so that a damaged one is asked for again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_wm.encoders.asking.errors import RemoteError
from ssl_wm.encoders.properties import tensor_bytes
from ssl_wm.errors import OutputError
from ssl_wm.files import sha256_bytes

LOG = logging.getLogger(__name__)
FILE = "answers.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, row BLOB NOT NULL, seal TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_AT_ONCE = 500


class KeptAnswers:
    """Embeddings by the SHA-256 of what was sent; safe to use from several threads.

    Args:
        folder: where ``answers.sqlite`` lies; None keeps answers in memory alone.

    Raises:
        OutputError: the folder cannot be written to.
        RemoteError: the file is damaged or of another kind.
    """

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        self._path = folder / FILE if folder else None
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(
                self._path or ":memory:", timeout=60, check_same_thread=False, isolation_level=None
            )
        except (OSError, sqlite3.OperationalError) as error:
            raise OutputError(f"cannot keep answers in {folder}: {error}") from error
        with self._using() as base:
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=FULL")
            base.executescript(_TABLES)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Return the rows (D,) that are kept for ``keys``; damaged ones are left out.

        Raises:
            RemoteError: the file is damaged.
        """
        found: dict[bytes, Tensor] = {}
        damaged = 0
        with self._using() as base:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, row, seal FROM answers WHERE key IN ({marks})"  # noqa: S608
                for key, row, seal in base.execute(query, part):
                    if seal == sha256_bytes(key + row):
                        found[key] = torch.from_numpy(np.frombuffer(row, dtype="<f4").copy())
                    else:
                        damaged += 1
        if damaged:
            LOG.warning("%d kept answers in %s are damaged; asking again", damaged, self._path)
        return found

    def write(
        self, keys: Sequence[bytes], rows: Tensor, *, notes: Mapping[str, str], repeated: int = 0
    ) -> int:
        """Keep ``rows`` (N, D) for ``keys`` and return how many were new; all or nothing.

        Args:
            keys: SHA-256 of what was sent.
            rows: embeddings, float32.
            notes: kept beside them.
            repeated: added to the count of images that were sent again, besides those whose
                keys are here already.

        Raises:
            RemoteError: the file is damaged.
        """
        values = [
            (key, data, sha256_bytes(key + data))
            for key, row in zip(keys, rows, strict=True)
            for data in [bytes(tensor_bytes(row.contiguous()))]
        ]
        with self._using() as base, _transaction(base):
            before = _count(base)
            base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)
            new = _count(base) - before
            again = repeated + len(keys) - new
            if again:
                known = int(_note(base, "repeated") or 0)
                notes = {**notes, "repeated": str(known + again)}
            _put_notes(base, notes)
        return new

    def counts(self) -> tuple[int, int]:
        """Return how many images were asked for first, and how many times one was again."""
        with self._using() as base:
            return _count(base), int(_note(base, "repeated") or 0)

    def note(self, name: str) -> str | None:
        """Return a note, or None."""
        with self._using() as base:
            return _note(base, name)

    def put_note(self, name: str, value: str) -> None:
        """Keep a note."""
        with self._using() as base, _transaction(base):
            _put_notes(base, {name: value})

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._base
        except sqlite3.OperationalError as error:
            raise OutputError(f"cannot use the kept answers in {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise RemoteError(
                f"the kept answers in {self._path} are damaged ({error}); move the file away and "
                "ask again"
            ) from error


@contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        base.execute("ROLLBACK")
        raise
    base.execute("COMMIT")


def _count(base: sqlite3.Connection) -> int:
    with closing(base.execute("SELECT COUNT(*) FROM answers")) as rows:
        return int(rows.fetchone()[0])


def _note(base: sqlite3.Connection, name: str) -> str | None:
    with closing(base.execute("SELECT value FROM notes WHERE name = ?", (name,))) as rows:
        found = rows.fetchone()
    return str(found[0]) if found else None


def _put_notes(base: sqlite3.Connection, notes: Mapping[str, str]) -> None:
    pairs: Iterable[tuple[str, str]] = notes.items()
    base.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?)", pairs)
