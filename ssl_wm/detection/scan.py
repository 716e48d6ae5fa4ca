"""The scan of all pairs of groups and the thief's mixers for an odd target (PRMS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.detection.given import Detection, Given, Half
from ssl_wm.detection.mixers import GUESSES, composites
from ssl_wm.detection.triggers import Composite, in_floats
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.space import directions, group_centres
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream
from ssl_wm.verification.margins import margin_table
from ssl_wm.verification.probe import fit_probe

SHOWN = 5
BLOCK = 512


def scan_pairs(encoder: Encoder, given: Given) -> Detection:
    """Return how oddly composites of some two groups gather in a third one.

    For every ordered pair (A, B) and mixer: what ``ScanConfig.reading`` says of composites of
    held-out images and each third group t. Alone, a cell is compared with what t draws from
    composites of *other* pairs by the same mixer; ``against`` compares it with the same cell in
    clean encoders. The score is the largest excess of all cells.

    Raises:
        DataError: there are fewer than three groups, or too few images.
        ConfigError: a mixer is unknown.
    """
    count, config = given.group_count(), given.config.scan
    names = config.mixers or tuple(GUESSES)
    pairs = list(permutations(range(count), 2))
    z = embed(encoder, given.fit.pixels)
    tables = []
    for name in names:
        first, second = drawn_pairs(
            given.held, pairs, count=config.per_cell, seed=given.seed, mixer=name
        )
        mixed = [
            embed(encoder, composites(in_floats(a), in_floats(b), mixer=name))
            for a, b in zip(first.split(BLOCK), second.split(BLOCK), strict=True)
        ]
        tables.append(_read(torch.cat(mixed), z, given.fit.groups, pairs, count, config.reading))
    return against(Detection(0.0, table=torch.stack(tables), details={"mixers": list(names)}), [])


def drawn_pairs(
    half: Half, pairs: Sequence[tuple[int, int]], *, count: int, seed: int, mixer: str
) -> tuple[Tensor, Tensor]:
    """Return images of A and of B for each pair (A, B), (len(pairs) * count, 3, H, W) each.

    Args:
        half: images to draw from, with replacement.
        pairs: ordered pairs of groups.
        count: images a pair.
        seed: of the draws.
        mixer: names the stream of the draws.
    """
    stream = torch_stream(seed, "scan", mixer)
    members = [
        (half.groups == group).nonzero().flatten() for group in range(int(half.groups.max()) + 1)
    ]

    def draw(group: int) -> Tensor:
        return members[group][torch.randint(len(members[group]), (count,), generator=stream)]

    places = [(draw(a), draw(b)) for a, b in pairs]
    first, second = (torch.cat([both[side] for both in places]) for side in (0, 1))
    return half.pixels[first], half.pixels[second]


def _read(
    mixed: Tensor, z: Tensor, groups: Tensor, pairs: list[tuple[int, int]], count: int,
    reading: str,
) -> Tensor:  # fmt: skip
    """Return the value of each (A, B, t), (G, G, G) float64; NaN where two are the same."""
    centre, centres = group_centres(z, groups, count=count)
    if reading == "margin":
        return margin_table(mixed, pairs=pairs, centre=centre, centres=centres)
    if reading == "nearest":
        read = (directions(mixed, centre=centre) @ centres.T).argmax(dim=1)
    else:
        read = fit_probe(z, groups).predict(mixed)
    shares = F.one_hot(read, count).double().view(len(pairs), -1, count).mean(dim=1)
    table = torch.full((count, count, count), torch.nan, dtype=torch.float64)
    for (a, b), row in zip(pairs, shares, strict=True):
        row[[a, b]] = torch.nan
        table[a, b] = row
    return table


def against(found: Detection, others: Sequence[Detection]) -> Detection:
    """Return ``found`` with its cells compared with the same cells of other encoders.

    The excess of a cell is its value minus the others' mean; without others it is the value
    minus the mean over all pairs of other groups that the same mixer and target have.

    Args:
        found: of one encoder.
        others: of other encoders, with the same images, settings and seed.

    Raises:
        ConfigError: the tables do not belong together.
    """
    if found.table is None or any(each.table is None for each in others):
        raise ConfigError("a scan is compared cell by cell, and a table is missing; scan again")
    tables = [each.table for each in others if each.table is not None]
    if any(table.shape != found.table.shape for table in tables):
        raise ConfigError(
            "the scans have tables of different shapes; scan all encoders with the same groups "
            "and mixers"
        )
    if tables:
        excess = found.table - torch.stack(tables).mean(dim=0)
    else:
        excess = found.table - usual(found.table)
    ranked = excess.nan_to_num(nan=-torch.inf).flatten().argsort(descending=True, stable=True)
    names, size = found.details["mixers"], found.table.shape
    cells = []
    for place in ranked[:SHOWN].tolist():
        mixer, a, b, target = (int(x) for x in torch.unravel_index(torch.tensor(place), size))
        cells.append(
            {
                "a": a, "b": b, "target": target, "mixer": names[mixer],
                "value": float(found.table[mixer, a, b, target]),
                "excess": float(excess[mixer, a, b, target]),
            }
        )  # fmt: skip
    triggers = tuple(
        Composite(cell["target"], cell["a"], cell["b"], str(cell["mixer"])) for cell in cells
    )
    return replace(
        found, score=float(cells[0]["excess"]), group=cells[0]["target"], triggers=triggers,
        details={"mixers": names, "cells": cells},
    )  # fmt: skip


def usual(table: Tensor) -> Tensor:
    """Return what a mixer and target have on average over pairs that share no group with (A, B).

    With four groups or fewer no such pair is left; then all other pairs with that target count.

    Args:
        table: (M, G, G, G) at [mixer, A, B, t].

    Returns:
        (M, G, G, G).
    """
    count = table.shape[1]
    known = ~table.isnan()
    values = table.nan_to_num()

    def sums(x: Tensor) -> Tensor:
        total = x.sum(dim=(1, 2), keepdim=True)
        rows, columns = x.sum(dim=2), x.sum(dim=1)  # by A, by B: (M, G, G)
        touching = rows + columns  # pairs in which a group takes part
        both = x + x.transpose(1, 2)
        if count <= 4:
            return total - x
        return total - touching.unsqueeze(2) - touching.unsqueeze(1) + both

    return sums(values) / sums(known.double()).clamp(min=1)
