"""Dynamic batching: images of many requests in one pass of the encoder; one or more workers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ssl_wm.encoders.serving.refusals import RefusedError

Shape = tuple[int, ...]


class _Job:
    """One request's images: rows come in, and with the last of them the future is set."""

    def __init__(self, count: int) -> None:
        self.future: Future[Tensor] = Future()
        self.rows: list[Tensor | None] = [None] * count
        self.missing = count
        self._lock = threading.Lock()

    def put(self, index: int, row: Tensor) -> None:
        with self._lock:
            self.rows[index] = row
            self.missing -= 1
            whole = self.missing == 0
        if whole and not self.future.done():
            self.future.set_result(torch.stack([row for row in self.rows if row is not None]))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


_Item = tuple[float, _Job, int, Tensor]


class Batcher:
    """Runs ``embed`` on batches of images of one shape, gathered from all waiting requests.

    Args:
        embed: from (B, 3, H, W) uint8 to (B, D); called from all workers at once.
        batch: most images a call.
        wait_seconds: how long the oldest image waits for others when a batch is not full.
        queue: images that may wait.
        queue_bytes: bytes of pixels that may wait.
        on_batch: called with the size of each batch, from the workers.
        workers: passes at once. Each gets an equal share of torch's threads, and an equal share
            of what waits while others have nothing to do.
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
        workers: int = 1,
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
        self._idle = 0
        self._share = max(1, torch.get_num_threads() // workers)
        self._threads = [
            threading.Thread(target=self._work, name=f"ssl-wm batches {number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._count

    @property
    def idle(self) -> int:
        """Workers that have nothing to do, or wait for a batch to fill up."""
        return self._idle

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
            self._change.notify_all()
        return job.future

    def close(self) -> None:
        """Take no more images, finish those that wait, and end the workers."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        torch.get_num_threads()  # torch gives each new thread its number once, which then stays
        with threadpool_limits(self._share, user_api="openmp"):
            while (items := self._next()) is not None:
                began = time.monotonic()
                self._run(items)
                spent = (time.monotonic() - began) / max(1, len(items)) / len(self._threads)
                self._speed = spent if not self._speed else 0.8 * self._speed + 0.2 * spent

    def _next(self) -> list[_Item] | None:
        """Return the next batch, or None when there will be none any more."""
        with self._change:
            self._idle += 1
            try:
                while True:
                    if self._waiting:
                        shape = min(self._waiting, key=lambda each: self._waiting[each][0][0])
                        queue = self._waiting[shape]
                        left = queue[0][0] + self._wait - time.monotonic()
                        if len(queue) >= self._batch or left <= 0 or self._closing:
                            return self._take(shape)
                        self._change.wait(left)
                    elif self._closing:
                        return None
                    else:
                        self._change.wait()
            finally:
                self._idle -= 1

    def _take(self, shape: Shape) -> list[_Item]:
        queue = self._waiting[shape]
        fair = -(-len(queue) // self._idle)
        items = [queue.popleft() for _ in range(min(self._batch, fair))]
        self._count -= len(items)
        self._bytes -= sum(image.nbytes for *_, image in items)
        if not queue:
            del self._waiting[shape]
        self._change.notify_all()
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
