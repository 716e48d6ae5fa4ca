"""Fitting a surrogate to answers: the task, fresh answers in every epoch, and fidelity."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.data.order import Place, batch_indices, epoch_order, whole_batches
from ssl_wm.data.views import augment
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.extraction.pool import QueryPool, Views
from ssl_wm.extraction.queries import Ledger, TransferSet, query, save_ledger, save_transfer_set
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.rng import torch_stream
from ssl_wm.training.parallel import gather_rows
from ssl_wm.training.task import Batch, Task

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet


class LiveAnswers:
    """A victim that is asked about a new view of every image in every epoch.

    The answers of an epoch are asked for at its beginning and kept on disk until the next one,
    so that a run which goes on asks nothing twice.

    Args:
        victim: who answers.
        pool: the thief's images.
        indices: (n,) which of them are trained on.
        config: the theft.
        transfer: the held-out images, asked once, and their ledger.
        folder: of the theft.
    """

    def __init__(
        self, victim: Encoder, pool: ImageSet, *, indices: Tensor, config: StealConfig,
        transfer: TransferSet, folder: Path | None,
    ) -> None:  # fmt: skip
        self.victim, self.pool, self.indices, self.config = victim, pool, indices, config
        self.transfer, self.folder = transfer, folder
        self._epoch = -1
        self._rows = torch.empty(0)

    def order(self, epoch: int) -> Tensor:
        """Return the places (m,) in ``indices`` that an epoch uses, in its order."""
        size, count = self.config.fit.batch_size, len(self.indices)
        order = epoch_order(count, seed=self.config.seed, epoch=epoch)
        return order[: whole_batches(count, batch_size=size) * size]

    def ledger(self, epochs: int) -> Ledger:
        """Return all calls after so many epochs."""
        return self.transfer.ledger + Ledger(epochs * len(self.order(0)))

    def batch(self, *, epoch: int, step: int) -> Batch:
        """Return ``images`` (B, 3, H, W) uint8 and the ``answers`` (B, D) to views of them."""
        order = self.order(epoch)
        if epoch != self._epoch:
            self._ask(epoch, order)
        size = self.config.fit.batch_size
        here = slice(step * size, (step + 1) * size)
        images = self.pool.take(self.indices[order[here]])
        return {"images": images, "answers": self._rows[here]}

    def _ask(self, epoch: int, order: Tensor) -> None:
        config = ATTACKS[self.config.attack].asking.views
        if config is None:
            raise ValueError(f"attack {self.config.attack} says no views to send")
        place = self.folder / "live" / f"{epoch:05d}" if self.folder else None
        views = Views(config, seed=self.config.seed, name=f"epoch {epoch}")
        asked = query(
            self.victim, self.pool, indices=self.indices[order], folder=place, views=views
        )
        if place is not None and self.folder is not None:
            save_transfer_set(place, asked)
            save_ledger(self.folder, replace(self.transfer, ledger=self.ledger(epoch + 1)))
            for old in sorted(place.parent.iterdir()):
                if old.name < place.name:  # its epoch is in the checkpoint
                    shutil.rmtree(old)
        self._rows, self._epoch = asked.embeddings, epoch


class StealTask(Task):
    """A surrogate and the transfer set that it is fitted to.

    Args:
        surrogate: what is trained.
        pool: the images that the transfer set's indices stand for.
        transfer: images asked and the answers.
        config: the theft.
        held: first rows that are not trained on; None takes ``config.held_out`` of them.
        live: where answers to views are asked for in every epoch; all of ``transfer`` is then
            held out.
    """

    shares = True
    best_score: Tensor

    def __init__(
        self,
        surrogate: Encoder,
        pool: ImageSet | QueryPool,
        transfer: TransferSet,
        *,
        config: StealConfig,
        held: int | None = None,
        live: LiveAnswers | None = None,
    ) -> None:
        super().__init__()
        self.surrogate, self.config = surrogate, config
        self.pool, self.transfer, self.live = pool, transfer, live
        self.images = pool.images if isinstance(pool, QueryPool) else pool
        self.attack = ATTACKS[config.attack]
        count = len(transfer.indices)
        self.held = int(count * config.held_out) if held is None else held
        self.used = len(live.indices) if live else count - self.held
        self.best: nn.Module | None = None
        if config.keep == "best":
            self.best = copy.deepcopy(surrogate).requires_grad_(False)
            self.register_buffer("best_score", torch.tensor(float("-inf"), dtype=torch.float64))

    def steps_per_epoch(self) -> int:
        """Return the whole batches of the part of the transfer set that is trained on."""
        return whole_batches(self.used, batch_size=self.config.fit.batch_size)

    def batch(self, place: Place) -> Batch:
        """Return ``images`` (B, 3, H, W) uint8 and ``answers`` (B, D)."""
        if self.live is not None:
            return self.live.batch(epoch=place.epoch, step=place.step)
        places = self.held + batch_indices(
            self.used, place, seed=self.config.seed, batch_size=self.config.fit.batch_size
        )
        images = self.pool.take(self.transfer.indices[places])
        return {"images": images, "answers": self.transfer.embeddings[places]}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attack's loss, of the whole batch whatever share of it this process has."""
        images, answers, attack = batch["images"], gather_rows(batch["answers"]), self.attack
        # The last name was once the process's number: 0 keeps the views of a run of one process.
        epoch, step, rank, world = self.place
        stream = torch_stream(self.config.seed, "views", epoch, step, 0, device=images.device)
        loss = torch.zeros((), device=images.device)
        if attack.viewed:
            view = augment(images, config=attack.views, generator=stream, rank=rank, world=world)
            rows = gather_rows(self.surrogate(view))
            loss = loss + attack.viewed * attack.loss(rows, answers)
        if attack.plain:
            rows = gather_rows(self.surrogate(images))
            loss = loss + attack.plain * attack.loss(rows, answers)
        return {"loss": loss}

    def to_log(self) -> dict[str, float]:
        """Return the fidelity on the held-out slice, and note the surrogate if it is the best.

        ``held_out_cosine`` is the mean cosine to the victim's answers; for a loss that does not
        see the victim's axes there is ``held_out_relations`` too (``relations``), by which the
        best epoch is then chosen.
        """
        if self.held == 0:
            return {}
        z = embed(self.surrogate, self.pool.take(self.transfer.indices[: self.held]))
        answers = self.transfer.embeddings[: self.held]
        told = {"held_out_cosine": float(F.cosine_similarity(z, answers, dim=1).mean())}
        score = told["held_out_cosine"]
        if self.attack.relational and self.held > 2:
            score = told["held_out_relations"] = relations(z, answers)
        if self.best is not None and score > float(self.best_score):
            self.best.load_state_dict(self.surrogate.state_dict())
            self.best_score.fill_(score)
        return told

    def kept(self) -> Encoder:
        """Return the surrogate that the settings keep: the last epoch's or the best one's."""
        if self.best is not None and bool(self.best_score > float("-inf")):
            self.surrogate.load_state_dict(self.best.state_dict())
        return self.surrogate.eval()


def relations(z: Tensor, answers: Tensor) -> float:
    """Return how alike two encoders see the similarities between images, in [-1, 1].

    The Pearson correlation, over all pairs of different images, of the two encoders' cosines.
    The widths may differ; rotating either space changes nothing. 0 where one encoder sees all
    pairs alike.

    Args:
        z: (N, D) embeddings, N at least 3.
        answers: (N, D') embeddings of the same images.
    """
    above = torch.triu_indices(len(z), len(z), offset=1)
    pairs = []
    for rows in (z.double(), answers.double()):
        unit = F.normalize(rows, dim=1)
        near = (unit @ unit.T)[above[0], above[1]]
        pairs.append(near - near.mean())
    return float(F.cosine_similarity(pairs[0], pairs[1], dim=0))
