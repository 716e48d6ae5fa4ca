"""The numbers in a bundle besides the suspect's answers, held against what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_wm.encoders.space import Axes, pairs_of
from ssl_wm.files import read_tensors
from ssl_wm.verification.carried import Base
from ssl_wm.verification.questions import REFERENCE, own_size, question_size
from ssl_wm.verification.readings import Margins
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.watermark.carriers import AXES, carrier_values
from ssl_wm.watermark.open_key import OpenKey


def read_base(path: Path, key: OpenKey, config: VerifyConfig) -> Base:
    """Return what carriers were read against, from the file at ``path``.

    Raises:
        ValueError: a tensor has another shape or type, or holds numbers that are not finite.
        KeyError: one is missing.
    """
    tensors = read_tensors(path)
    if "directions" in tensors:
        return _base_of_3(tensors, key, config)
    z, carriers = tensors["z"], tensors["carriers"]
    rows = question_size(REFERENCE, key, config=config.read)
    for name, part in (("z", z), ("carriers", carriers)):
        if part.dtype != torch.float32 or part.ndim != 2 or len(part) != rows or not part.shape[1]:
            raise ValueError(f"'{name}' is {part.dtype} {tuple(part.shape)}; expected ({rows}, n)")
        _check_finite(part, name)
    most = len(pairs_of(AXES))
    if carriers.shape[1] > most:
        raise ValueError(f"there are {carriers.shape[1]} carriers; expected 1 to {most}")
    return Base(z, carriers)


def _base_of_3(tensors: Mapping[str, Tensor], key: OpenKey, config: VerifyConfig) -> Base:
    """Return what a bundle of version 3 holds in its place: coordinates, not carriers."""
    z, mean, directions = (tensors[name] for name in ("z", "mean", "directions"))
    rows = question_size(REFERENCE, key, config=config.read)
    width, count = directions.shape
    shapes = {"z": (z, (rows, width)), "mean": (mean, (width,)), "directions": (directions, None)}
    for name, (part, shape) in shapes.items():
        if part.dtype != torch.float64 or (shape and tuple(part.shape) != shape):
            raise ValueError(f"'{name}' is {part.dtype} {tuple(part.shape)}; expected {shape}")
        _check_finite(part, name)
    if not 0 < count <= AXES:
        raise ValueError(f"'directions' are {count}; expected 1 to {AXES}")
    return Base(z, carrier_values(z, Axes(mean, directions)))


def _check_finite(part: Tensor, name: str) -> None:
    if not bool(part.isfinite().all()):
        raise ValueError(f"'{name}' holds numbers that are not finite")


def read_nulls(
    path: Path, key: OpenKey, config: VerifyConfig, *, count: int, carriers: int
) -> tuple[Margins, ...]:
    """Return what was read from each of ``count`` null encoders, from the file at ``path``.

    Args:
        path: the file.
        key: the revealed sub-keys.
        config: how was read.
        count: null encoders.
        carriers: carriers that are read of each; 0 for none.

    Raises:
        ValueError: a tensor has another shape or type, or a margin is no number.
        KeyError: one is missing.
    """
    tensors = read_tensors(path)
    groups, subs, read = len(key.groups), len(key.sub_keys), config.read
    places = torch.arange(groups)
    a, b, t = places.view(-1, 1, 1), places.view(1, -1, 1), places.view(1, 1, -1)
    shapes: dict[str, tuple[int, ...]] = {
        "tables": (count, subs, groups, groups, groups),
        "own": (count, subs, own_size(key, config=read)),
        "recipes": (count, subs, read.decoy_recipes + 1),
        **({"carried": (count, carriers)} if carriers else {}),
    }
    for name, shape in shapes.items():
        part = tensors[name]
        if part.dtype != torch.float64 or tuple(part.shape) != shape:
            raise ValueError(
                f"'{name}' is {part.dtype} {tuple(part.shape)}; expected torch.float64 {shape}"
            )
        known = torch.ones(shape, dtype=torch.bool)
        if name == "tables":
            known = ((a != b) & (b != t) & (a != t)).expand(shape)
        if not torch.equal(part.isfinite(), known):
            raise ValueError(f"'{name}' is not a number where one is due, or the other way round")
    return tuple(
        Margins(**{name: tensors[name][place] for name in shapes}) for place in range(count)
    )
