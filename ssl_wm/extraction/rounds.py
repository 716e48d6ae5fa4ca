"""The loop of attacks that ask in rounds: send, learn, train an interim surrogate, send again.

Each round has its folder below ``rounds/``: what is sent (written before it is sent), the
answers, the interim surrogate's checkpoint and what the policy has learned (written last). A run
that goes on takes up the last finished round; nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import tensor_bytes
from ssl_wm.errors import DataError
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.extraction.fitting import StealTask
from ssl_wm.extraction.policies import POLICIES, made_images
from ssl_wm.extraction.pool import QueryPool, check_memory
from ssl_wm.extraction.queries import TransferSet, query, save_transfer_set
from ssl_wm.extraction.settings import Plan, StealConfig
from ssl_wm.files import read_tensors, sha256_bytes, write_tensors
from ssl_wm.rng import derive_seed
from ssl_wm.training.checkpoint import drop_checkpoint
from ssl_wm.training.loop import fit

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

FOLDER = "rounds"
SENT = "sent.safetensors"
LEARNED = "learned.safetensors"


def ask_in_rounds(
    victim: Encoder,
    pool: ImageSet,
    *,
    first: Tensor,
    build: Callable[[int], Encoder],
    planned: Plan,
    config: StealConfig,
    folder: Path | None,
) -> TransferSet:
    """Return the transfer set of all rounds; its first rows are those of ``first``.

    It ends when the budget is spent, or when a round finds nothing that was not sent before.

    Args:
        victim: who answers.
        pool: the thief's images.
        first: (n,) images that are asked before the first round.
        build: makes the interim surrogate for answers of a width.
        planned: how the budget is spent.
        config: the theft.
        folder: where answers are kept and an interrupted run goes on.

    Raises:
        DataError: the folder holds answers to other queries, or they are damaged.
        ConfigError: the made images do not fit into memory.
    """
    run = _Run(victim, pool, first=first, planned=planned, config=config, folder=folder)
    if ATTACKS[config.attack].asking.how == "jacobian":
        check_memory(planned.images - planned.first, size=pool.size)
    surrogate: Encoder | None = None
    known: TransferSet | None = None
    number = 0
    while known is None or len(known.indices) < planned.images:
        asked = run.ask(number, surrogate=surrogate, known=known)
        if asked is None:
            break
        before, known = known, run.joined(known, asked)
        if surrogate is None:
            surrogate = build(known.embeddings.shape[1])
        place, following = run.place(number), run.place(number + 1)
        finished = place is not None and (place / LEARNED).is_file()
        passed = following is not None and (following / LEARNED).is_file()
        if finished and place is not None and not passed:
            run.policy.restore(read_tensors(place / LEARNED, error=DataError))
        if before is not None and not finished:
            run.policy.learn(asked, surrogate=surrogate, known=before)
        if not passed and len(known.indices) < planned.images:
            run.train(number, surrogate=surrogate, known=known, fresh=len(asked.indices))
        number += 1
    if known is None:
        raise DataError("there is no image to send; the budget must be at least 1")
    return known


class _Run:
    """What stays the same from round to round."""

    def __init__(
        self, victim: Encoder, pool: ImageSet, *, first: Tensor, planned: Plan,
        config: StealConfig, folder: Path | None,
    ) -> None:  # fmt: skip
        asking = ATTACKS[config.attack].asking
        if asking.rounds is None:
            raise ValueError(f"attack {config.attack} asks in no rounds")
        self.victim, self.pool, self.first = victim, pool, first
        self.planned, self.config, self.folder = planned, config, folder
        self.rounds = asking.rounds
        self.policy = POLICIES[asking.how](
            pool, config=config, rounds=asking.rounds, held=planned.held
        )

    def place(self, number: int) -> Path | None:
        """Return the folder of a round."""
        return self.folder / FOLDER / f"{number:05d}" if self.folder else None

    def ask(
        self, number: int, *, surrogate: Encoder | None, known: TransferSet | None
    ) -> TransferSet | None:
        """Return the answers of a round, with the images made for it; None if there are none."""
        place = self.place(number)
        made = made_images(None, self.pool)
        if place is not None and (place / SENT).is_file():
            told = read_tensors(place / SENT, error=DataError)
            indices, made = told["indices"], told["made"]
        elif known is None or surrogate is None:
            indices = self.first
        else:
            size = min(self.planned.batch, self.planned.images - len(known.indices))
            indices, made = self.policy.propose(number, size=size, surrogate=surrogate, known=known)
            start = len(self.pool) + len(made_images(known, self.pool))
            indices = torch.cat([indices, start + torch.arange(len(made))])
        if len(indices) == 0:
            return None
        if place is not None and not (place / SENT).is_file():
            write_tensors(place / SENT, {"indices": indices, "made": made})
        whole = torch.cat([made_images(known, self.pool), made])
        asked = query(
            self.victim, QueryPool(self.pool, whole), indices=indices, folder=place,
            repeats=self.config.repeats,
        )  # fmt: skip
        if place is not None:
            save_transfer_set(place, asked)
        return replace(asked, made=made)

    def joined(self, known: TransferSet | None, asked: TransferSet) -> TransferSet:
        """Return the earlier answers followed by those of a round."""
        if known is None:
            return asked
        return TransferSet(
            torch.cat([known.indices, asked.indices]),
            torch.cat([known.embeddings, asked.embeddings]),
            known.ledger + asked.ledger,
            known.pool,
            torch.cat([made_images(known, self.pool), made_images(asked, self.pool)]),
        )

    def train(self, number: int, *, surrogate: Encoder, known: TransferSet, fresh: int) -> None:
        """Train the interim surrogate, note what was learned, drop the round before's state."""
        rows = self.policy.interim(len(known.indices), fresh=fresh, number=number)
        part = replace(known, indices=known.indices[rows], embeddings=known.embeddings[rows])
        changes = {
            "seed": derive_seed(self.config.seed, "round", number),
            "fit": self.config.fit.model_copy(update={"epochs": self.rounds.epochs}),
            "keep": "last",
        }
        config = self.config.model_copy(update=changes)
        images = QueryPool(self.pool, made_images(known, self.pool))
        task = StealTask(surrogate, images, part, config=config, held=0)
        answers = sha256_bytes(bytes(tensor_bytes(part.embeddings.contiguous())))
        run = {"stage": "steal round", "config": self.config.model_dump(), "answers": answers}
        place = self.place(number)
        fit(task, config=config.fit, title=f"round {number}", folder=place, run=run)
        self.policy.settle(surrogate)
        if place is not None:
            write_tensors(place / LEARNED, self.policy.state())
            before = self.place(number - 1) if number else None
            if before is not None:
                drop_checkpoint(before)
