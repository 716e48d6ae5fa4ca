"""Embeddings of many images, in batches and checked; and a cache of them on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import wrap
from ssl_wm.encoders.properties import at_work, encoder_digest, tensor_bytes, working_device
from ssl_wm.errors import DataError, EncoderError, choose
from ssl_wm.files import canonical_json, read_tensors, sha256_bytes, write_tensors
from ssl_wm.precision import Precision, lowered, settled

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

LOG = logging.getLogger(__name__)
BATCH = 512
CPU_BATCH = 128
"""Against 512: 12 to 17 % more images a second in bfloat16, 48 % in float32 (two cores)."""


def embed(
    encoder: Encoder | nn.Module | Callable[[Tensor], Any],
    images: ImageSet | Tensor,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the embeddings (N, D) of ``images``, float32, on the CPU, in order.

    The encoder runs in eval mode, on the accelerator where there is one (``at_work``), and gets
    its mode and its place back afterwards; its weights and buffers do not change.

    Args:
        encoder: an encoder, a module or a function (wrapped by ``load.wrap``).
        images: an ``ImageSet``, or a tensor (N, 3, H, W), uint8 or float in [0, 1].
        batch_size: images a pass; it can change the last bits of an embedding. None takes what
            measured best (``usual_batch``).
        precision: "bfloat16" runs the encoder under autocast; "auto" does where that is fast.
        on_batch: called after each batch with the number of images in it (for a bar).

    Raises:
        EncoderError: an embedding is not finite (the first such image's index is named), the
            width changes between batches, or all embeddings are the same although the images
            are not.
        DataError: there are no images, or float images lie far outside [0, 1].
        ConfigError: the precision is unknown.

    >>> embed(lambda images: images.flatten(1), torch.zeros(5, 3, 2, 2), batch_size=2).shape
    torch.Size([5, 12])
    """
    choose(precision, get_args(Precision), what="precision")
    if batch_size is not None and batch_size < 1:
        raise DataError(f"batch_size must be at least 1; got {batch_size}")
    total = len(images)
    if total == 0:
        raise DataError("there are no images to embed; give at least one")
    wrapped = wrap(encoder)
    result: Tensor | None = None
    images_differ, first, start = False, None, 0
    with at_work(wrapped) as device:
        for batch in _batches(images, batch_size or usual_batch(wrapped, device=device)):
            _check_range(batch, start)
            rows = embed_batch(wrapped, batch, precision=precision)
            if result is None:
                result = torch.empty(total, rows.shape[1])
            _check_rows(rows, start=start, width=result.shape[1])
            result[start : start + len(rows)] = rows
            first = batch[:1] if first is None else first
            images_differ = images_differ or not torch.equal(batch, first.expand_as(batch))
            start += len(rows)
            if on_batch is not None:
                on_batch(len(rows))
    if result is None or start != total:
        raise DataError(f"expected {total} images and {start} came; open the images again")
    if images_differ and bool((result == result[0]).all()):
        raise EncoderError(
            f"the encoder has collapsed: its embeddings of {total} different images are all the "
            "same; train it again or load another checkpoint"
        )
    return result


def embed_batch(encoder: Encoder, batch: Tensor, *, precision: Precision) -> Tensor:
    """Return the embeddings (B, D) of one batch (B, 3, H, W), float32, on the CPU, unchecked.

    The caller holds the encoder ``at_work``.
    """
    device = encoder.mean.device
    with torch.inference_mode(), lowered(precision, device=device):
        rows: Tensor = encoder(batch.to(device, non_blocking=True))
        return rows.float().cpu()


def usual_batch(encoder: Encoder, *, device: torch.device) -> int:
    """Return how many images a pass ``embed`` takes: fewer on a CPU, whose caches are small.

    An encoder without weights (a service) gets the larger batch too, and splits it as it likes.
    """
    held = next(encoder.backbone.parameters(), None) is not None
    return CPU_BATCH if held and device.type == "cpu" else BATCH


