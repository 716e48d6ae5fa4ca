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
        rates: WSR and WFPR of the owner's sub-keys.
        margins: of the owner's sub-keys, in each space by its name.
        whole: (S, G, G, G) tables of all sub-keys that the key has, in each space, where fresh
            keys are tried and not all of them are used; else empty.
    """

    read: Facts
    rates: Rates
    margins: Mapping[str, Margins]
    whole: Mapping[str, Tensor]

    def all_tables(self, space: str) -> Tensor:
        """Return the tables of all sub-keys of the key, in ``space``."""
        return self.whole.get(space, self.margins[space].tables)


def keep_readings(path: Path, readings: Mapping[str, Reading]) -> Facts:
    """Write the readings of the cell at ``path``, by name, beside it; return what to note there."""
    tensors: dict[str, Tensor] = {}
    for name, reading in readings.items():
        for space, margins in reading.margins.items():
            for part in fields(Margins):
                tensors[f"{name}/{space}/{part.name}"] = getattr(margins, part.name).clone()
        for space, whole in reading.whole.items():
            tensors[f"{name}/{space}/{WHOLE}"] = whole
    data = pack_tensors(tensors)
    write_bytes(path.with_suffix(".safetensors"), data)
    told = {
        name: {
            "read": reading.read, "spaces": list(reading.margins), "rates": plain(reading.rates)
        }
        for name, reading in readings.items()
    }  # fmt: skip
    return {"tensors": sha256_bytes(data), "readings": told}


def kept_readings(path: Path, facts: Facts) -> dict[str, Reading]:
    """Return the readings that stand beside the cell at ``path``, by name.

    Raises:
        ConfigError: their file is damaged.
    """
    tensors = read_tensors(path.with_suffix(".safetensors"), error=ConfigError)

    def margins(where: str) -> Margins:
        return Margins(**{part.name: tensors[f"{where}/{part.name}"] for part in fields(Margins)})

    def whole(name: str, spaces: list[str]) -> dict[str, Tensor]:
        places = {space: f"{name}/{space}/{WHOLE}" for space in spaces}
        return {space: tensors[at] for space, at in places.items() if at in tensors}

    return {
        name: Reading(
            told["read"], told["rates"],
            {space: margins(f"{name}/{space}") for space in told["spaces"]},
            whole(name, told["spaces"]),
        )
        for name, told in facts["readings"].items()
    }  # fmt: skip
