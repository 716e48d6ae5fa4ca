"""Verify: does this suspect carry the key's watermark?"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.encoders.load import encoder_digest
from ssl_wm.errors import VerificationError
from ssl_wm.verification.readings import Margins, ReadConfig, read_margins, read_rates
from ssl_wm.verification.statistics import (
    bootstrap_mean,
    joint_p_value,
    rank_p_value,
    standardise,
)

if TYPE_CHECKING:
    from ssl_wm.data.sources import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.key import WatermarkKey

EXIT_CODES = {"detected": 0, "not_detected": 1, "inconclusive": 2}


class VerifyConfig(BaseModel):
    """How a suspect is judged.

    Attributes:
        alpha: largest acceptable rate of false accusations.
        draws: random joint keys behind the combined p-value of several sub-keys.
        read: how much is read from each encoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(0.01, gt=0, lt=1)
    draws: int = Field(9_999_999, ge=99)
    read: ReadConfig = ReadConfig()


@dataclass(frozen=True)
class SubVerdict:
    """What one sub-key says.

    Attributes:
        margin: of the key in the suspect.
        null_margin: mean of the same margin over the null encoders.
        statistic: their difference, which is ranked.
        interval: 95 % bootstrap interval of the statistic over composites (within-model).
        p_value: rank / decoys.
        rank: 1 is the largest statistic.
        decoys: number of keys ranked, the key itself included.
        readers: WSR and WFPR with exact intervals, by reader.
    """

    margin: float
    null_margin: float
    statistic: float
    interval: tuple[float, float]
    p_value: float
    rank: int
    decoys: int
    readers: dict[str, dict[str, object]]


@dataclass(frozen=True)
class Verdict:
    """The decision and what it rests on.

    Attributes:
        decision: "detected", "not_detected" or "inconclusive".
        p_value: chance that a key drawn at random does as well on this suspect.
        alpha: the decision's threshold.
        smallest_p: the least p-value that the test can give (with few groups, by the number
            of joint keys there are).
        test: name of the test behind ``p_value``.
        wsr: watermark success rate, mean over sub-keys, by ``reader``.
        wfpr: watermark false-positive rate, likewise.
        reader: "linear" or "knn", whichever has the larger WSR.
        reason: the decision in words.
        sub_keys: one entry each.
        facts: commitment, digests, counts and settings.
        null: statistics of decoy keys, for a plot; not part of the dictionary.
        position: the key's own statistic on the scale of ``null``.
    """

    decision: str
    p_value: float
    alpha: float
    smallest_p: float
    test: str
    wsr: float
    wfpr: float
    reader: str
    reason: str
    sub_keys: tuple[SubVerdict, ...]
    facts: dict[str, Any]
    null: Tensor
    position: float

    def to_dict(self) -> dict[str, Any]:
        """Return all but the plot's data, JSON-ready."""
        whole = asdict(self)
        del whole["null"]
        return whole

    @property
    def exit_code(self) -> int:
        """0 detected, 1 not detected, 2 inconclusive."""
        return EXIT_CODES[self.decision]


