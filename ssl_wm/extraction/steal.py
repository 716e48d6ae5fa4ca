"""Steal an encoder: query it, then fit a surrogate to the answers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Projected
from ssl_wm.encoders.load import build_encoder, load_encoder, width_of
from ssl_wm.encoders.names import with_width
from ssl_wm.encoders.properties import encoder_digest, tensor_bytes
from ssl_wm.errors import ConfigError, DataError
from ssl_wm.extraction.attacks import ATTACKS, COLOUR, MILD, STRONG, Attack
from ssl_wm.extraction.countermeasures import denoise
from ssl_wm.extraction.fitting import LiveAnswers, StealTask
from ssl_wm.extraction.pool import QueryPool, Views, paste_windows
from ssl_wm.extraction.queries import (
    Ledger,
    TransferSet,
    claim,
    load_transfer_set,
    query,
    save_transfer_set,
)
from ssl_wm.extraction.rounds import FOLDER, ask_in_rounds
from ssl_wm.extraction.selection import select
from ssl_wm.extraction.settings import Plan, Quote, StealConfig, checked_attack, plan, quote
from ssl_wm.files import sha256_bytes
from ssl_wm.processes import first_process, place
from ssl_wm.rng import derive_seed
from ssl_wm.training.loop import fit
from ssl_wm.training.parallel import let_others_go_on, wait_for_first

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

__all__ = [
    "ATTACKS", "COLOUR", "MILD", "STRONG", "Attack", "Quote", "StealConfig", "StealTask", "Theft",
    "build_surrogate", "gather", "quote", "steal", "warm_surrogate",
]  # fmt: skip


@dataclass(frozen=True)
class Theft:
    """A surrogate with what it was made from and its metrics, one line per epoch."""

    surrogate: Encoder
    transfer: TransferSet
    metrics: list[dict[str, float]]


def steal(
    victim: Encoder, *, images: ImageSet, config: StealConfig, folder: Path | None = None
) -> Theft:
    """Query ``victim`` and return a surrogate fitted to its answers.

    Args:
        victim: the encoder that answers.
        images: the thief's query pool; labels are not used.
        config: attack, surrogate and budget.
        folder: where answers, checkpoint and metrics go; what is there is resumed.

    Raises:
        ConfigError: the attack or the architecture is unknown, the budget too large, or
            settings contradict each other.
        EncoderError: the encoder to start from cannot be loaded, or an answer is unusable.
        DataError: the folder holds answers to other queries or of another victim.
        TrainingError: the loss is not finite.
    """
    attack = checked_attack(config)
    if folder is None and max(config.fit.devices, place().world) > 1:
        raise ConfigError(
            "several processes share the answers that one of them asks for through a folder, and "
            "none is given: name one, or set fit.devices to 1"
        )
    wait_for_first()
    planned = plan(config, pool=len(images))
    start = begun(config)  # what cannot be built is told before anything is asked
    transfer = gather(victim, images, config=config, planned=planned, start=start, folder=folder)
    let_others_go_on()
    answered = transfer
    if config.denoise:
        answered = replace(transfer, embeddings=denoise(transfer.embeddings).rows)
    width = transfer.embeddings.shape[1]
    surrogate = _surrogate(config, start, width=width, size=images.size[0])
    live = None
    if attack.asking.how == "live":
        chosen = _selected(config, images, start=start, count=planned.images)
        live = LiveAnswers(
            victim, images, indices=chosen[planned.held :], config=config,
            transfer=transfer, folder=folder,
        )  # fmt: skip
    pool = images if transfer.made is None else QueryPool(images, transfer.made)
    task = StealTask(surrogate, pool, answered, config=config, held=planned.held, live=live)
    metrics = fit(
        task, config=config.fit, title=f"steal ({config.attack})", folder=folder,
        run=_identity(config, answered, start=start),
    )  # fmt: skip
    if live is not None:
        transfer = replace(transfer, ledger=live.ledger(config.fit.epochs))
        if folder is not None:
            save_transfer_set(folder, transfer)
            shutil.rmtree(folder / "live", ignore_errors=True)
    surrogate = task.kept()
    surrogate.made = {
        "stage": "steal",
        "config": config.model_dump(mode="json"),
        "queries": transfer.ledger.billed,
    }
    return Theft(surrogate, transfer, metrics)


def gather(
    victim: Encoder,
    images: ImageSet,
    *,
    config: StealConfig,
    planned: Plan,
    start: Encoder,
    folder: Path | None = None,
) -> TransferSet:
    """Ask the victim what ``config`` says and return the transfer set, saved in ``folder``.

    The first ``planned.held`` rows are the held-out slice; an attack that asks while it trains
    gets these alone.

    Args:
        victim: who answers.
        images: the thief's pool.
        config: the theft.
        planned: how its budget is spent.
        start: encoder that the surrogate starts from (for features and interim surrogates).
        folder: where answers are kept.

    Raises:
        DataError, EncoderError, ConfigError: as in ``steal``.
    """
    asking = ATTACKS[config.attack].asking
    if folder is not None and not first_process():
        return _asked_by_first(folder)
    chosen = _selected(config, images, start=start, count=planned.first - planned.composites)
    pool: ImageSet | QueryPool = images
    if asking.rounds is not None:
        return _in_rounds(victim, images, chosen, config, planned, start, folder)
    indices = chosen[: planned.held] if asking.how == "live" else chosen
    made = None
    if planned.composites:
        made = paste_windows(
            images, chosen[planned.held :], count=planned.composites, seed=config.seed
        )
        pool = QueryPool(images, made)
        indices = torch.cat([chosen, len(images) + torch.arange(len(made))])
    views = None
    if asking.how == "views" and asking.views is not None:
        views = Views(asking.views, seed=config.seed, count=asking.count, unit=True)
    transfer = query(
        victim, pool, indices=indices, folder=folder, repeats=config.repeats, views=views
    )
    transfer = replace(transfer, made=made)
    if asking.how == "live":  # the ledger on disk counts the epochs too
        transfer = replace(transfer, ledger=Ledger(len(indices)))
        if folder is not None and (folder / "transfer.safetensors").is_file():
            return transfer
    if folder is not None:
        save_transfer_set(folder, transfer)
    return transfer


def _asked_by_first(folder: Path) -> TransferSet:
    """Return what the first process has asked for."""
    if not (folder / "transfer.safetensors").is_file():
        raise DataError(
            f"the first process's answers are not in {folder}: all machines that take part must "
            "see the same --out"
        )
    return load_transfer_set(folder)


def _in_rounds(
    victim: Encoder, images: ImageSet, chosen: Tensor, config: StealConfig, planned: Plan,
    start: Encoder, folder: Path | None,
) -> TransferSet:  # fmt: skip
    if folder is not None:
        claim(folder, victim=victim, pool=images, indices=chosen, repeats=config.repeats)
        if (folder / "transfer.safetensors").is_file():
            return load_transfer_set(folder)

    def build(width: int) -> Encoder:
        return _surrogate(config, start, width=width, size=images.size[0])

    transfer = ask_in_rounds(
        victim, images, first=chosen, build=build, planned=planned, config=config, folder=folder
    )
    if folder is not None:
        save_transfer_set(folder, transfer)
        shutil.rmtree(folder / FOLDER)
    return transfer


def _selected(config: StealConfig, images: ImageSet, *, start: Encoder, count: int) -> Tensor:
    """Return ``count`` images of the pool, the held-out ones first."""
    return select(
        config.selection, len(images), budget=count, seed=config.seed,
        features=lambda: embed(start, images),
    )  # fmt: skip


def begun(config: StealConfig) -> Encoder:
    """Return the encoder that the surrogate begins as, of its own width.

    Raises:
        ConfigError: the architecture is unknown.
        EncoderError: the encoder to start from cannot be loaded.
    """
    if config.start is not None:
        return load_encoder(config.start)
    return build_encoder(config.arch, seed=derive_seed(config.seed, "surrogate"))


def _surrogate(config: StealConfig, start: Encoder, *, width: int, size: int) -> Encoder:
    if config.start is not None:
        return warm_surrogate(config.start, width=width, seed=config.seed, size=size)
    return build_surrogate(config.arch, width=width, seed=config.seed, size=size)


def _identity(config: StealConfig, transfer: TransferSet, *, start: Encoder) -> dict[str, Any]:
    """Return what a checkpoint's run must share."""
    run = {
        "stage": "steal",
        "config": config.model_dump(),
        "pool": transfer.pool,
        "answers": sha256_bytes(bytes(tensor_bytes(transfer.embeddings.contiguous()))),
    }
    return run if config.start is None else {**run, "start": encoder_digest(start)}


