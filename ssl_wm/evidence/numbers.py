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
    rows, most = question_size(REFERENCE, key, config=config.read), len(pairs_of(AXES))
    z, carriers = tensors["z"], tensors["carriers"]
    for name, part in (("z", z), ("carriers", carriers)):
        _check(part, name, dtype=torch.float32, shape=(rows, None))
    if carriers.shape[1] > most:
        raise ValueError(f"there are {carriers.shape[1]} carriers; expected 1 to {most}")
    return Base(z, carriers)


def _base_of_3(tensors: Mapping[str, Tensor], key: OpenKey, config: VerifyConfig) -> Base:
    """Return what a bundle of version 3 holds in its place: coordinates, not carriers."""
    rows = question_size(REFERENCE, key, config=config.read)
    z, mean, directions = (tensors[name] for name in ("z", "mean", "directions"))
    _check(directions, "directions", dtype=torch.float64, shape=(None, None))
    width, count = directions.shape
    _check(mean, "mean", dtype=torch.float64, shape=(width,))
    _check(z, "z", dtype=torch.float64, shape=(rows, width))
    if count > AXES:
        raise ValueError(f"'directions' are {count}; expected 1 to {AXES}")
    return Base(z, carrier_values(z, Axes(mean, directions)))


def _check(part: Tensor, name: str, *, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """Refuse what is not finite, or of another type or shape; None stands for 1 or more.

    Raises:
        ValueError: it is so; ``name`` is named.
    """
    fits = part.ndim == len(shape) and all(
        have == due or (due is None and have > 0)
        for have, due in zip(part.shape, shape, strict=True)
    )
    if part.dtype != dtype or not fits:
        wanted = ", ".join("n" if due is None else str(due) for due in shape)
        raise ValueError(
            f"'{name}' is {part.dtype} {tuple(part.shape)}; expected {dtype} ({wanted})"
        )
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
