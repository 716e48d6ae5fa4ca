"""The folder that a command fills: who may write there, what is resumed, what is kept.

A finished folder of ``pretrain``, ``watermark``, ``steal`` or ``remove`` holds the saved encoder,
``metrics.jsonl`` and ``settings.json``; while a run lasts its checkpoint is there too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ssl_wm.data.image_set import Images
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import read_facts, save_encoder
from ssl_wm.encoders.saved import FACTS
from ssl_wm.errors import OutputError, SslWmError, TrainingError
from ssl_wm.files import claim_folder, plain, read_json, write_json
from ssl_wm.processes import check_alone, first_process, follow, share_command
from ssl_wm.training.checkpoint import without_speed
from ssl_wm.training.loop import finish
from ssl_wm.training.parallel import wait_for_first
from ssl_wm.versions import versions

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Out:
    """The folder that a command writes to, and what may happen to what is in it."""

    folder: Path
    resume: bool = False
    overwrite: bool = False

    def check(self, *, shared: bool = False) -> None:
        """Refuse a folder that cannot be used, before any work is done.

        Processes other than the first wait here until it trains; they end where nothing is left
        to be trained.

        Args:
            shared: whether several processes can run the command.

        Raises:
            ConfigError: there are several processes, and they cannot.
            OutputError: it is a file, or holds something and neither flag was given.
        """
        if self.resume and self.overwrite:
            raise OutputError("--resume keeps what is in --out, --overwrite does not; give one")
        if shared:
            share_command()
        check_alone()
        follow()
        if first_process():
            if not self.overwrite:
                claim_folder(self.folder, resume=self.resume)
        elif self.resume and (self.folder / FACTS).is_file():
            raise SystemExit(0)
        else:
            wait_for_first(whole_command=True)

    def claim(self, *, inputs: Sequence[str | Path] = ()) -> Path:
        """Return the folder, emptied where it is to be overwritten.

        Args:
            inputs: specs and paths that the command reads, which must not be thrown away.

        Raises:
            OutputError: overwriting would throw away an input, or the folder one works in.
        """
        if first_process() and self.overwrite:
            whole = self.folder.resolve()
            kept = [
                Path.cwd(),
                Path.home(),
                *(Path(str(spec).partition("?")[0]) for spec in inputs),
            ]
            for path in kept:
                if path.exists() and path.resolve().is_relative_to(whole):
                    raise OutputError(
                        f"--overwrite would throw away {path}, which is in --out {self.folder}; "
                        "name another --out"
                    )
            claim_folder(self.folder, overwrite=True)
        return self.folder

    def begin(
        self, command: str, *, settings: BaseModel, images: Images | None, **inputs: str
    ) -> bool:
        """Write ``settings.json`` and return whether the run had already ended.

        The run may be shared by several processes, and resumed by another number of them.

        Raises:
            OutputError: the run to be resumed had other settings or inputs.
        """
        run = plain({
            "command": command, "settings": settings.model_dump(mode="json"),
            "inputs": {"images": images.train.fingerprint if images else None, **inputs},
        })  # fmt: skip
        if not first_process():
            return False
        path = self.folder / SETTINGS
        if path.is_file():
            before = read_json(path, error=OutputError, what="settings")
            for name, value in run.items():
                then, now = without_speed(before.get(name)), without_speed(value)
                difference = first_difference(then, now, name=name)
                if difference:
                    raise OutputError(
                        f"--out {self.folder} holds a run with other settings ({difference}); "
                        "resume with the settings of then, or use --overwrite"
                    )
        else:
            opened = images and {
                "spec": images.spec, "size": list(images.train.size),
                "train": len(images.train), "test": len(images.test),
            }  # fmt: skip
            write_json(path, {**run, "images": opened, "versions": versions()})
        return (self.folder / FACTS).is_file()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Leave the folder empty when bad input ends the block before anything was made.

        What ends the training of all processes is told by the first one alone.
        """
        try:
            yield
        except SslWmError as error:
            if not first_process():
                if isinstance(error, TrainingError):
                    raise SystemExit(2) from error
                raise
            if [path.name for path in self.folder.iterdir()] == [SETTINGS]:
                (self.folder / SETTINGS).unlink()
            raise

    def keep(self, encoder: Encoder) -> None:
        """Save the run's encoder and drop its checkpoint; further processes end here."""
        if not first_process():
            raise SystemExit(0)
        save_encoder(encoder, self.folder)
        finish(self.folder)

    def result(self) -> dict[str, Any]:
        """Return what the finished folder says of itself."""
        facts = read_facts(self.folder)
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return {
            "out": str(self.folder), "arch": facts.arch, "width": facts.width,
            "sha256": facts.sha256, "epochs": len(lines),
            "metrics": json.loads(lines[-1]) if lines else {},
        }  # fmt: skip


def first_difference(before: object, now: object, *, name: str) -> str:
    """Return "NAME was X, now Y" for the first value that differs, or "".

    >>> first_difference({"fit": {"epochs": 3}}, {"fit": {"epochs": 5}}, name="settings")
    'settings.fit.epochs was 3, now 5'
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            told = first_difference(before.get(key), now.get(key), name=f"{name}.{key}")
            if told:
                return told
        return ""
    return "" if before == now else f"{name} was {before}, now {now}"
