"""What a robustness benchmark measures: its settings, and the cells that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ssl_wm.config import ImagesConfig, merge, parse, read_yaml
from ssl_wm.errors import ConfigError, SslWmError
from ssl_wm.files import sha256_bytes
from ssl_wm.removal.remove import REMOVALS, RemovalConfig, checked, parts_of
from ssl_wm.rng import derive_seed
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.settings import ReadConfig, VerifyConfig

CONTROL = "clean"
"""Name of the control among the encoders."""
UNTOUCHED = "untouched"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DRAWLESS = frozenset({
    "prune", "prune-global", "prune-channels", "float", "round-weights", "weight-shift",
    "cut-layers", "blur", "median", "jpeg", "bit-depth", "round", "top-k", "scale", "shorten",
    "flatten", "flatten-places",
})  # fmt: skip
"""Attempts that draw nothing: with any seed they give the same encoder."""
Strength = float | tuple[float, ...]


class RobustnessConfig(BaseModel):
    """Attempts on encoders, and how each result is measured.

    Attributes:
        title: heading of the table and the figure.
        images: those the key was made for. The thief's images and those the readers of utility
            are fitted to come from the training split; utility is measured on the test split.
        key: file of the owner's key.
        encoders: spec of each encoder that carries (or should carry) the mark, by name.
        nulls: encoder specs, or folders of saved encoders, that verification compares with.
        control: a clean encoder that goes through the same attempts; the first null when None.
            If it is one of several nulls, it is judged with the others only.
        attempts: names in ``REMOVALS``, stacks of them joined by "+", "all" for every name.
        strengths: by attempt, in place of its defaults; for a stack a list for each strength.
        transfer: labelled images of another task, for the attempts that need them.
        seeds: repetitions of every attempt that draws something.
        seed: every cell's seed is derived from it and the cell.
        thief_limit: training images that the thief has, drawn at random; None means all.
        utility_limit: training images that the readers of utility are fitted to, the same for
            all cells; None means all.
        neighbours: k of the kNN reader.
        judged_by: the reader whose loss is held against ``bar``.
        bar: loss of utility, in points of accuracy (1 is 1 %), up to which a mark must last.
        control_keys: fresh random keys that are also tried on each result of the control; 0
            leaves them out.
        removal: settings of attempts that train or look at images.
        verify: how results are judged.
        confirm: a longer reading of what the first one does not detect; the two share alpha
            (``robustness_judge``). None: every result is read once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Robustness"
    images: ImagesConfig = ImagesConfig()
    key: Path
    encoders: dict[str, str] = Field(min_length=1)
    nulls: tuple[str, ...] = Field(min_length=1)
    control: str | None = None
    attempts: tuple[str, ...] = Field(("all",), min_length=1)
    strengths: dict[str, tuple[Strength, ...]] = {}
    transfer: ImagesConfig | None = None
    seeds: int = Field(1, ge=1)
    seed: int = 0
    thief_limit: int | None = Field(2_000, ge=2)
    utility_limit: int | None = Field(10_000, ge=2)
    neighbours: int = Field(20, ge=1)
    judged_by: Literal["linear", "knn"] = "linear"
    bar: float = Field(5.0, gt=0, le=100)
    control_keys: int = Field(100, ge=0)
    removal: RemovalConfig = RemovalConfig(
        fit=FitConfig(epochs=5, batch_size=64, weight_decay=0.0, warmup_steps=10)
    )
    verify: VerifyConfig = VerifyConfig()
    confirm: ReadConfig | None = None

    @field_validator("attempts", mode="after")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for name in given:
            names += list(REMOVALS) if name == "all" else [_in_order(name)]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _fits(self) -> RobustnessConfig:
        for name in self.encoders:
            if name == CONTROL or not NAME.fullmatch(name):
                raise ValueError(
                    f"an encoder's name has letters, digits, '.', '_' and '-', and is not "
                    f"'{CONTROL}', the control; got '{name}'"
                )
        if self.verify.access != "embeddings":
            raise ValueError("attempts are judged by embeddings; leave verify: access: out")
        self._check_confirm()
        for name, values in self.strengths.items():
            if name not in self.attempts:
                raise ValueError(f"there are strengths for '{name}', which is no attempt here")
            _check(lambda name=name, values=values: _checked_all(name, values))
        return self

    def _check_confirm(self) -> None:
        first, second = self.verify.read, self.confirm
        if second is None or first.natural_only != second.natural_only:
            return
        name = "reference" if first.natural_only else "per_pair"
        if getattr(second, name) <= getattr(first, name):
            raise ValueError(
                f"confirm: is a longer reading than verify: read:, with more than {name} "
                f"{getattr(first, name)}; got {getattr(second, name)}"
            )

    def strengths_of(self, attempt: str) -> tuple[tuple[float, ...], ...]:
        """Return the strengths of ``attempt``, weakest first: one number for each of its parts."""
        given = self.strengths.get(attempt)
        if given is None:
            return default_strengths(attempt)
        return _checked_all(attempt, given)


