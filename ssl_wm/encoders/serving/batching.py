"""Dynamic batching: images of many requests, one pass of the encoder, one worker thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from ssl_wm.encoders.serving.refusals import RefusedError

Shape = tuple[int, ...]


class _Job:
    """One request's images: rows come in, and with the last of them the future is set."""

    def __init__(self, count: int) -> None:
        self.future: Future[Tensor] = Future()
        self.rows: list[Tensor | None] = [None] * count
        self.missing = count

    def put(self, index: int, row: Tensor) -> None:
        self.rows[index] = row
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(torch.stack([row for row in self.rows if row is not None]))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


_Item = tuple[float, _Job, int, Tensor]


class Batcher:
    """Runs ``embed`` on batches of images of one shape, gathered from all waiting requests.

    Args:
        embed: from (B, 3, H, W) uint8 to (B, D); called from the worker thread alone.
        batch: most images a call.
        wait_seconds: how long the oldest image waits for others when a batch is not full.
        queue: images that may wait.
        queue_bytes: bytes of pixels that may wait.
        on_batch: called with the size of each batch, from the worker thread.
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        *,
        batch: int,
        wait_seconds: float,
        queue: int,
        queue_bytes: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self._embed = embed
        self._batch = batch
        self._wait = wait_seconds
        self._most, self._most_bytes = queue, queue_bytes
        self._on_batch = on_batch
        self._change = threading.Condition()
        self._waiting: dict[Shape, deque[_Item]] = {}
        self._count = self._bytes = 0
        self._closing = False
        self._speed = 0.0
        self._thread = threading.Thread(target=self._work, name="ssl-wm batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._count

    def submit(self, images: Sequence[Tensor]) -> Future[Tensor]:
        """Queue ``images``, each (3, H, W) uint8, and return the future of their rows (N, D).

        Raises:
            RefusedError: 503, the queue is full or the service is stopping.
        """
        job, now = _Job(len(images)), time.monotonic()
        size = sum(image.nbytes for image in images)
        with self._change:
            if self._closing:
                raise RefusedError(503, "stopping", "the service is stopping", wait=5.0)
            if self._count + len(images) > self._most or self._bytes + size > self._most_bytes:
                raise RefusedError(
                    503, "busy", "too many images wait already; send these again later",
                    wait=max(0.1, self._count * self._speed),
                )  # fmt: skip
            for index, image in enumerate(images):
                queue = self._waiting.setdefault(tuple(image.shape), deque())
                queue.append((now, job, index, image))
            self._count += len(images)
            self._bytes += size
            self._change.notify()
        return job.future

    def close(self) -> None:
        """Take no more images, finish those that wait, and end the worker thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        while (items := self._next()) is not None:
            began = time.monotonic()
            self._run(items)
            spent = (time.monotonic() - began) / max(1, len(items))
            self._speed = spent if not self._speed else 0.8 * self._speed + 0.2 * spent

    def _next(self) -> list[_Item] | None:
        """Return the next batch, or None when there will be none any more."""
        with self._change:
            while not self._waiting and not self._closing:
                self._change.wait()
            if not self._waiting:
                return None
            shape = min(self._waiting, key=lambda each: self._waiting[each][0][0])
            queue = self._waiting[shape]
            until = queue[0][0] + self._wait
            while len(queue) < self._batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    break
            items = [queue.popleft() for _ in range(min(self._batch, len(queue)))]
            self._count -= len(items)
            self._bytes -= sum(image.nbytes for *_, image in items)
            if not queue:
                del self._waiting[shape]
        return [item for item in items if not item[1].future.cancelled()]

    def _run(self, items: list[_Item]) -> None:
        if not items:
            return
        try:
            rows = self._embed(torch.stack([image for *_, image in items]))
        except Exception as error:  # whatever a backbone raises, the worker goes on
            for _, job, _, _ in items:
                job.fail(error)
            return
        if self._on_batch is not None:
            self._on_batch(len(items))
        for (_, job, index, _), row in zip(items, rows, strict=True):
            job.put(index, row)
