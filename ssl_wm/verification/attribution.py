"""Who is named: one verdict for each licensee in, those whose copy leaked out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssl_wm.errors import VerificationError
from ssl_wm.verification.statistics import holm
from ssl_wm.verification.verdict import Verdict

EXIT_CODES = {"traced": 0, "not_traced": 1, "inconclusive": 2}


@dataclass(frozen=True)
class Trace:
    """Which licensees' copies a suspect was made from.

    Attributes:
        decision: "traced", "not_traced", or "inconclusive" where no key could have reached
            alpha after the correction.
        leaked: the licensees that are named, in the order of the keys.
        alpha: largest chance of naming any innocent licensee (after the rule for repeated
            looks).
        adjusted: Holm-adjusted p-value of each licensee.
        reason: the decision in words.
        verdicts: one for each licensee. Its p-value is its own, its decision and reason are
            those of the corrected family.
        facts: digests, queries and settings.
    """

    decision: str
    leaked: tuple[str, ...]
    alpha: float
    adjusted: dict[str, float]
    reason: str
    verdicts: dict[str, Verdict] = field(repr=False)
    facts: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready; ``licensees`` sums up each key in one line."""
        return {
            "decision": self.decision,
            "leaked": list(self.leaked),
            "alpha": self.alpha,
            "reason": self.reason,
            "licensees": {
                name: {
                    "decision": verdict.decision,
                    "p_value": verdict.p_value,
                    "adjusted_p_value": self.adjusted[name],
                    "wsr": verdict.wsr,
                    "commitment": verdict.facts["commitment"],
                }
                for name, verdict in self.verdicts.items()
            },
            "verdicts": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "facts": self.facts,
        }

    @property
    def exit_code(self) -> int:
        """0 traced, 1 not traced, 2 inconclusive."""
        return EXIT_CODES[self.decision]


def attribute(
    verdicts: Mapping[str, Verdict], *, alpha: float, facts: Mapping[str, Any] | None = None
) -> Trace:
    """Return the trace that follows from one verdict for each licensee (Holm, 1979).

    Raises:
        VerificationError: there is no verdict.
    """
    if not verdicts:
        raise VerificationError("trace needs the key of at least one licensee; got none")
    count = len(verdicts)
    values = holm([verdict.p_value for verdict in verdicts.values()])
    adjusted = dict(zip(verdicts, values, strict=True))
    leaked = tuple(name for name, p_value in adjusted.items() if p_value <= alpha)
    least = min(verdict.smallest_p for verdict in verdicts.values())
    if leaked:
        decision = "traced"
        reason = (
            f"of {count} licensees {len(leaked)} named: {', '.join(leaked)}; the chance of naming "
            f"any innocent one is at most alpha = {alpha:.3g}"
        )
    elif count * least > alpha:
        decision = "inconclusive"
        reason = (
            f"with {count} keys a p-value of at most {alpha / count:.2g} is needed, and none of "
            f"them can give one below {least:.2g}; use more groups, more sub-keys or more draws"
        )
    else:
        decision = "not_traced"
        reason = (
            f"the smallest of {count} p-values is {min(values):.2g} after the correction for "
            f"their number, above alpha = {alpha:.3g}"
        )
    told = {
        name: _corrected(verdict, adjusted[name], rivals=count - len(leaked), alpha=alpha)
        for name, verdict in verdicts.items()
    }
    weak = [name for name in told if told[name].decision == "inconclusive"]
    if weak and decision != "inconclusive":
        reason += f". Keys that could not have been named here: {', '.join(weak)}"
    return Trace(decision, leaked, alpha, adjusted, reason, told, dict(facts or {}))


def _corrected(verdict: Verdict, adjusted: float, *, rivals: int, alpha: float) -> Verdict:
    """Return a verdict with the decision that the family's correction leaves of it.

    ``rivals`` is the number of licensees not named: the step at which Holm stopped, so a key
    that is not named would have needed p <= alpha / rivals.
    """
    says = f"p = {verdict.p_value:.2g}, {adjusted:.2g} after the correction (Holm)"
    if adjusted <= alpha:
        decision, reason = "detected", f"{says}, at most alpha = {alpha:.3g}"
    elif rivals * verdict.smallest_p > alpha:
        decision = "inconclusive"
        reason = f"{says}; this key can give no p-value below {verdict.smallest_p:.2g}"
    else:
        decision, reason = "not_detected", f"{says}, above alpha = {alpha:.3g}"
    return replace(verdict, decision=decision, alpha=alpha, reason=reason)
