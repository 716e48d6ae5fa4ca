"""The service behind the routes: from a request's images to its answer, billed once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import encoder_digest, width_of, working_device
from ssl_wm.encoders.serving.accounts import Account, Accounts
from ssl_wm.encoders.serving.batching import Batcher
from ssl_wm.encoders.serving.bodies import Buffered
from ssl_wm.encoders.serving.decoding import decode_files
from ssl_wm.encoders.serving.logs import Metrics, log_event
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.replays import Replays
from ssl_wm.encoders.serving.settings import AccountsConfig, ServeConfig
from ssl_wm.encoders.serving.shield import Shield
from ssl_wm.encoders.serving.steady import SteadyEncoder
from ssl_wm.errors import EncoderError


class Service:
    """One encoder, its customers and its limits.

    Args:
        encoder: what is served; put into eval mode, and on the accelerator where there is one.
        config: limits and defences.
        accounts: the customers.
        secret: 32 bytes that noise and the accounts' maps are drawn from.

    Raises:
        EncoderError: the encoder breaks the contract.
    """

    def __init__(
        self, encoder: Encoder, *, config: ServeConfig, accounts: AccountsConfig, secret: bytes
    ) -> None:
        encoder.to(working_device(encoder))
        self.encoder = SteadyEncoder(encoder, batch=config.batch)
        self.config = config.for_encoder(resizes=encoder.preprocessing.size is not None)
        self.width = width_of(self.encoder)
        self.model = model_name(encoder)
        self.accounts = Accounts(accounts)
        self.metrics = Metrics()
        self.buffered = Buffered()
        self.shield = Shield(config.defence, width=self.width, secret=secret)
        self.replays = Replays(most=config.replay_bytes, seconds=config.replay_seconds)
        self.in_work = 0
        self.stopping = False
        self._tasks: set[asyncio.Task[Tensor]] = set()
        workers = min(8, max(2, os.cpu_count() or 2))
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="ssl-wm decode")
        self.batcher = Batcher(
            self._embed, batch=config.batch, wait_seconds=config.wait_ms / 1000,
            queue=config.queue, queue_bytes=config.queue_bytes,
            on_batch=self.metrics.batches.observe, workers=config.workers or usual_workers(encoder),
        )  # fmt: skip

    def start(
        self, account: Account, files: Sequence[bytes], *, name: str | None, content: str
    ) -> tuple[asyncio.Future[Tensor], bool]:
        """Return the future rows (N, D) for ``files``, and whether they were asked for before.

        The work goes on when the client leaves; its answer is kept if the request has a name.

        Args:
            account: who asks and is billed.
            files: PNG and JPEG images.
            name: the request's ``Idempotency-Key``.
            content: SHA-256 of the files.

        Raises:
            RefusedError: the account may not ask this now, or used the name for other content.
        """
        if name is not None:
            known = self.replays.find(account.name, name, content=content)
            if known is not None:
                return known, True
        account.reserve(len(files))
        task = asyncio.create_task(self._answer(account, files))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        if name is not None:
            self.replays.start(account.name, name, content=content, rows=task)
        return task, False

    async def _answer(self, account: Account, files: Sequence[bytes]) -> Tensor:
        loop = asyncio.get_running_loop()
        try:
            images = await loop.run_in_executor(self.pool, self._decode, files)
            rows = await asyncio.wrap_future(self.batcher.submit(images))
            if not bool(torch.isfinite(rows).all()):
                raise EncoderError("the encoder's answer is not finite")
            if self.shield.is_on:
                rows = await loop.run_in_executor(self.pool, self._defend, rows, account.name)
        except BaseException:
            account.release(len(files))
            raise
        account.settle(len(files))
        self.metrics.images.inc(len(files))
        return rows

    def _decode(self, files: Sequence[bytes]) -> list[Tensor]:
        return decode_files(files, limits=self.config)

    def _defend(self, rows: Tensor, account: str) -> Tensor:
        return self.shield.apply(rows, account=account)

    def _embed(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            rows: Tensor = self.encoder(images.to(self.encoder.mean.device))
            return rows.cpu()

    async def close(self) -> None:
        """Finish what was started and end the threads."""
        self.stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self.batcher.close)
        self.pool.shutdown()
        log_event("stopped")


def usual_workers(encoder: Encoder) -> int:
    """Return how many passes run at once where the settings do not say.

    A function or module given in Python may not bear two calls at once, a GPU gains nothing.
    """
    alone = encoder.arch == "custom" or encoder.mean.device.type != "cpu"
    return 1 if alone else min(2, torch.get_num_threads())


def model_name(encoder: Encoder) -> str:
    """Return what the service calls its encoder: its architecture and part of its digest."""
    try:
        return f"{encoder.arch}-{encoder_digest(encoder)[:16]}"
    except EncoderError:  # a function has no weights to digest
        return encoder.arch


def failure(error: Exception) -> RefusedError:
    """Return what a client is told of an ``error`` inside the service: nothing of its text."""
    if isinstance(error, RefusedError):
        return error
    log_event("failed", level=40, trace=True, error=type(error).__name__)
    return RefusedError(500, "internal", "the service failed to answer; try again later")


def _retrieve(task: asyncio.Task[Tensor]) -> None:
    """Look at the outcome, so that a failure nobody waits for any more is not reported twice."""
    if not task.cancelled():
        task.exception()
