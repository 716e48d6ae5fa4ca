"""What an earlier run of a benchmark left: finished cells, the settings they had, time spent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_wm.errors import ConfigError
from ssl_wm.files import plain, read_json, sha256_file

Facts = dict[str, Any]


def difference(before: object, now: object, *, name: str = "") -> str:
    """Return "NAME was X, now Y" for the first value that differs, or "".

    >>> difference({"settings": {"sample": 3}}, {"settings": {"sample": 5}})
    'settings.sample was 3, now 5'
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        told = (
            difference(before.get(key), now.get(key), name=f"{name}.{key}" if name else str(key))
            for key in {**before, **now}
        )
        return next((each for each in told if each), "")
    return "" if before == now else f"{name} was {before}, now {now}"


def refuse_others(path: Path, identity: Facts, *, under: str = "identity") -> None:
    """Do nothing where ``path`` is missing or notes what ``identity`` says.

    Args:
        path: a JSON file.
        identity: all that what stands there follows from.
        under: where in the file its own identity stands.

    Raises:
        ConfigError: it notes something else (the first setting that differs is named), or it is
            damaged.
    """
    if path.is_file():
        _read(path, identity, under=under)


def kept(path: Path, identity: Facts) -> Facts | None:
    """Return what an earlier run left in ``path``; None where there is nothing or a failure.

    Raises:
        ConfigError: it was made with other settings, or the file or its tensors are damaged.
    """
    if not path.is_file():
        return None
    facts = _read(path, identity, under="identity")
    if "error" in facts:
        return None
    beside = path.with_suffix(".safetensors")
    if facts.get("tensors") and (not beside.is_file() or sha256_file(beside) != facts["tensors"]):
        raise ConfigError(f"{beside} is not what {path} was written with; delete both")
    return facts


def stored(path: Path, identity: Facts) -> Facts | None:
    """Return what an earlier run left in ``path`` if it still holds, else None.

    A cell that depends on which other encoders there are is made anew when some were added.
    """
    if not path.is_file():
        return None
    facts: Facts = read_json(path)
    same = facts.get("identity") == plain(identity) and "error" not in facts
    return facts if same else None


def seconds_before(folder: Path) -> float:
    """Return the training seconds of an interrupted run that left its metrics in ``folder``."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return 0.0
    return float(sum(json.loads(line)["seconds"] for line in path.read_text().splitlines()))


def _read(path: Path, identity: Facts, *, under: str) -> Facts:
    facts: Facts = read_json(path, error=ConfigError, what="cell")
    changed = difference(facts.get(under), plain(identity))
    if changed:
        raise ConfigError(
            f"{path} was made with other settings ({changed}); resume with the settings of then, "
            "or use --overwrite, or another --out"
        )
    return facts
