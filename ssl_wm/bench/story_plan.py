"""The config of a whole story: which encoders are made, robbed and judged, with which keys.

Each encoder is made by one stage, from a parent where the stage needs one:

    encoders:
      clean: {pretrain: {...}}
      watermarked: {watermark: {...}, of: clean}
      stolen: {steal: {...}, of: watermarked}
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

import ssl_wm
from ssl_wm.config import ImagesConfig, KeyConfig, merge, parse, read_yaml
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.training.pretrain import PretrainConfig
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.watermark.embed import WatermarkConfig

STAGES = ("pretrain", "watermark", "steal")


class BenchKey(KeyConfig):
    """A key: its settings, and the clean encoder it is drawn for.

    Attributes:
        of: the clean encoder, which also is the key's null encoder.
    """

    of: str = "clean"


class Cell(BaseModel):
    """One encoder: how it is made, and with which key it is judged.

    Attributes:
        of: the encoder it is made from (marked or stolen); none for ``pretrain``.
        key: the key it is marked or judged with; the parent's, or the first, when None.
        pretrain: settings, where this stage makes it.
        watermark: settings, where this stage makes it.
        steal: settings, where this stage makes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str | None = None
    key: str | None = None
    pretrain: PretrainConfig | None = None
    watermark: WatermarkConfig | None = None
    steal: StealConfig | None = None

    @model_validator(mode="after")
    def _one_stage(self) -> Cell:
        stages = [name for name in STAGES if getattr(self, name) is not None]
        if len(stages) != 1:
            raise ValueError(f"an encoder needs exactly one of {', '.join(STAGES)}")
        if (self.of is None) != (stages == ["pretrain"]):
            raise ValueError("'of' names the parent of a marked or stolen encoder, only there")
        return self

    @property
    def stage(self) -> str:
        """The stage that makes it."""
        return next(name for name in STAGES if getattr(self, name) is not None)


class BenchConfig(BaseModel):
    """A whole story.

    Attributes:
        title: heading of the report.
        images: for every stage.
        seed: every encoder's and key's seed is derived from it and the name.
        keys: by name; written to ``NAME.key``.
        encoders: by name, parents before children.
        verify: how suspects are judged.
        maps: encoders whose feature space the report shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "ssl-wm"
    images: ImagesConfig = ImagesConfig()
    seed: int = 0
    keys: dict[str, BenchKey] = Field(min_length=1)
    encoders: dict[str, Cell] = Field(min_length=1)
    verify: VerifyConfig = VerifyConfig()
    maps: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_known(self) -> BenchConfig:
        seen: set[str] = set()
        for name, cell in self.encoders.items():
            if cell.of is not None and cell.of not in seen:
                raise ValueError(f"encoder '{name}' is made of '{cell.of}', not defined above it")
            if cell.key is not None and cell.key not in self.keys:
                raise ValueError(f"encoder '{name}' names the unknown key '{cell.key}'")
            seen.add(name)
        unknown = [key.of for key in self.keys.values() if key.of not in seen]
        unknown += [name for name in self.maps if name not in seen]
        if unknown:
            raise ValueError(f"there is no encoder '{unknown[0]}'")
        return self

    def key_of(self, name: str) -> str:
        """Return the name of the key that encoder ``name`` is marked or judged with."""
        cell = self.encoders[name]
        if cell.key is not None:
            return cell.key
        return self.key_of(cell.of) if cell.of is not None else next(iter(self.keys))


def load_bench_config(path: Path | None, overrides: Mapping[str, Any]) -> BenchConfig:
    """Return the config in ``path`` (None: the packaged demo) with dotted overrides on top.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    if path is not None:
        data = read_yaml(path)
    else:
        data = yaml.safe_load(resources.files(ssl_wm).joinpath("demo.yaml").read_text())
    return parse(BenchConfig, merge(data, overrides), source=str(path or "demo"))
