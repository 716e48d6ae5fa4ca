"""One cell of the detection benchmark: a detector on an encoder, kept in files of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_wm.data.image_set import Images
from ssl_wm.detection.given import Detection
from ssl_wm.detection.success import Tried
from ssl_wm.detection.triggers import Composite, Patch, Trigger
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import ConfigError, SslWmError
from ssl_wm.files import (
    pack_tensors,
    plain,
    read_tensors,
    sha256_bytes,
    write_bytes,
    write_json,
)
from ssl_wm.verification.questions import FRESH, render
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.open_key import OpenKey

Facts = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One detector on one encoder.

    Attributes:
        encoder: name of the encoder.
        detector: name of the detector.
        queries_of: whose composites are the queries: the first marked encoder with that key;
            "" for detectors that judge no queries.
        marked: whether the encoder carries a mark.
        alone: whether all marked encoders have one key, so that the file's name need not say.
    """

    encoder: str
    detector: str
    queries_of: str = ""
    marked: bool = False
    alone: bool = True

    def path(self, out: Path) -> Path:
        """Return the cell's JSON file below ``out``."""
        whose = f"--{self.queries_of}" if self.queries_of and not self.alone else ""
        return out / "cells" / self.encoder / f"{self.detector}{whose}.json"


def keep(path: Path, facts: Facts, *, detection: Detection | None = None) -> Facts:
    """Write a cell: the tensors of its detection first, then the JSON that makes it count."""
    tensors = {} if detection is None else tensors_of(detection)
    if tensors:
        data = pack_tensors(tensors)
        write_bytes(path.with_suffix(".safetensors"), data)
        facts = {**facts, "tensors": sha256_bytes(data)}
    write_json(path, facts)
    whole: Facts = plain(facts)
    return whole


def tensors_of(detection: Detection) -> dict[str, Tensor]:
    """Return the table of a scan, or mask and pattern of the most suspicious patch."""
    found = {} if detection.table is None else {"table": detection.table}
    if isinstance(detection.trigger, Patch):
        found |= {"mask": detection.trigger.mask, "pattern": detection.trigger.pattern}
    return found


def read_detection(path: Path, facts: Facts) -> Detection:
    """Return the detection of a cell; of its triggers only the files tell.

    Raises:
        ConfigError: the tensors beside it are damaged.
    """
    beside = path.with_suffix(".safetensors")
    tensors = read_tensors(beside, error=ConfigError) if facts.get("tensors") else {}
    return Detection(
        float(facts["score"]), facts["group"], tuple(facts["flagged"]),
        details=facts["details"], table=tensors.get("table"),
    )  # fmt: skip


def attempt(run: Callable[[], Facts], *, identity: Facts) -> Facts:
    """Return what ``run`` returns, or the failure, so that the next cell is run.

    A programming error (anything but our own errors, those of torch, and exhausted memory)
    passes through.
    """
    try:
        return run()
    except (SslWmError, RuntimeError, MemoryError) as error:
        return {"identity": identity, "error": f"{type(error).__name__}: {error}"}


def detection_facts(detection: Detection) -> Facts:
    """Return a detection without its triggers and tables, JSON-ready."""
    return {
        "score": detection.score, "group": detection.group, "flagged": list(detection.flagged),
        "details": detection.details,
    }  # fmt: skip


def trigger_facts(trigger: Trigger) -> Facts:
    """Return what a trigger is, without its pixels."""
    if isinstance(trigger, Patch):
        return {"kind": "patch", "size": trigger.size, "found": trigger.found}
    if isinstance(trigger, Composite):
        return {"kind": "composite", "a": trigger.a, "b": trigger.b, "mixer": trigger.mixer}
    return {"kind": type(trigger).__name__.lower()}


def found_facts(
    tried: Tried | None, *, encoder: Encoder, names: tuple[str, ...] | None,
    key: OpenKey | None, composites: Tensor | None, judged: Tensor, groups_of_key: bool,
) -> Facts | None:  # fmt: skip
    """Return what the most suspicious trigger does, and what the key says of its group.

    Args:
        tried: the trigger; None where none was inverted.
        encoder: in which it was found.
        names: of the groups; None where the detector made them.
        key: the encoder's own key, for a marked one.
        composites: the owner's, (Q, 3, H, W) uint8.
        judged: (N,) indices of the test images of the trial.
        groups_of_key: whether the detector's groups are the key's own.
    """
    if tried is None or tried.trigger.group is None:
        return None
    group = tried.trigger.group
    facts: Facts = {
        "group": group, "name": names[group] if names else f"cluster {group}",
        "trigger": trigger_facts(tried.trigger), "success": asdict(tried.success),
    }  # fmt: skip
    if key is None:
        return facts
    facts["key"] = in_key(key.groups.test[judged], tried.groups, group, key=key)
    if groups_of_key and isinstance(tried.trigger, Composite):
        triples = {(sub.a, sub.b, sub.target) for sub in key.sub_keys}
        facts["key"]["is_sub_key"] = (tried.trigger.a, tried.trigger.b, group) in triples
    if composites is not None:
        hits = int((tried.reader.predict(embed(encoder, composites)) == group).sum())
        facts["composites"] = {
            "share": hits / len(composites), "interval": clopper_pearson(hits, len(composites)),
        }  # fmt: skip
    return facts


def in_key(owners: Tensor, groups: Tensor, group: int, *, key: OpenKey) -> Facts:
    """Return whether a detector's group is a target of the key.

    The detector's groups are not the key's: the key's group that most test images of the
    detector's group belong to stands for it. Which of the key's groups are targets is not told.

    Args:
        owners: (N,) the key's group of each test image.
        groups: (N,) the detector's group of each.
        group: the one that the detector names.
        key: the owner's key.

    Returns:
        ``is_target``; ``agreement``: the share of the group's images in the key's group that
        stands for it; ``in_targets``: their share in any target, and ``expected``: the share of
        all test images in one; ``chance``: targets over groups of the key.
    """
    count = len(key.groups)
    targets = torch.tensor([sub.target for sub in key.sub_keys])
    shares = torch.bincount(owners[groups == group], minlength=count).double()
    natural = torch.bincount(owners, minlength=count).double() / len(owners)
    told = {"expected": float(natural[targets].sum()), "chance": len(targets) / count}
    if not shares.any():
        return {"is_target": None, "agreement": None, "in_targets": None, **told}
    shares /= shares.sum()
    return {
        "is_target": int(shares.argmax()) in targets.tolist(), "agreement": float(shares.max()),
        "in_targets": float(shares[targets].sum()), **told,
    }  # fmt: skip


def owners_composites(key: OpenKey, images: Images, *, count: int) -> Tensor:
    """Return composites of all known sub-keys, as even as ``count`` allows, (Q, 3, H, W) uint8.

    Args:
        key: the owner's key.
        images: those that the key was made for; composites are of test images.
        count: how many at least.
    """
    each = max(8, -(-count // len(key.sub_keys)))
    config = ReadConfig(trigger_count=each)
    parts = [
        block
        for sub in key.sub_keys
        for block in render(f"{FRESH}/{sub.index}", key, images, config=config)
    ]
    return torch.cat(parts)
