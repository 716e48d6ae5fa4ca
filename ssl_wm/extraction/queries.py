"""Embedding queries: what a thief sends, what comes back, and what it costs.

A transfer set is what a thief keeps: which images of the pool were sent, the embeddings as
answered, and a ledger of the calls. Every image is queried once unless the attack says
otherwise; answers are kept on disk as they come, so that an interrupted theft pays for no image
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.console import progress
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.properties import encoder_digest, tensor_bytes
from ssl_wm.errors import ConfigError, DataError, EncoderError
from ssl_wm.extraction.pool import QueryPool, Views, sent_images
from ssl_wm.files import read_json, read_tensors, sha256_bytes, write_json, write_tensors

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder

CHUNK = 512
"""Images a call; its answers are on disk before the next call."""
_OTHER = "{} holds answers {}; use --overwrite to start over"


@dataclass(frozen=True)
class Ledger:
    """Calls to the victim: ``billed = unique + repeated`` images.

    Attributes:
        unique: different images sent; a new view of an image counts as an image.
        repeated: images sent again.
    """

    unique: int = 0
    repeated: int = 0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(self.unique + other.unique, self.repeated + other.repeated)

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
        made: images (M, 3, H, W) uint8 that the thief made; the index of the k-th is the
            pool's length + k. None where there are none.
    """

    indices: Tensor
    embeddings: Tensor
    ledger: Ledger
    pool: str
    made: Tensor | None = None


def query(
    victim: Encoder,
    pool: ImageSet | QueryPool,
    *,
    indices: Tensor,
    folder: Path | None = None,
    repeats: int = 1,
    views: Views | None = None,
) -> TransferSet:
    """Send the images ``indices`` (N,) of ``pool`` once each and return the transfer set.

    Args:
        victim: answers (B, 3, H, W) with (B, D).
        pool: the thief's images.
        indices: which of them to send, in this order.
        folder: where answers are kept; those already there are not asked for again.
        repeats: times each image is sent, pass after pass; the mean of its answers is kept.
        views: what is sent in place of the images; a new view is no repeated query.

    Raises:
        DataError: the folder holds answers to other queries or of another victim, or they are
            damaged.
        EncoderError: an answer is not finite or of another width.
        ConfigError: repeats of a remote victim whose answers are kept: none would be sent.
    """
    if repeats > 1 and victim.made.get("reuse"):
        raise ConfigError(
            f"{repeats} repeats need fresh answers, but this remote encoder answers an image it "
            "has seen from what it kept; add #reuse=no (or &reuse=no) to its address"
        )
    if folder is not None:
        claim(folder, victim=victim, pool=pool, indices=indices, repeats=repeats, views=views)
        if (folder / "transfer.safetensors").is_file():
            kept = load_transfer_set(folder)
            if kept.pool != pool.fingerprint or not torch.equal(kept.indices, indices):
                raise DataError(_OTHER.format(folder, "to other queries"))
            return kept
    passes = repeats * (views.count if views else 1)
    rows = None
    for places, part in _answered(victim, pool, indices, passes, views=views, folder=folder):
        if views is not None and views.unit:
            part = F.normalize(part, dim=1)
        if passes == 1:
            rows = part.new_empty(len(indices), part.shape[1]) if rows is None else rows
            rows[places] = part
        else:
            if rows is None:
                rows = torch.zeros(len(indices), part.shape[1], dtype=torch.float64)
            rows.index_add_(0, places, part.double() / passes)
    if rows is None:
        raise DataError("there is no image to send; the budget must be at least 1")
    distinct = len(set(indices.tolist())) * (views.count if views else 1)
    ledger = Ledger(unique=distinct, repeated=len(indices) * passes - distinct)
    return TransferSet(indices, rows.float(), ledger, pool.fingerprint)


def _answered(
    victim: Encoder,
    pool: ImageSet | QueryPool,
    indices: Tensor,
    passes: int,
    *,
    views: Views | None,
    folder: Path | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the places (B,) in ``indices`` and the answers (B, D) of one call after another."""
    order = torch.arange(len(indices)).repeat(passes)
    width = None
    with progress("queries", total=len(order)) as advance:
        for number, places in enumerate(torch.split(order, CHUNK)):
            chunk = indices[places]
            path = folder / "answers" / f"{number:05d}.safetensors" if folder else None
            if path is not None and path.is_file():
                rows = _answers(read_tensors(path, error=DataError), path, indices=chunk)
            else:
                sent = sent_images(pool.take(chunk), views=views, call=number)
                rows = embed(victim, sent, batch_size=CHUNK)
            width = rows.shape[1] if width is None else width
            if rows.shape[1] != width:
                raise EncoderError(
                    f"the victim answered {width} numbers an image, and now {rows.shape[1]}; an "
                    "encoder has one width"
                )
            if path is not None and not path.is_file():
                write_tensors(path, {"indices": chunk, "embeddings": rows})
            advance(len(chunk))
            yield places, rows


def claim(
    folder: Path,
    *,
    victim: Encoder,
    pool: ImageSet | QueryPool,
    indices: Tensor,
    repeats: int = 1,
    views: Views | None = None,
) -> None:
    """Note in ``folder`` what is asked of whom; refuse a folder where it was something else.

    A remote victim is told by its address. A function has neither weights nor an address: it is
    not told from another one.
    """
    weights = bool(victim.backbone.state_dict())
    asked: dict[str, Any] = {
        "pool": pool.fingerprint,
        "indices": sha256_bytes(bytes(tensor_bytes(indices.contiguous()))),
        "victim": encoder_digest(victim) if weights else victim.made.get("url"),
    }
    if repeats > 1:
        asked["repeats"] = repeats
    if views is not None:
        asked["views"] = {**asdict(views), "config": views.config.model_dump(mode="json")}
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
    save_ledger(folder, transfer)
    tensors = {"indices": transfer.indices, "embeddings": transfer.embeddings}
    if transfer.made is not None:
        tensors["made"] = transfer.made
    write_tensors(folder / "transfer.safetensors", tensors)  # last: with it, the set is whole
    for path in sorted((folder / "answers").glob("*.safetensors")):
        path.unlink()
    if (folder / "answers").is_dir():
        (folder / "answers").rmdir()


def save_ledger(folder: Path, transfer: TransferSet) -> None:
    """Write the calls that ``transfer`` has cost so far to ``folder``."""
    ledger = {**asdict(transfer.ledger), "billed": transfer.ledger.billed}
    write_json(folder / "ledger.json", {"pool": transfer.pool, "calls": ledger})


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
        made = tensors.get("made")
        return TransferSet(tensors["indices"], rows, ledger, str(facts["pool"]), made)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'ledger.json'} is damaged ({type(error).__name__}); query again"
        ) from error
