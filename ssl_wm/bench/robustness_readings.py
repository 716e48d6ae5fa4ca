"""What was read from a result, kept beside its cell, so that it can be judged again for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_wm.errors import ConfigError
from ssl_wm.files import pack_tensors, plain, read_tensors, sha256_bytes, write_bytes
from ssl_wm.verification.judge import Rates
from ssl_wm.verification.readings import Margins

Facts = dict[str, Any]
WHOLE = "whole"


@dataclass(frozen=True)
class Reading:
    """One reading of a result.

    Attributes:
        read: the settings that decided what was asked.
        margins: of the owner's sub-keys.
        rates: their WSR and WFPR.
        whole: (S, G, G, G) tables of all sub-keys that the key has, where fresh keys are tried
            and not all of them are used; else None.
    """

    read: Facts
    margins: Margins
    rates: Rates
    whole: Tensor | None = None

    @property
    def all_tables(self) -> Tensor:
        """Tables of all sub-keys of the key."""
        return self.margins.tables if self.whole is None else self.whole


def keep_readings(path: Path, readings: Mapping[str, Reading]) -> Facts:
    """Write the readings of the cell at ``path``, by name, beside it; return what to note there."""
    tensors: dict[str, Tensor] = {}
    for name, reading in readings.items():
        for part in fields(Margins):
            tensors[f"{name}/{part.name}"] = getattr(reading.margins, part.name)
        if reading.whole is not None:
            tensors[f"{name}/{WHOLE}"] = reading.whole
    data = pack_tensors(tensors)
    write_bytes(path.with_suffix(".safetensors"), data)
    told = {
        name: {"read": reading.read, "rates": plain(reading.rates)}
        for name, reading in readings.items()
    }
    return {"tensors": sha256_bytes(data), "readings": told}


def kept_readings(path: Path, facts: Facts) -> dict[str, Reading]:
    """Return the readings that stand beside the cell at ``path``, by name.

    Raises:
        ConfigError: their file is damaged.
    """
    tensors = read_tensors(path.with_suffix(".safetensors"), error=ConfigError)
    return {
        name: Reading(
            told["read"],
            Margins(**{part.name: tensors[f"{name}/{part.name}"] for part in fields(Margins)}),
            told["rates"], tensors.get(f"{name}/{WHOLE}"),
        )
        for name, told in facts["readings"].items()
    }  # fmt: skip
