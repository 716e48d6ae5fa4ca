"""A verdict: the decision, what it rests on, and in which words it is said."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

EXIT_CODES = {"detected": 0, "not_detected": 1, "inconclusive": 2}


@dataclass(frozen=True)
class SubVerdict:
    """What one sub-key says.

    Attributes:
        index: of the sub-key.
        margin: of the key in the suspect.
        null_margin: mean of the same margin over the null encoders.
        statistic: the null-centred contrast, which is ranked; with four or more null encoders
            in units of its spread among them.
        interval: 95 % bootstrap interval of the suspect's contrast minus the nulls' mean,
            over composites (within-model).
        p_value: rank / decoys.
        rank: 1 is the largest statistic.
        decoys: number of keys ranked, the key itself included.
        readers: WSR and WFPR with exact intervals, by reader.
        carriers: place of each of its carriers among all, the last being the best known; none
            where they were not read.
    """

    index: int
    margin: float
    null_margin: float
    statistic: float
    interval: tuple[float, float]
    p_value: float
    rank: int
    decoys: int
    readers: dict[str, dict[str, object]]
    carriers: tuple[int, ...] = ()


@dataclass(frozen=True)
class TestResult:
    """One test.

    Attributes:
        name: "A1", "C", "A2" or "B".
        p_value: its p-value.
        smallest_p: the least that it can give.
        says: what the p-value is the probability of.
    """

    name: str
    p_value: float
    smallest_p: float
    says: str


@dataclass(frozen=True)
class Verdict:
    """The decision and what it rests on.

    Attributes:
        decision: "detected", "not_detected" or "inconclusive".
        p_value: chance that a key drawn at random does as well on this suspect: test A1, where
            carriers were read together with test C.
        alpha: the decision's threshold (after the rule for repeated looks).
        smallest_p: the least p-value that the test can give (with few groups, by the number
            of joint keys there are).
        test: name of the test behind ``p_value``.
        tests: A1 (composites), C (carriers), A2 (same groups, random recipe and pairs) and B
            (among null encoders).
        wsr: watermark success rate, mean over sub-keys, by ``reader``; None where natural images
            alone were asked.
        wfpr: watermark false-positive rate, likewise.
        reader: "linear" or "knn", whichever has the larger WSR; None without a WSR.
        reason: the decision in words.
        sub_keys: one entry each.
        facts: commitment, digests, counts and settings.
        null: what test A1 ranks, of decoy keys, for a plot; not part of the dictionary.
        position: the key's own statistic on the scale of ``null``.
        carried: (P,) what test C ranks, of every carrier, for a plot likewise; (0,) without it.
    """

    decision: str
    p_value: float
    alpha: float
    smallest_p: float
    test: str
    tests: tuple[TestResult, ...]
    wsr: float | None
    wfpr: float | None
    reader: str | None
    reason: str
    sub_keys: tuple[SubVerdict, ...]
    facts: dict[str, Any]
    position: float
    null: Tensor = field(repr=False)
    carried: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the plots' data, JSON-ready."""
        whole = asdict(self)
        del whole["null"], whole["carried"]
        return whole

    @property
    def exit_code(self) -> int:
        """0 detected, 1 not detected, 2 inconclusive."""
        return EXIT_CODES[self.decision]


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
            f"{p_value:.2g}, at most alpha = {alpha:.3g}"
        )
    if smallest > alpha:
        return "inconclusive", (
            f"this key can give no p-value below {smallest:.2g}, above alpha = {alpha:.3g}; use "
            "more groups or more sub-keys"
        )
    return "not_detected", (
        f"random keys fit this encoder as well as the owner's with probability {p_value:.2g}, "
        f"above alpha = {alpha:.3g}"
    )
