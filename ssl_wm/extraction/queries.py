"""Embedding queries: what a thief sends, what comes back, and what it costs.

A transfer set is what a thief keeps: which images of the pool were sent, the embeddings as
answered, and a ledger of the calls. Every image is queried once; answers are kept on disk as
they come, so that an interrupted theft pays for no image twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.console import progress
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.properties import encoder_digest, tensor_bytes
from ssl_wm.errors import DataError, EncoderError
from ssl_wm.files import read_json, read_tensors, sha256_bytes, write_json, write_tensors

if TYPE_CHECKING:
    from ssl_wm.data.sources import ImageSet
    from ssl_wm.encoders.encoder import Encoder

CHUNK = 512
"""Images a call; its answers are on disk before the next call."""
_OTHER = "{} holds answers {}; use --overwrite to start over"


@dataclass(frozen=True)
class Ledger:
    """Calls to the victim: ``billed = unique + repeated`` images."""

    unique: int = 0
    repeated: int = 0

    @property
    def billed(self) -> int:
        """Images the victim's owner would charge for."""
        return self.unique + self.repeated


@dataclass(frozen=True)
class TransferSet:
    """What a thief keeps of his queries.

    Attributes:
        indices: (N,) int64, which images of the pool were sent.
        embeddings: (N, D) float32, as answered.
        ledger: calls made, also those of earlier, interrupted runs.
        pool: fingerprint of the pool.
    """

    indices: Tensor
    embeddings: Tensor
    ledger: Ledger
    pool: str


def query(
    victim: Encoder, pool: ImageSet, *, indices: Tensor, folder: Path | None = None
) -> TransferSet:
    """Send the images ``indices`` (N,) of ``pool`` once each and return the transfer set.

    Args:
        victim: answers (B, 3, H, W) with (B, D).
        pool: the thief's images.
        indices: which of them to send, in this order.
        folder: where answers are kept; those already there are not asked for again.

    Raises:
        DataError: the folder holds answers to other queries or of another victim, or they are
            damaged.
        EncoderError: an answer is not finite or of another width.
    """
    if folder is not None:
        _claim(folder, victim=victim, pool=pool, indices=indices)
        if (folder / "transfer.safetensors").is_file():
            kept = load_transfer_set(folder)
            if kept.pool != pool.fingerprint or not torch.equal(kept.indices, indices):
                raise DataError(_OTHER.format(folder, "to other queries"))
            return kept
    parts: list[Tensor] = []
    with progress("queries", total=len(indices)) as advance:
        for number, chunk in enumerate(torch.split(indices, CHUNK)):
            path = folder / "answers" / f"{number:05d}.safetensors" if folder else None
            if path is not None and path.is_file():
                parts.append(_answers(read_tensors(path, error=DataError), path, indices=chunk))
            else:
                parts.append(embed(victim, pool.take(chunk), batch_size=CHUNK))
                if parts[-1].shape[1] != parts[0].shape[1]:
                    raise EncoderError(
                        f"the victim answered {parts[0].shape[1]} numbers an image, and now "
                        f"{parts[-1].shape[1]}; an encoder has one width"
                    )
                if path is not None:
                    write_tensors(path, {"indices": chunk, "embeddings": parts[-1]})
            advance(len(chunk))
    unique = len(set(indices.tolist()))
    ledger = Ledger(unique=unique, repeated=len(indices) - unique)
    return TransferSet(indices, torch.cat(parts), ledger, pool.fingerprint)


def _claim(folder: Path, *, victim: Encoder, pool: ImageSet, indices: Tensor) -> None:
    """Note in ``folder`` what is asked of whom; refuse a folder where it was something else.

    A victim without weights (a function) has no digest: it is not told from another one.
    """
    weights = bool(victim.backbone.state_dict())
    asked = {
        "pool": pool.fingerprint,
        "indices": sha256_bytes(bytes(tensor_bytes(indices.contiguous()))),
        "victim": encoder_digest(victim) if weights else None,
    }
    path = folder / "queries.json"
    if not path.is_file():
        write_json(path, asked)
        return
    noted = read_json(path, error=DataError, what="note of the queries")
    if noted != asked:
        same = isinstance(noted, dict) and noted | {"victim": asked["victim"]} == asked
        raise DataError(_OTHER.format(folder, "of another victim" if same else "to other queries"))


def _answers(tensors: dict[str, Tensor], path: Path, *, indices: Tensor | None = None) -> Tensor:
    """Return the embeddings in a file of answers, to the images ``indices`` if given.

    Raises:
        DataError: the file holds something else.
    """
    asked, rows = tensors.get("indices"), tensors.get("embeddings")
    if asked is None or rows is None or rows.ndim != 2 or asked.shape != rows.shape[:1]:
        raise DataError(f"{path} holds no answers; use --overwrite to start over")
    if indices is not None and not torch.equal(asked, indices):
        raise DataError(_OTHER.format(path, "to other queries"))
    return rows


def save_transfer_set(folder: Path, transfer: TransferSet) -> None:
    """Write ``transfer`` to ``folder`` as safetensors and JSON, and drop the partial answers."""
    ledger = {**asdict(transfer.ledger), "billed": transfer.ledger.billed}
    write_json(folder / "ledger.json", {"pool": transfer.pool, "calls": ledger})
    write_tensors(  # last: with it, the set is whole
        folder / "transfer.safetensors",
        {"indices": transfer.indices, "embeddings": transfer.embeddings},
    )
    for path in sorted((folder / "answers").glob("*.safetensors")):
        path.unlink()
    if (folder / "answers").is_dir():
        (folder / "answers").rmdir()


def load_transfer_set(folder: Path) -> TransferSet:
    """Return the transfer set in ``folder``.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "transfer.safetensors"
    tensors = read_tensors(path, error=DataError)
    rows = _answers(tensors, path)
    facts = read_json(folder / "ledger.json", error=DataError, what="ledger")
    try:
        ledger = Ledger(int(facts["calls"]["unique"]), int(facts["calls"]["repeated"]))
        return TransferSet(tensors["indices"], rows, ledger, str(facts["pool"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'ledger.json'} is damaged ({type(error).__name__}); query again"
        ) from error
