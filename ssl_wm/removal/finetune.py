"""Attempts that train. Each trains and returns the encoder that it is given.

Their strength is the peak learning rate (``decay``: the weight decay). With a folder they are
resumable: the same call goes on from the last finished epoch, and a finished run trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.layers import Layer, layers_of
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import EncoderError, choose
from ssl_wm.removal.boundary import BoundaryTask, TurnedHead
from ssl_wm.removal.given import Given
from ssl_wm.removal.overwriting import OverwriteTask
from ssl_wm.removal.tasks import BetweenTask, LabelTask, StillTask, class_numbers
from ssl_wm.rng import derive_seed
from ssl_wm.training.loop import fit
from ssl_wm.training.objectives import OBJECTIVES
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, build_objective
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Task
from ssl_wm.verification.probe import fit_probe

Parts = Literal["all", "last"]


def continue_ssl(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Go on with self-supervised training, without labels, at a peak rate of ``strength``.

    Raises:
        ConfigError: the objective is unknown, or there are no images.
        TrainingError: the loss is not finite.
    """
    return _ssl(encoder, given=given, loop=_at_rate(given, strength), folder=given.folder)


def decay(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Go on with self-supervised training under a weight decay of ``strength``, then without.

    Raises:
        ConfigError, TrainingError: as in ``continue_ssl``.
    """
    loop = given.config.fit
    heavy = loop.model_copy(update={"weight_decay": strength})
    first, second = (given.folder / n if given.folder else None for n in ("decay", "recover"))
    encoder = _ssl(encoder, given=given, loop=heavy, folder=first)
    return _ssl(encoder, given=given, loop=loop, folder=second)


def fine_tune(
    encoder: Encoder, *, strength: float, given: Given, parts: Parts, reset: bool = False
) -> Encoder:
    """Train with labels: all layers or the last one, as it is or set to random weights first.

    An encoder's "last layer" is the last convolution or linear map that is executed, with its
    norm. A classifier follows it and is thrown away: a fitted linear probe, or, where the last
    layer was reset, random.

    Args:
        encoder: what is trained.
        strength: peak learning rate.
        given: images with labels.
        parts: "all" or "last".
        reset: whether the last layer starts from random weights.

    Raises:
        ConfigError: there are no images.
        DataError: their labels hold fewer than two classes.
        TrainingError: the loss is not finite.
    """
    run = _run(encoder, "labels", given, parts=parts, reset=reset)
    layer = _last_layer(encoder, given)
    if reset:
        _reset(layer, seed=given.seed)
    head = _random_head(encoder, given) if reset else _probe_head(encoder, given)
    trained = layer.parts if parts == "last" else None
    task = LabelTask(encoder, head=head, given=given, trained=trained)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def transfer(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Train all layers with a new random head on the images of another task.

    Raises:
        ConfigError, DataError, TrainingError: as in ``fine_tune``.
    """
    run = _run(encoder, "transfer", given)
    task = LabelTask(encoder, head=_random_head(encoder, given), given=given)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def mixed_labels(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Train all layers with labels, and composites of the thief's own with random labels.

    Raises:
        ConfigError, DataError, TrainingError: as in ``fine_tune``.
    """
    run = _run(encoder, "mixed-labels", given)
    task = LabelTask(encoder, head=_probe_head(encoder, given), given=given, composites=True)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def mixed_features(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Pull composites of the thief's own between their parents (``BetweenTask``), without labels.

    Raises:
        ConfigError: there are no images.
        TrainingError: the loss is not finite.
    """
    run = _run(encoder, "mixed-features", given)
    task = BetweenTask(encoder, given=given)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def overwrite(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Put a mark of the thief's own on the encoder (``OverwriteTask``), without labels.

    Raises:
        ConfigError: there are no images.
        DataError: there are too few.
        TrainingError: the loss is not finite.
    """
    run = _run(encoder, "overwrite", given)
    task = OverwriteTask(encoder, given=given)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def wrk(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Train all layers on labels, wrongly labelled boundary samples and a head that turns away.

    Raises:
        ConfigError, DataError, TrainingError: as in ``fine_tune``.
    """
    run = _run(encoder, "wrk", given)
    old = _probe_head(encoder, given)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(given.seed, "head"))
        head = TurnedHead(old)
    task = BoundaryTask(encoder, head=head, old=old, given=given)
    return _fitted(task, run=run, loop=_at_rate(given, strength), folder=given.folder)


def _ssl(encoder: Encoder, *, given: Given, loop: FitConfig, folder: Path | None) -> Encoder:
    config = given.config
    name = choose(config.objective, OBJECTIVES, what="objective")
    images = given.needed
    settings = PretrainConfig(
        arch=encoder.arch, objective=name, seed=given.seed, views=config.ssl_views, fit=loop
    )
    run = _run(encoder, "ssl", given)
    objective = build_objective(name, encoder, seed=given.seed, size=images.size)
    task = PretrainTask(encoder, objective, images, config=settings)
    return _fitted(task, run=run, loop=loop, folder=folder)


def _fitted(
    task: PretrainTask | LabelTask | StillTask, *, run: Mapping[str, Any], loop: FitConfig,
    folder: Path | None,
) -> Encoder:  # fmt: skip
    encoder = task.encoder
    device = encoder.mean.device
    trained: Task = task
    fit(trained, config=loop, title=f"remove ({run['attempt']})", folder=folder, run=run)
    return encoder.requires_grad_(True).to(device).eval()


def _at_rate(given: Given, rate: float) -> FitConfig:
    return given.config.fit.model_copy(update={"learning_rate": rate})


def _run(encoder: Encoder, attempt: str, given: Given, **more: object) -> dict[str, Any]:
    """Return what a checkpoint's run must share; called before the encoder is changed."""
    return {
        "stage": "remove",
        "attempt": attempt,
        "encoder": encoder_digest(encoder),
        "images": given.needed.fingerprint,
        "seed": given.seed,
        "config": given.config.model_dump(),
        **more,
    }


def _last_layer(encoder: Encoder, given: Given) -> Layer:
    return layers_of(encoder, side=given.side(encoder))[-1]


def _reset(layer: Layer, *, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "reset"))
        for part in layer.parts:
            start = getattr(part, "reset_parameters", None)
            if start is None:
                raise EncoderError(f"a layer {type(part).__name__} cannot be reset")
            start()


def _random_head(encoder: Encoder, given: Given) -> nn.Module:
    """Return standardisation by the batch and a random linear map to the classes."""
    _, count = class_numbers(given.needed)
    width = given.width(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(given.seed, "head"))
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, count))


def _probe_head(encoder: Encoder, given: Given) -> nn.Linear:
    """Return a linear probe fitted to a sample of the images, as a module."""
    numbers, count = class_numbers(given.needed)
    sample = given.sample()
    probe = fit_probe(embed(encoder, given.needed.take(sample)), numbers[sample])
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(probe.weight.shape[1], count)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(float(probe.bias.min()))
        head.weight[probe.classes] = probe.weight.float()
        head.bias[probe.classes] = probe.bias.float()
    return head