def verify(
    suspect: Encoder,
    *,
    key: WatermarkKey,
    images: Images,
    nulls: Sequence[Encoder],
    config: VerifyConfig | None = None,
    memory: MutableMapping[str, Margins] | None = None,
) -> Verdict:
    """Return the verdict on ``suspect``.

    Args:
        suspect: any encoder, a wrapped function too; only its embeddings are used.
        key: the owner's key.
        images: those the key was made for.
        nulls: encoders known to be unmarked, the owner's clean encoder first; their mean
            margin is subtracted. Any fixed choice keeps the test exact, a better one makes it
            stronger.
        config: threshold and effort.
        memory: margins already read, by encoder digest and key; read and added to. Encoders
            of arch "custom" are always read anew, since their digest leaves out their code.

    Raises:
        KeyFileError: the key was made for other images.
        VerificationError: no null encoder was given.
        EncoderError: an encoder's embeddings are not finite, or all the same.
    """
    config = config or VerifyConfig()
    if not nulls:
        raise VerificationError(
            "verify needs at least one null encoder: name the clean encoder with --null"
        )
    key.check_images(images)
    memory = {} if memory is None else memory
    margins = _recall(suspect, key, images, config, memory)
    null_margins = [_recall(encoder, key, images, config, memory) for encoder in nulls]
    null_tables = torch.stack([null.tables for null in null_margins]).mean(dim=0)
    null_own = torch.stack([null.own for null in null_margins]).mean(dim=0)
    statistics = margins.tables - null_tables
    rates = read_rates(suspect, key, images, config=config.read)
    subs = []
    for sub_key, rate in zip(key.sub_keys, rates, strict=True):
        place = (sub_key.a, sub_key.b, sub_key.target)
        p_value, rank, decoys = rank_p_value(statistics[sub_key.index], place)
        own = margins.own[sub_key.index] - null_own[sub_key.index]
        subs.append(
            SubVerdict(
                margin=float(margins.tables[sub_key.index][place]),
                null_margin=float(null_tables[sub_key.index][place]),
                statistic=float(statistics[sub_key.index][place]),
                interval=bootstrap_mean(own),
                p_value=p_value,
                rank=rank,
                decoys=decoys,
                readers=rate,
            )
        )
    p_value, smallest, test, null, position = _combined(statistics, key, subs, config)
    decision, reason = decide(p_value, smallest=smallest, alpha=config.alpha)
    reader = max(("linear", "knn"), key=lambda name: _mean_rate(subs, name, "wsr"))
    return Verdict(
        decision=decision,
        p_value=p_value,
        alpha=config.alpha,
        smallest_p=smallest,
        test=test,
        wsr=_mean_rate(subs, reader, "wsr"),
        wfpr=_mean_rate(subs, reader, "wfpr"),
        reader=reader,
        reason=reason,
        sub_keys=tuple(subs),
        facts={
            "commitment": key.commitment,
            "suspect": _digest(suspect),
            "nulls": [_digest(encoder) for encoder in nulls],
            "images": key.fingerprints,
            "groups": len(key.groups),
            "settings": config.model_dump(mode="json"),
        },
        null=null,
        position=position,
    )


def decide(p_value: float, *, smallest: float, alpha: float) -> tuple[str, str]:
    """Return (decision, reason) of a p-value that could have been as low as ``smallest``.

    >>> decide(0.002, smallest=0.001, alpha=0.01)[0]
    'detected'
    >>> decide(0.2, smallest=0.001, alpha=0.01)[0]
    'not_detected'
    >>> decide(0.05, smallest=0.05, alpha=0.01)[0]
    'inconclusive'
    """
    if p_value <= alpha:
        return "detected", (
            f"a random key fits this encoder as well as the owner's with probability "
            f"{p_value:.2g}, at most alpha = {alpha:g}"
        )
    if smallest > alpha:
        return "inconclusive", (
            f"this key can give no p-value below {smallest:.2g}, above alpha = {alpha:g}; use "
            "more groups or more sub-keys"
        )
    return "not_detected", (
        f"random keys fit this encoder as well as the owner's with probability {p_value:.2g}, "
        f"above alpha = {alpha:g}"
    )


def _digest(encoder: Encoder) -> str | None:
    """Return the encoder's digest; None for a function, which has no weights to name it."""
    return encoder_digest(encoder) if encoder.backbone.state_dict() else None


def _recall(
    encoder: Encoder,
    key: WatermarkKey,
    images: Images,
    config: VerifyConfig,
    memory: MutableMapping[str, Margins],
) -> Margins:
    if encoder.arch == "custom":
        return read_margins(encoder, key, images, config=config.read)
    name = f"{encoder_digest(encoder)}/{key.commitment}/{config.read.model_dump_json()}"
    if name not in memory:
        memory[name] = read_margins(encoder, key, images, config=config.read)
    return memory[name]


def _combined(
    statistics: Tensor, key: WatermarkKey, subs: Sequence[SubVerdict], config: VerifyConfig
) -> tuple[float, float, str, Tensor, float]:
    """Return p, the smallest p possible, the test's name, a null sample and the position."""
    if len(subs) == 1:
        table = statistics[0]
        return (
            subs[0].p_value,
            1 / subs[0].decoys,
            "rank among all keys",
            table[~table.isnan()],
            subs[0].statistic,
        )
    tables = torch.stack([standardise(table) for table in statistics])
    joint = np.array([[sub.a, sub.b, sub.target] for sub in key.sub_keys])
    p_value, null = joint_p_value(tables, joint, draws=config.draws, seed=0)
    position = sum(float(tables[sub.index][sub.a, sub.b, sub.target]) for sub in key.sub_keys)
    smallest = max(1 / (1 + config.draws), 1 / math.perm(len(key.groups), joint.size))
    name = f"rank among {config.draws:,} random joint keys"
    return p_value, smallest, name, torch.from_numpy(null), position


def _mean_rate(subs: Sequence[SubVerdict], reader: str, rate: str) -> float:
    return float(np.mean([sub.readers[reader][rate] for sub in subs]))
