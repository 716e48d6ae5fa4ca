"""What the detection benchmark looks at: the settings, and the cells that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssl_wm.bench.detection_cells import Cell
from ssl_wm.config import ImagesConfig, merge, parse, read_yaml
from ssl_wm.detection.detect import DETECTORS
from ssl_wm.detection.settings import DetectionConfig
from ssl_wm.detection.success import TrialConfig
from ssl_wm.errors import ConfigError, choose
from ssl_wm.verification.settings import ReadConfig, refuse_natural_only
from ssl_wm.watermark.open_key import OpenKey

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Marked(BaseModel):
    """A marked encoder.

    Attributes:
        encoder: its spec.
        key: file of the key that it carries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    key: Path


class DetectionBench(BaseModel):
    """Which encoders are looked at, and how.

    Attributes:
        title: heading of the table.
        images: for every detector; training images are sought on, test images judge triggers.
        marked: by name: the encoder and the key that it, or what it was stolen from, carries.
        clean: by name: an encoder spec, or a folder of several saved encoders, each of which
            then counts as NAME/FOLDER.
        detectors: names; empty takes all.
        seed: of all draws.
        settings: of the detectors.
        trial: on how many images an inverted trigger is tried.
        queries: composites of the owner that the detectors of queries are shown, at least.
        read: how the key's own WSR is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = "Detection"
    images: ImagesConfig = ImagesConfig()
    marked: dict[str, Marked] = Field(min_length=1)
    clean: dict[str, str] = Field(min_length=1)
    detectors: tuple[str, ...] = ()
    seed: int = 0
    settings: DetectionConfig = DetectionConfig()
    trial: TrialConfig = TrialConfig()
    queries: int = Field(500, ge=8)
    read: ReadConfig = ReadConfig()

    @model_validator(mode="after")
    def _names(self) -> DetectionBench:
        for name in (*self.marked, *self.clean):
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' cannot name a folder of results; use letters, digits, '.', '_', '-'"
                )
        both = sorted(set(self.marked) & set(self.clean))
        if both:
            raise ValueError(f"'{both[0]}' is both marked and clean; give each encoder one name")
        try:
            for detector in self.detectors:
                choose(detector, DETECTORS, what="detector")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if len(set(self.detectors)) < len(self.detectors):
            raise ValueError("a detector is named twice")
        refuse_natural_only(self.read, what="the key's rates are told")
        return self


def load_detection_config(path: Path, overrides: Mapping[str, Any]) -> DetectionBench:
    """Return the config in ``path`` with dotted overrides on top.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    return parse(DetectionBench, merge(read_yaml(path), overrides), source=str(path))


@dataclass(frozen=True, eq=False)
class Subject:
    """One encoder of the benchmark.

    Attributes:
        name: in all results.
        spec: where it is.
        digest: what it is; its spec where it has no weights.
        key: the owner's, for a marked one.
    """

    name: str
    spec: str
    digest: str
    key: OpenKey | None = None


def expand(marked: Mapping[str, str], clean: Sequence[str], detectors: Sequence[str]) -> list[Cell]:
    """Return all cells, encoder by encoder.

    A detector of queries judges the queries of a key: on each marked encoder with its own key, on
    a clean one once for every key. Where it asks no encoder, clean ones are left out.

    Args:
        marked: what names the key of each marked encoder.
        clean: names of clean encoders.
        detectors: names.
    """
    first: dict[str, str] = {}
    for name, key in marked.items():
        first.setdefault(key, name)
    alone, cells = len(first) == 1, []
    for name in (*marked, *clean):
        for detector in detectors:
            entry, is_marked = DETECTORS[detector], name in marked
            if entry.of != "queries":
                whose = [""]
            elif is_marked:
                whose = [first[marked[name]]]
            else:
                whose = [] if entry.access == "pixels" else list(first.values())
            cells += [Cell(name, detector, owner, is_marked, alone) for owner in whose]
    return cells
