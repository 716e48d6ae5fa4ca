"""How strongly a space may be bent: the map at the least price that keeps kNN within a budget."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ssl_wm.console import progress, say
from ssl_wm.encoders.space import group_centres
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.bend import Bend, BendImages, Prices, fit_bend
from ssl_wm.watermark.carriers import Carriers
from ssl_wm.watermark.neighbours import neighbours_lost

if TYPE_CHECKING:
    from ssl_wm.watermark.bend_settings import BendSpaceConfig

LOG = logging.getLogger(__name__)

JUDGED = 20_000
"""Most training images that the map's cost is judged on."""
TRIES = 8
"""Prices that are tried at most, each twice the similarity_penalty of the one before."""
AGAIN = 1 / 3
"""Share of the steps, and of the rate, with which a map is fitted on at the next price."""


@dataclass(frozen=True)
class FittedBend:
    """A map, and how it came about.

    Attributes:
        bend: the map.
        found: the similarity_penalty it was fitted at and the points that kNN loses; empty where
            there was no budget.
        losses: the terms of each step (``fit_bend``), unweighted, with its similarity_penalty.
    """

    bend: Bend
    found: dict[str, float]
    losses: list[dict[str, float]]


def fit_within_budget(
    images: BendImages, *, seen: BendImages, labels: Tensor, config: BendSpaceConfig, stream: bytes,
    carriers: Carriers | None = None,
) -> FittedBend:  # fmt: skip
    """Return the map at the least similarity_penalty tried whose cost is in the budget.

    The cost is that of leave-one-out kNN among up to ``JUDGED`` of the natural images. A map that
    costs too much is not begun anew: it is fitted on from where it stands.

    Args:
        images: what the map is fitted to.
        seen: the same as a clean copy embeds it (``fit_bend``).
        labels: (N,) int64 what kNN is to read from the natural images.
        config: the prices, the budget and the length of the fit.
        stream: secret seed of the map's first weights and of its batches.
        carriers: that the map adds besides; None where there are none.
    """
    penalty, budget = config.similarity_penalty, config.neighbours_budget
    generator = torch_stream(stream, "map")
    bend = _identity(images, config, generator, carriers)
    losses = _fit(bend, images, seen, config=config, penalty=penalty, generator=generator)
    if budget is None:
        return FittedBend(bend, {}, losses)
    judged = torch.randperm(len(labels), generator=torch_stream(stream, "judged"))[:JUDGED]
    before = images.natural[judged]
    for number in range(TRIES):
        price = penalty * 2**number
        if number:
            losses += _fit(
                bend, images, seen, config=config, penalty=price, generator=generator, share=AGAIN
            )
        with torch.no_grad():
            lost = neighbours_lost(before, bend(before), labels[judged])
        say(f"kNN loses {lost:.2f} points at similarity_penalty {price:g}")
        if lost <= budget:
            break
    else:
        LOG.warning(
            "the map costs kNN %.2f points, more than the budget of %.2f, at a similarity_penalty "
            "of %g; raise that, or neighbours_budget to say that this is fine", lost, budget, price,
        )  # fmt: skip
    found = {"similarity_penalty": price, "knn_points_lost": round(lost, 3)}
    return FittedBend(bend, found, losses)


def _identity(
    images: BendImages, config: BendSpaceConfig, generator: Generator, carriers: Carriers | None
) -> Bend:
    """Return the map that the first fit starts from."""
    centre, _ = group_centres(images.natural, images.groups, count=images.count)
    spread = float((images.variance / images.natural.shape[1]).sqrt())
    scale = config.smoothness * spread
    return Bend(centre, scale=scale, hidden=config.hidden, generator=generator, carriers=carriers)


def _fit(
    bend: Bend, images: BendImages, seen: BendImages, *, config: BendSpaceConfig, penalty: float,
    generator: Generator, share: float = 1.0,
) -> list[dict[str, float]]:  # fmt: skip
    """Fit ``bend`` at a similarity ``penalty`` in a ``share`` of the steps and of the rate."""
    prices = Prices(
        natural=config.natural_penalty,
        held=config.held_penalty,
        linear=config.linear_penalty,
        similarity=penalty,
        rehearsed=config.rehearsed,
        ridge=config.ridge,
    )
    steps = math.ceil(share * config.steps)
    with progress("map of the space", total=steps) as advance:
        lines = fit_bend(
            bend,
            images,
            seen=seen,
            prices=prices,
            steps=steps,
            learning_rate=share * config.learning_rate,
            generator=generator,
            on_step=advance,
        )
    return [{"similarity_penalty": penalty, **line} for line in lines]
