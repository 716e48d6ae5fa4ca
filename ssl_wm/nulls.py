"""Null encoders: what else could look like the owner's encoder without carrying a mark.

Some are trained as the clean encoder was, from other seeds. The rest are copies of the *clean*
encoder, stolen with other shapes, attacks, budgets and pools, because theft alone moves
margins and an honest null must hold what theft does; or the clean encoder after attempts to wash
a mark off that it does not have, which move margins too. None of them depends on any key, so any
choice of them keeps the test of ``ssl_wm.verification.verify`` exact; many and various ones
make it stronger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssl_wm.console import say
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import encoder_digest, read_facts, save_encoder
from ssl_wm.encoders.saved import FACTS
from ssl_wm.errors import ConfigError, EncoderError, TrainingError
from ssl_wm.extraction.steal import steal
from ssl_wm.files import canonical_json, read_json, sha256_bytes, write_json
from ssl_wm.null_plans import WASHED_WITH, NullsConfig, Plan, Wash, is_marked, plan_nulls
from ssl_wm.removal.remove import RemovalConfig, forget, remove
from ssl_wm.rng import torch_stream
from ssl_wm.training.pretrain import pretrain

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images, ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.settings import FitConfig

__all__ = ["NullsConfig", "make_nulls", "null_folders"]

NOTE = "null.json"


def make_nulls(
    clean: Encoder,
    images: Images,
    *,
    config: NullsConfig | None = None,
    out: Path,
    pools: Mapping[str, ImageSet] | None = None,
) -> list[Path]:
    """Make null encoders in ``out/null-00``, ``out/null-01``, ... and return these folders.

    Finished ones are kept, an interrupted one is resumed.

    Args:
        clean: the owner's encoder without any mark.
        images: those it was trained on; the copies query its training images too.
        config: how many and how trained.
        out: the folder; made where it is missing.
        pools: more images that a thief might query with, by name.

    Raises:
        ConfigError: the encoder carries a mark, or a null encoder in ``out`` was made with
            other settings, of other images or of another encoder.
        SslWmError: whatever training raises; finished ones are kept.
    """
    config = config or NullsConfig()
    known = {"": images.train, **(pools or {})}
    plans = plan_nulls(clean, config=config, pools=known)
    weights = encoder_digest(clean) if clean.backbone.state_dict() else None
    folders = []
    for number, plan in enumerate(plans):
        folder = out / plan.name
        identity = _identity(plan, clean=weights, pool=known[plan.pool])
        if _finished(folder, identity=identity):
            say(f"{plan.name} ({number + 1} of {len(plans)}): there already")
        else:
            say(f"{plan.name} ({number + 1} of {len(plans)}): {plan.says}")
            _make(plan, clean, known[plan.pool], folder=folder, identity=identity)
        folders.append(folder)
    return folders


def null_folders(path: Path) -> list[Path]:
    """Return the saved encoders that the folder ``path`` names: itself, or those in it.

    Sorted by name, shorter names first. An unfinished one is left out; the list is empty
    where there is none.

    Raises:
        ConfigError: one of several carries a mark, so it can be no null encoder.
    """
    if (path / FACTS).is_file():
        return [path]
    inside = [file.parent for file in path.glob(f"*/{FACTS}")]
    for folder in inside:
        if is_marked(read_facts(folder).made):
            raise ConfigError(
                f"{folder} carries a watermark, so {path} is no folder of null encoders; name the "
                "unmarked encoders in it one by one"
            )
    return sorted(inside, key=lambda folder: (len(folder.name), folder.name))


def _identity(plan: Plan, *, clean: str | None, pool: ImageSet) -> str:
    parts: dict[str, Any] = {
        "pretrain": plan.pretrain.model_dump(mode="json") if plan.pretrain else None,
        "steal": plan.steal.model_dump(mode="json") if plan.steal else None,
        "images": pool.fingerprint,
        "clean": None if plan.pretrain else clean,
    }
    if plan.wash is not None:
        wash, fit, seed = plan.wash
        parts |= {"wash": asdict(wash), "fit": fit.model_dump(mode="json"), "seed": seed}
    return sha256_bytes(canonical_json(parts))


def _finished(folder: Path, *, identity: str) -> bool:
    note = folder / NOTE
    if not note.is_file():
        return False
    facts = read_json(note, error=ConfigError, what="note of a null encoder")
    if isinstance(facts, dict) and facts.get("identity") == identity:
        return (folder / FACTS).is_file()
    raise ConfigError(
        f"{folder} was made with other settings, of other images or another encoder; use "
        "--overwrite, or another --out"
    )


def _make(plan: Plan, clean: Encoder, pool: ImageSet, *, folder: Path, identity: str) -> None:
    """Train, save and note one null encoder; what only resuming needs is removed after."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if plan.pretrain is not None:
        encoder = pretrain(pool, config=plan.pretrain, folder=folder)[0]
    elif plan.steal is not None:
        encoder = steal(clean, images=pool, config=plan.steal, folder=folder).surrogate
    elif plan.wash is not None:
        encoder = _washed(clean, *plan.wash, pool, folder=folder)
    else:
        raise ConfigError(f"{plan.name} has neither a training nor a theft nor a washing")
    try:
        embed(encoder, pool.take(torch.arange(min(64, len(pool)))))
    except EncoderError as error:
        raise TrainingError(
            f"{plan.name} ({plan.says}) came out useless: {error}. Train longer, or with another "
            "seed"
        ) from error
    save_encoder(encoder, folder)
    seconds = round(time.perf_counter() - began, 1)
    facts = {"name": plan.name, "pool": plan.pool, "says": plan.says, "seconds": seconds}
    write_json(folder / NOTE, {"identity": identity, **facts})
    forget(folder)
    for name in ("transfer.safetensors", "queries.json"):  # many MB that nothing asks for again
        (folder / name).unlink(missing_ok=True)


def _washed(
    clean: Encoder, wash: Wash, fit: FitConfig, seed: int, pool: ImageSet, *, folder: Path
) -> Encoder:
    """Return the clean encoder after ``wash``, with some of the images."""
    order = torch.randperm(len(pool), generator=torch_stream(seed, "washing"))
    return remove(
        clean, attempt=wash.attempt, strength=wash.strength, seed=seed, folder=folder,
        images=pool.subset(order[:WASHED_WITH].sort().values), config=RemovalConfig(fit=fit),
    )  # fmt: skip
