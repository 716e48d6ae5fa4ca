"""What a run's state is, and how it is saved and found again.

A checkpoint is one file, replaced atomically: whole or absent. It begins with the SHA-256 of the
rest, so that a damaged one is never resumed. Random streams depend on (seed, epoch, step) alone,
so weights, optimiser and position are all there is to save.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_wm.errors import TrainingError
from ssl_wm.files import sha256_bytes, write_bytes

NAME = "training.ckpt"
_DIGEST = 64  # characters of a SHA-256 in hex


@dataclass(frozen=True)
class Checkpoint:
    """State after ``epoch`` finished epochs of the run that ``run`` describes."""

    epoch: int
    run: str
    module: dict[str, Any]
    optimiser: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` into ``folder``, replacing the last one atomically.

    Raises:
        OutputError: the folder cannot be written to; the last checkpoint stays.
    """
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    state = buffer.getvalue()
    write_bytes(folder / NAME, sha256_bytes(state).encode() + state)


def find_checkpoint(folder: Path, *, run: str) -> Checkpoint | None:
    """Return the checkpoint in ``folder``, or None when there is none.

    Args:
        folder: where the run writes.
        run: description of the run; a checkpoint of other settings is refused.

    Raises:
        TrainingError: the file is damaged, or belongs to a run with other settings.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    damaged = f"checkpoint {path} is damaged ({{}}); delete it to start over"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"cannot read checkpoint {path}: {error.strerror}") from error
    if sha256_bytes(data[_DIGEST:]).encode() != data[:_DIGEST]:
        raise TrainingError(damaged.format("its SHA-256 is wrong"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: failure is told below
            state = torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**state)
    except Exception as error:  # torch raises many kinds; none of them has run anything
        raise TrainingError(damaged.format(type(error).__name__)) from error
    if checkpoint.run != run:
        raise TrainingError(
            f"checkpoint {path} belongs to a run with other settings; resume with the settings "
            "of then, or use --overwrite"
        )
    return checkpoint


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished run, and those of runs in folders below its own."""
    for path in (folder / NAME, *folder.glob(f"*/{NAME}")):
        path.unlink(missing_ok=True)


def without_speed(settings: Any) -> Any:
    """Return ``settings`` without what changes the speed of a run and no result of it.

    Every ``fit.devices`` becomes 1 and every ``fit.compile`` is left out.

    >>> without_speed({"config": {"fit": {"devices": 4, "compile": True, "epochs": 2}}})
    {'config': {'fit': {'devices': 1, 'epochs': 2}}}
    """
    if not isinstance(settings, Mapping):
        return settings
    told = {name: without_speed(value) for name, value in settings.items()}
    if isinstance(told.get("fit"), dict) and "devices" in told["fit"]:
        told["fit"]["devices"] = 1
        told["fit"].pop("compile", None)
    return told