def fingerprint(images: ImageSet | Tensor) -> str:
    """Return a SHA-256 (hex) of the images: the set's own, or of a tensor's type and bytes."""
    if not isinstance(images, Tensor):
        return images.fingerprint
    pixels = images.detach().cpu().contiguous()
    head = canonical_json([str(pixels.dtype), list(pixels.shape)])
    return sha256_bytes(head + bytes(tensor_bytes(pixels)))


class EmbeddingCache:
    """Embeddings on disk, by encoder weights, images and precision.

    A file that is damaged, cut off or of another question is recomputed, with a warning. An
    encoder of arch "custom" is never answered from the cache: its code is no part of its
    digest, so two different networks could share an entry.

    Args:
        folder: where the files lie; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def embed(
        self,
        encoder: Encoder,
        images: ImageSet | Tensor,
        *,
        batch_size: int | None = None,
        precision: Precision = "float32",
        on_batch: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return what ``embed`` returns (N, D), computed at most once per question.

        Raises:
            EncoderError, DataError, ConfigError: as in ``embed``.
            OutputError: the folder cannot be written to.
        """
        path = self.path(encoder, images, precision=precision)
        rows = _read_rows(path, count=len(images)) if path is not None else None
        if rows is not None:
            return rows
        rows = embed(encoder, images, batch_size=batch_size, precision=precision, on_batch=on_batch)
        if path is not None:
            write_tensors(path, {"embeddings": rows, "sha256": _seal(path, rows)})
        return rows

    def path(
        self, encoder: Encoder, images: ImageSet | Tensor, *, precision: Precision = "float32"
    ) -> Path | None:
        """Return the file that answers this question; None for an encoder of arch "custom"."""
        if encoder.arch == "custom":
            return None
        chosen = settled(precision, device=working_device(encoder))
        parts = [encoder.arch, encoder_digest(encoder), fingerprint(images), chosen]
        return self.folder / f"{sha256_bytes(canonical_json(parts))}.safetensors"


def _read_rows(path: Path, *, count: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        tensors = read_tensors(path, error=EncoderError)
        rows, seal = tensors["embeddings"], tensors["sha256"]
        if rows.dtype == torch.float32 and rows.ndim == 2 and len(rows) == count:
            if torch.equal(seal, _seal(path, rows)):
                return rows
            reason = "its checksum is wrong"
        else:
            reason = f"it holds {rows.dtype} {tuple(rows.shape)}"
    except (EncoderError, KeyError) as error:
        reason = str(error)
    LOG.warning("cached embeddings %s are damaged (%s); computing them again", path, reason)
    return None


def _seal(path: Path, rows: Tensor) -> Tensor:
    """Return a digest (32,) uint8 of the rows and the question that the file's name stands for."""
    digest = sha256_bytes(path.stem.encode() + bytes(tensor_bytes(rows.contiguous())))
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def _batches(images: ImageSet | Tensor, size: int) -> Iterator[Tensor]:
    yield from torch.split(images, size) if isinstance(images, Tensor) else images.batches(size)


def _check_range(batch: Tensor, start: int) -> None:
    if batch.dtype == torch.uint8:
        return
    if not batch.is_floating_point():
        raise DataError(f"images are uint8 in 0..255 or float in [0, 1]; got {batch.dtype}")
    low, high = float(batch.min()), float(batch.max())
    if low < -0.5 or high > 1.5:  # noise may overstep [0, 1] a little, wrong units do by far
        raise DataError(
            f"float images lie in [0, 1]; the batch from image {start} spans {low:.3g} to "
            f"{high:.3g}: divide by 255, or do not normalise (the encoder does)"
        )


def _check_rows(rows: Tensor, *, start: int, width: int) -> None:
    if rows.shape[1] != width:
        raise EncoderError(
            f"the encoder changed its width from {width} to {rows.shape[1]} at image {start}; an "
            "encoder answers every image with one vector of the same length"
        )
    bad = ~torch.isfinite(rows).all(dim=1)
    if bool(bad.any()):
        index = start + int(bad.nonzero()[0])
        raise EncoderError(
            f"the embedding of image {index} is not finite (NaN or infinity); check that image, "
            "the encoder's weights and the precision"
        )
