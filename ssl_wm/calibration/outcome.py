"""What a calibration found: p-values of innocent encoders, and how often they were accused."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ssl_wm.calibration.naive import NAIVE
from ssl_wm.errors import VerificationError
from ssl_wm.verification.statistics import clopper_pearson


@dataclass(frozen=True)
class Rate:
    """How often a rule accused.

    Attributes:
        accusations: of innocent encoders, so all of them false.
        decisions: in all.
        rate: their share.
        interval: exact interval of the rate (Clopper and Pearson, 1934).
        alpha_is: where the promised alpha lies: "inside" the interval; "above" it, where the
            rule accuses more rarely than it may; or "below" it, where the rule accuses more
            often than it promises.
    """

    accusations: int
    decisions: int
    rate: float
    interval: tuple[float, float]
    alpha_is: Literal["inside", "above", "below"]

    @property
    def holds(self) -> bool:
        """Whether the rate may be what alpha promises."""
        return self.alpha_is != "below"


@dataclass(frozen=True)
class Fit:
    """A Kolmogorov-Smirnov test: the distance, and how likely so large a one is."""

    distance: float
    p_value: float


@dataclass(frozen=True)
class Calibration:
    """Decisions on innocent encoders with fresh random keys.

    Attributes:
        alpha: the rule's threshold.
        confidence: of all intervals.
        names: of the encoders.
        p_values: (N,) of the rule as shipped.
        encoders: (N,) int, which encoder each decision was about.
        recipes: (N,) int, which recipe key its composites came from.
        naive: (N,) bool accusations of each rule in ``NAIVE``, at the same alpha.
        facts: digests, counts and settings.

    Raises:
        VerificationError: there are no decisions, a p-value lies outside (0, 1], or the
            columns differ in length.
    """

    alpha: float
    confidence: float
    names: tuple[str, ...]
    p_values: np.ndarray = field(repr=False)
    encoders: np.ndarray = field(repr=False)
    recipes: np.ndarray = field(repr=False)
    naive: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        columns = [self.encoders, self.recipes, *self.naive.values()]
        if not len(self.p_values) or any(len(column) != len(self.p_values) for column in columns):
            raise VerificationError(
                f"a calibration needs decisions, and one entry of each column for each; got "
                f"{len(self.p_values)} p-values and columns of {[len(each) for each in columns]}"
            )
        if not bool(((self.p_values > 0) & (self.p_values <= 1)).all()):
            raise VerificationError(
                "a p-value lies above 0 and at most at 1; one of these does not"
            )

    @cached_property
    def rule(self) -> Rate:
        """How often the shipped rule accused."""
        return self._rate(self.p_values <= self.alpha)

    @cached_property
    def naive_rules(self) -> dict[str, Rate]:
        """How often each naive rule accused."""
        return {name: self._rate(accused) for name, accused in self.naive.items()}

    @cached_property
    def uniform(self) -> Fit:
        """Kolmogorov-Smirnov test that the p-values are uniform, two-sided."""
        return self._fit("two-sided")

    @cached_property
    def super_uniform(self) -> Fit:
        """One-sided test that no p-value is too often small: P(p <= x) <= x for every x.

        The distance is the largest excess of the empirical distribution over the diagonal.
        """
        return self._fit("greater")

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the promise.

        The rate may be alpha or less, and the p-values may be uniform or larger, both at the
        confidence of the intervals.
        """
        return self.rule.holds and self.super_uniform.p_value >= 1 - self.confidence

    @cached_property
    def by_encoder(self) -> dict[str, dict[str, Any]]:
        """Return for each encoder its rate, its p-values' quartiles and the naive rates."""
        table = {}
        for place, name in enumerate(self.names):
            mine = self.encoders == place
            p_values = self.p_values[mine]
            if not len(p_values):
                continue
            table[name] = {
                **asdict(self._rate(p_values <= self.alpha)),
                "smallest_p_value": float(p_values.min()),
                "quartiles": [float(q) for q in np.quantile(p_values, [0.25, 0.5, 0.75])],
                "naive": {rule: float(said[mine].mean()) for rule, said in self.naive.items()},
            }
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, JSON-ready; ``write_calibration`` also writes every decision."""
        return {
            "holds": self.holds,
            "alpha": self.alpha,
            "confidence": self.confidence,
            **asdict(self.rule),
            "uniform": asdict(self.uniform),
            "super_uniform": asdict(self.super_uniform),
            "naive": {
                name: {"says": NAIVE.get(name, name), **asdict(rate)}
                for name, rate in self.naive_rules.items()
            },
            "encoders": self.by_encoder,
            "facts": self.facts,
        }

    def _rate(self, accused: np.ndarray) -> Rate:
        count, total = int(accused.sum()), len(accused)
        low, high = clopper_pearson(count, total, confidence=self.confidence)
        below: Literal["inside", "above", "below"] = "below" if self.alpha < low else "inside"
        return Rate(
            count, total, count / total, (low, high), "above" if self.alpha > high else below
        )

    def _fit(self, alternative: str) -> Fit:
        from scipy.stats import kstest

        found = kstest(self.p_values, "uniform", alternative=alternative)
        return Fit(float(found.statistic), float(found.pvalue))