@dataclass(frozen=True)
class Cell:
    """One attempt at one strength on one encoder.

    Attributes:
        encoder: its name.
        attempt: a name or a stack; ``UNTOUCHED`` for none.
        strengths: one for each part of the attempt; empty for none.
        repetition: 0, 1, ...
    """

    encoder: str
    attempt: str
    strengths: tuple[float, ...] = ()
    repetition: int = 0

    @property
    def name(self) -> str:
        """The cell in words.

        >>> Cell("victim", "prune+ftal", (0.5, 0.001)).name
        'victim, prune+ftal 0.5+0.001'
        """
        if self.attempt == UNTOUCHED:
            return f"{self.encoder}, {UNTOUCHED}"
        again = f", repetition {self.repetition}" if self.repetition else ""
        return f"{self.encoder}, {self.attempt} {strength_text(self.strengths)}{again}"

    def path(self, out: Path) -> Path:
        """Return the cell's JSON file below ``out``; no two cells have the same."""
        values = "_".join(map(repr, self.strengths))
        name = f"{self.attempt}--{values}--{self.repetition}"
        if len(name) > 120:
            name = f"{name[:100]}--{sha256_bytes(name.encode())[:12]}"
        return out / "cells" / self.encoder / f"{name}.json"

    def seed(self, root: int) -> int:
        """Return the seed of the cell's draws."""
        values = "+".join(map(repr, self.strengths))
        names = (self.encoder, self.attempt, values, self.repetition)
        return derive_seed(root, "robustness", *names) % 2**31


def strength_text(strengths: Sequence[float]) -> str:
    """Return strengths as "0.5" or, for a stack, "0.5+0.001".

    >>> strength_text([0.5, 0.001])
    '0.5+0.001'
    """
    return "+".join(f"{value:g}" for value in strengths)


def expand(config: RobustnessConfig, *, skipped: Mapping[str, str]) -> list[Cell]:
    """Return all cells, encoder by encoder, the untouched one first, the control last.

    Args:
        config: the benchmark.
        skipped: attempts to leave out.
    """
    cells = []
    for encoder in (*config.encoders, CONTROL):
        cells.append(Cell(encoder, UNTOUCHED))
        for attempt in config.attempts:
            if attempt in skipped:
                continue
            repeated = 1 if DRAWLESS.issuperset(parts_of(attempt)) else config.seeds
            cells += [
                Cell(encoder, attempt, values, number)
                for values in config.strengths_of(attempt)
                for number in range(repeated)
            ]
    return cells


def missing_images(config: RobustnessConfig) -> dict[str, str]:
    """Return why attempts are left out, by name: they need images that were not given."""
    if config.transfer is not None:
        return {}
    why = "needs labelled images of another task: give --transfer-images SPEC"
    return {
        attempt: why
        for attempt in config.attempts
        if any(REMOVALS[part].needs == "other labels" for part in parts_of(attempt))
    }


def default_strengths(attempt: str) -> tuple[tuple[float, ...], ...]:
    """Return the sweep of an attempt; for a stack the parts go from weak to strong together.

    >>> default_strengths("noise")
    ((0.01,), (0.03,), (0.05,), (0.1,))
    >>> default_strengths("prune+ftal")[0], default_strengths("prune+ftal")[-1]
    ((0.1, 0.0001), (0.9, 0.003))
    """
    sweeps = [REMOVALS[part].strengths for part in parts_of(attempt)]
    count = min(map(len, sweeps))
    places = [np.linspace(0, len(sweep) - 1, count).round().astype(int) for sweep in sweeps]
    columns = [
        [float(sweep[place]) for place in chosen]
        for sweep, chosen in zip(sweeps, places, strict=True)
    ]
    return tuple(zip(*columns, strict=True))


def load_robustness_config(path: Path | None, overrides: Mapping[str, Any]) -> RobustnessConfig:
    """Return the config in ``path`` (None: the defaults) with dotted overrides on top.

    Raises:
        ConfigError: a setting is unknown or out of range, or something needed is not named.
    """
    data = merge(read_yaml(path) if path else {}, overrides)
    needed = {
        "key": "the owner's key: --key FILE, or key:",
        "encoders": "an encoder to attack: --encoder victim=SPEC, or encoders:",
        "nulls": "the clean encoder to compare with: --null SPEC, or nulls:",
    }
    for name, what in needed.items():
        if not data.get(name):
            raise ConfigError(f"name {what} in --config")
    config = parse(RobustnessConfig, data, source=str(path or "settings"))
    if "spec" not in config.images.model_fields_set:
        raise ConfigError(
            "name the images: --images FOLDER, torchvision/<Dataset> or digits, or images: "
            "spec: in --config"
        )
    return config


def _in_order(attempt: str) -> str:
    """Return a stack in its usual spelling; raise ValueError where it cannot be carried out."""
    parts = _check(lambda: parts_of(attempt))
    white = [REMOVALS[part].white_box for part in parts]
    if sorted(white, reverse=True) != white:
        raise ValueError(
            f"'{attempt}' puts something around the encoder before its weights change; name the "
            "attempts on weights first"
        )
    return "+".join(parts)


def _checked_all(attempt: str, values: Sequence[Strength]) -> tuple[tuple[float, ...], ...]:
    parts = parts_of(attempt)
    if not values:
        raise ConfigError(f"'{attempt}' has an empty list of strengths; leave it out")
    return tuple(checked(parts, value) for value in values)


def _check(call: Any) -> Any:
    """Return what ``call`` returns; its complaint is one about a setting (pydantic)."""
    try:
        return call()
    except SslWmError as error:
        raise ValueError(str(error)) from error
