"""The only module that writes files: atomic writes, hashes, JSON and safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from ssl_wm.errors import OutputError, SslWmError


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` whole or not at all (temporary file, fsync, rename).

    Raises:
        OutputError: the folder cannot be made or written to; an earlier file stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def canonical_json(value: Any) -> bytes:
    """Return the one byte string that stands for ``value``: sorted keys, no spaces, UTF-8.

    >>> canonical_json({"b": 1, "a": [1.5, "x"]})
    b'{"a":[1.5,"x"],"b":1}'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def plain(value: Any) -> Any:
    """Return ``value`` with numpy scalars, tuples, paths and non-finite floats made JSON-ready.

    >>> plain({"a": np.float32(0.5), "b": (1, 2), "c": float("nan")})
    {'a': 0.5, 'b': [1, 2], 'c': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(), mode=mode)


def read_json(path: Path, *, error: type[SslWmError] = SslWmError, what: str = "file") -> Any:
    """Return the JSON value in ``path``.

    Raises:
        SslWmError: (``error``) the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise error(f"{what} {path} is a folder; name the file") from None
    except OSError as cause:
        raise error(f"cannot read {what} {path}: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} {path} is not JSON (damaged or of another kind): {cause}") from cause


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return ``tensors`` as safetensors bytes (contiguous, on the CPU)."""
    data: bytes = safetensors_save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    return data


def unpack_tensors(
    data: bytes, *, error: type[SslWmError] = SslWmError, what: str = "tensors"
) -> dict[str, torch.Tensor]:
    """Return the tensors in safetensors ``data``.

    Raises:
        SslWmError: (``error``) the bytes are truncated or not safetensors.
    """
    try:
        tensors: dict[str, torch.Tensor] = safetensors_load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as cause:
        raise error(f"{what} is not a whole safetensors file: {cause}") from cause
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` as a safetensors file, atomically."""
    write_bytes(path, pack_tensors(tensors))


def read_tensors(path: Path, *, error: type[SslWmError] = SslWmError) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        SslWmError: (``error``) the file is missing, truncated or not safetensors.
    """
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    return unpack_tensors(data, error=error, what=str(path))


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claim_folder(path: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make ``path`` ready for results and return it.

    Raises:
        OutputError: it is a file, holds something and neither flag was given, cannot be made
            or emptied, or is the working folder, the home folder or one above them and
            ``overwrite`` would delete it.
    """
    if path.is_file():
        raise OutputError(f"--out {path} is a file; name a folder")
    try:
        full = path.is_dir() and any(path.iterdir())
        if full and overwrite:
            _delete_folder(path)
        elif full and not resume:
            raise OutputError(
                f"--out {path} is not empty; add --resume to go on with it or --overwrite to "
                "throw it away"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make --out {path}: {error.strerror or error}") from error
    return path


def _delete_folder(path: Path) -> None:
    for kept in (Path.cwd(), Path.home()):
        if kept.resolve().is_relative_to(path.resolve()):
            raise OutputError(
                f"--overwrite would delete {path}, which holds {kept}; name a folder for results "
                "alone"
            )
    shutil.rmtree(path)


def claim_file(path: Path, *, overwrite: bool = False) -> Path:
    """Return ``path`` when a result may be written there.

    Raises:
        OutputError: it is a folder, or a file and ``overwrite`` was not given.
    """
    if path.is_dir():
        raise OutputError(f"--out {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"--out {path} exists already; add --overwrite to replace it")
    return path