def build_surrogate(arch: str, *, width: int, seed: int, size: int) -> Encoder:
    """Return a fresh encoder of ``arch`` whose embeddings are ``width`` wide.

    Where the architecture's own width differs, a linear projection follows it (the saved
    architecture is then ``arch+width``).

    Args:
        arch: the architecture's name, perhaps with ``?size=N``.
        width: of the answers.
        seed: of the weights.
        size: side of the pool's images in pixels.

    Raises:
        EncoderError: the architecture cannot be built, or takes no images of this size.
        ConfigError: its name is unknown.
    """
    surrogate = build_encoder(arch, seed=derive_seed(seed, "surrogate"))
    if width_of(surrogate, image_size=size) == width:
        return surrogate
    return build_encoder(with_width(arch, width), seed=derive_seed(seed, "surrogate"))


def warm_surrogate(start: str, *, width: int, seed: int, size: int) -> Encoder:
    """Return the encoder ``start``, followed by a fresh linear projection if its width differs.

    A self-supervised encoder that the thief trained or downloaded costs no query (the idea of
    Podhajski et al., AAAI 2026, for graphs).

    Args:
        start: an encoder spec.
        width: of the answers.
        seed: of the projection.
        size: side of the pool's images in pixels.

    Raises:
        EncoderError: it cannot be loaded, or takes no images of this size.
        ConfigError: its name is unknown.
    """
    encoder = load_encoder(start)
    own = width_of(encoder, image_size=size)
    if own == width:
        return encoder
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "projection"))
        backbone = Projected(encoder.backbone, inputs=own, outputs=width)
    return Encoder(
        backbone, arch=with_width(encoder.arch, width), preprocessing=encoder.preprocessing
    )
