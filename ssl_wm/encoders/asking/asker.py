"""Asks a service for what is not kept yet: several calls at once, answers checked and kept."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from ssl_wm.encoders.asking.adapters import Adapter, Answer
from ssl_wm.encoders.asking.calls import Caller, Patience
from ssl_wm.encoders.asking.config import RemoteConfig, RemoteCounts
from ssl_wm.encoders.asking.errors import RemoteError, TooLargeError
from ssl_wm.encoders.asking.kept import KeptAnswers
from ssl_wm.errors import EncoderError

LOG = logging.getLogger(__name__)


def eight_bits(images: Tensor) -> Tensor:
    """Return ``images`` (N, 3, H, W) as uint8 on the CPU; floats in [0, 1] are rounded."""
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images
    return (images.double().clamp(0, 1) * 255).round().to(torch.uint8)


def png_bytes(pixels: Tensor) -> bytes:
    """Return ``pixels`` (3, H, W) uint8 as a PNG file, losslessly."""
    file = BytesIO()
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(file, format="PNG", compress_level=1)
    return file.getvalue()


class Asker:
    """Asks for images that no kept answer knows, several calls at once, and checks answers."""

    def __init__(
        self, url: str, config: RemoteConfig, adapter: Adapter, *, key: str | None
    ) -> None:
        self._config = config
        self._adapter = adapter
        self._kept = KeptAnswers(config.cache)
        self.caller = Caller(
            url=url, key=key, connections=config.concurrency, too_large=adapter.is_too_large,
            patience=Patience(
                tries=config.tries, first=config.backoff, total=config.patience,
                timeout=config.timeout,
            ),
        )  # fmt: skip
        whose = hashlib.sha256((key or "").encode()).hexdigest()
        self._salt = "\n".join([url, whose, type(adapter).__name__, config.model or ""]).encode()
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="ssl-wm calls")
        self._lock = threading.Lock()
        self._model = self._kept.note("model")
        width = self._kept.note("width")
        self._width = config.width or (int(width) if width else None)
        self._batch = min(config.batch, int(self._kept.note("batch") or config.batch))
        self._tried = False
        self._first: tuple[bytes, Tensor] | None = None
        self._since = 0
        self._calls = self._retries = self._doubtful = self._from_kept = self._drifts = 0

    def ask(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (N, D) of ``pixels`` (N, 3, H, W) uint8."""
        if len(pixels) == 0:
            raise EncoderError("there are no images to ask for; give at least one")
        self.caller.start()
        files = list(self._pool.map(png_bytes, pixels))
        keys = [hashlib.sha256(self._salt + file).digest() for file in files]
        rows: dict[int, Tensor] = {}
        if self._config.reuse:
            kept = self._kept.read(list(dict.fromkeys(keys)))
            places = {key: place for place, key in reversed(list(enumerate(keys)))}
            todo = sorted(place for key, place in places.items() if key not in kept)
            self._from_kept += len(keys) - len(todo)
        else:
            kept, todo = {}, list(range(len(keys)))
        self._send_all(todo, files, keys, rows)
        if self._config.reuse:
            kept |= {keys[place]: row for place, row in rows.items()}
            rows = {place: kept[key] for place, key in enumerate(keys)}
        self._watch(files[0], rows[0], sent=len(todo))
        return torch.stack([rows[place] for place in range(len(keys))])

    def _send_all(
        self, todo: list[int], files: list[bytes], keys: list[bytes], rows: dict[int, Tensor]
    ) -> None:
        """Send the images ``todo``, in calls of a size that the service takes."""
        while todo:
            size = self._batch
            groups = [todo[start : start + size] for start in range(0, len(todo), size)]
            groups = groups if self._tried else groups[:1]  # one call finds out whether it fits
            sent: list[tuple[list[int], Future[Tensor]]] = [
                (group, self._pool.submit(self._send, group, files, keys)) for group in groups
            ]
            try:
                for group, future in sent:
                    try:
                        rows.update(zip(group, future.result(), strict=True))
                        self._tried = True
                    except TooLargeError:
                        if len(group) == 1:
                            raise
                        self._shrink(len(group) // 2)
            except BaseException as error:
                self._abandon(
                    [future for _, future in sent], hurry=not isinstance(error, Exception)
                )
                raise
            todo = [place for place in todo if place not in rows]

    def _abandon(self, futures: list[Future[Tensor]], *, hurry: bool) -> None:
        """End calls after a failure: those that run are kept, or in a ``hurry`` given up."""
        if hurry:
            self.caller.stop()
        for future in futures:
            future.cancel()
        wait(futures)

    def _shrink(self, size: int) -> None:
        if size < self._batch:
            self._batch, self._tried = size, False
            self._kept.put_note("batch", str(size))
            LOG.info("the service takes fewer images at a time; trying %d", size)

    def _send(self, group: list[int], files: list[bytes], keys: list[bytes]) -> Tensor:
        """Return the rows (n, D) of the images ``group``; they are kept before it returns."""
        chosen = [keys[place] for place in group]
        name = hashlib.sha256(b"".join(chosen)).hexdigest() if self._config.reuse else _new_name()
        answer = self._call([files[place] for place in group], name=name)
        with self._lock:
            self._check(answer, count=len(group))
            again = len(chosen) - len(set(chosen))
            places = {key: place for place, key in enumerate(chosen)}
            notes = {"width": str(answer.rows.shape[1])}
            notes |= {"model": answer.model} if answer.model is not None else {}
            unique = torch.tensor(list(places.values()))
            self._kept.write(list(places), answer.rows[unique], notes=notes, repeated=again)
        return answer.rows

    def _call(self, images: Sequence[bytes], *, name: str) -> Answer:
        request = self._adapter.build_request(images)
        headers = {**request.headers, "Idempotency-Key": name}
        body = self.caller.post(
            request.body, headers=headers, on_failure=lambda: self._note_failure(len(images))
        )
        try:
            answer = self._adapter.parse_response(body, count=len(images))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RemoteError(
                f"the service's answer cannot be read ({type(error).__name__}); is it one that the "
                f"adapter {type(self._adapter).__name__} is for?"
            ) from error
        with self._lock:
            self._calls += 1
        return answer

    def _note_failure(self, images: int) -> None:
        with self._lock:
            self._retries += 1
            self._doubtful += images

    def _check(self, answer: Answer, *, count: int) -> None:
        rows = answer.rows
        if rows.ndim != 2 or len(rows) != count:
            raise RemoteError(
                f"the service answered shape {tuple(rows.shape)} for {count} images; one "
                "embedding each is expected"
            )
        if not bool(torch.isfinite(rows).all()):
            raise RemoteError("the service answered NaN or infinity")
        if self._width is not None and rows.shape[1] != self._width:
            raise RemoteError(
                f"the service answered {rows.shape[1]} numbers an image where {self._width} were "
                "expected; it serves another encoder now, or the option 'width' is wrong"
            )
        if self._model is not None and answer.model is not None and answer.model != self._model:
            raise RemoteError(
                f"the service answers with the model '{answer.model}' and did with "
                f"'{self._model}' before; start a new cache folder rather than mix them"
            )
        self._width = rows.shape[1]
        self._model = answer.model or self._model

    def _watch(self, file: bytes, row: Tensor, *, sent: int) -> None:
        """Send the first image of all again when it is time, and tell whether it changed."""
        if self._first is None:
            self._first = (file, row)
        self._since += sent
        if not self._config.canary or self._since < self._config.canary:
            return
        self._since = 0
        image, before = self._first
        answer = self._call([image], name=_new_name())
        self._check(answer, count=1)
        key = hashlib.sha256(self._salt + image).digest()
        self._kept.write([key], before.unsqueeze(0), notes={})
        if not torch.equal(answer.rows[0], before):
            self._drifts += 1
            gap = float((answer.rows[0] - before).abs().max())
            LOG.warning(
                "the service's answer to the same image changed by up to %.3g: it adds noise or "
                "serves another encoder now", gap,
            )  # fmt: skip

    def counts(self) -> RemoteCounts:
        """Return images and calls so far."""
        unique, repeated = self._kept.counts()
        return RemoteCounts(
            unique=unique, repeated=repeated, kept=self._from_kept, calls=self._calls,
            retries=self._retries, doubtful=self._doubtful, drifts=self._drifts,
        )  # fmt: skip

    def close(self) -> None:
        """End the threads, the connections and the file."""
        self._pool.shutdown(cancel_futures=True)
        self.caller.close()
        self._kept.close()


def _new_name() -> str:
    return uuid.uuid4().hex
