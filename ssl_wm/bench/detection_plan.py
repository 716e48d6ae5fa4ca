"""Which cells the detection benchmark has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ssl_wm.bench.detection_cells import Cell
from ssl_wm.detection.detect import DETECTORS
from ssl_wm.watermark.key import OpenKey


class Marked(BaseModel):
    """A marked encoder.

    Attributes:
        encoder: its spec.
        key: file of the key that it carries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    key: Path


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
