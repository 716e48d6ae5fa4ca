"""Numbers and verdicts in plain words, the same in the terminal, the plots and the HTML report.

Nothing here reads or writes a file, and an unknown number is always the dash ``–``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, SupportsFloat

from ssl_wm.errors import VerificationError

DASH = "\u2013"
DECISIONS: dict[str, str] = {
    "detected": "DETECTED",
    "not_detected": "NOT DETECTED",
    "inconclusive": "INCONCLUSIVE",
}
_LARGE = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))


def printable(text: object) -> str:
    r"""Return ``text`` on one line, each control or unpaired character made U+FFFD.

    >>> printable("two  lines\n of \x1b[31mred")
    'two lines of �[31mred'
    """
    line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "\ufffd" for char in line)


def finite(value: object) -> float | None:
    """Return ``value`` as a float, or None when it is missing, not a number or not finite.

    >>> finite("0.5"), finite(None), finite(float("nan"))
    (0.5, None, None)
    """
    if not isinstance(value, str | SupportsFloat):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def percent(value: object, *, sign: str = "") -> str:
    """Return the fraction ``value`` (0 to 1) in per cent with one decimal, then ``sign``.

    >>> percent(0.666), percent(0.02, sign=" %"), percent(None, sign=" %")
    ('66.6', '2.0 %', '–')
    """
    number = finite(value)
    return DASH if number is None else f"{100 * number:.1f}{sign}"


def decimal(value: object) -> str:
    """Return ``value`` with three significant digits and a true minus sign.

    >>> decimal(-0.04567), decimal(12.0), decimal(None)
    ('−0.0457', '12', '–')
    """
    number = finite(value)
    if number is None:
        return DASH
    return f"{number + 0.0:.3g}".replace("-", "\u2212")


def count(value: object) -> str:
    """Return a whole number with commas between thousands.

    >>> count(3600), count(None)
    ('3,600', '–')
    """
    number = finite(value)
    return DASH if number is None else f"{round(number):,}"


def p_text(value: object) -> str:
    """Return a p-value with two significant digits, rounded up so that it never flatters.

    Because of the rounding up, a p-value at or below a limit of two digits is shown so.

    >>> p_text(0.0008), p_text(0.0101), p_text(2.03e-6), p_text(1.0), p_text(float("nan"))
    ('0.0008', '0.011', '2.1e-06', '1', '–')
    """
    number = finite(value)
    if number is None:
        return DASH
    rounded = Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(number))
    if 0 < rounded < Decimal("0.0001"):
        return f"{float(rounded):.2g}"
    return f"{float(rounded):.10f}".rstrip("0").rstrip(".")


def decision_of(name: str, verdict: Mapping[str, Any]) -> str:
    """Return the decision of ``verdict``.

    Raises:
        VerificationError: the decision is none of the three known ones.
    """
    decision = verdict.get("decision")
    if decision not in DECISIONS:
        raise VerificationError(
            f"the verdict of '{printable(name)}' has the decision {decision!r}; expected one of "
            f"{', '.join(DECISIONS)}: run verify again"
        )
    return str(decision)


def explain(name: str, verdict: Mapping[str, Any]) -> str:
    """Return one or two sentences that say what the p-value of ``verdict`` means.

    Raises:
        VerificationError: the decision is unknown or the p-value is outside 0 to 1.
    """
    decision = decision_of(name, verdict)
    p = finite(verdict.get("p_value"))
    if p is not None and not 0 <= p <= 1:
        raise VerificationError(
            f"the verdict of '{printable(name)}' has the p-value {p:g}; expected 0 to 1: "
            "run verify again"
        )
    if decision == "inconclusive":
        return printable(verdict.get("reason") or "The evidence does not decide either way.")
    if p is None:
        return "No p-value was given with this verdict."
    fit = "random keys fit this encoder as well as the owner's key does"
    if decision == "detected":
        return f"{_odds(p)} {fit}."
    alpha = finite(verdict.get("alpha"))
    if alpha is None or p > 10 * alpha:
        return f"{_share(p)} {fit}, so nothing here points to theft."
    return f"{_share(p)} {fit}, which is not rare enough for the limit of {p_text(alpha)}."


def verdict_sentence(name: str, verdict: Mapping[str, Any]) -> str:
    """Return ``verdict`` on the encoder ``name`` in plain words, on one line.

    Raises:
        VerificationError: the decision is unknown or the p-value is outside 0 to 1.

    >>> verdict_sentence("stolen", {"decision": "detected", "p_value": 0.0008, "alpha": 0.01})[:46]
    'stolen: DETECTED, p = 0.0008 (limit 0.01). Few'
    """
    told = explain(name, verdict)
    head = f"{printable(name)}: {DECISIONS[decision_of(name, verdict)]}"
    if finite(verdict.get("p_value")) is not None:
        head += f", p = {p_text(verdict['p_value'])}"
        if finite(verdict.get("alpha")) is not None:
            head += f" (limit {p_text(verdict['alpha'])})"
    return f"{head}. {told}"


def listing(names: list[str]) -> str:
    """Return names as an English list.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _odds(p: float) -> str:
    """Return "Fewer than 1 in N" with N the largest one-digit round number that is true."""
    if p <= 0:
        return "No"
    if p > 0.5:
        return _share(p)
    exact = min(1 / p, 1e15)
    step = 10 ** math.floor(math.log10(exact) + 1e-12)
    whole = int(exact / step + 1e-9) * step
    return f"{'Fewer than' if p * whole < 1 - 1e-9 else 'About'} 1 in {_large(whole)}"


def _share(p: float) -> str:
    """Return "About k in N", k rounded up, N a power of ten that leaves k one or two digits."""
    if p <= 0:
        return "No"
    if p >= 0.995:
        return "At least 99 in 100"
    base = 100 if p > 0.1 else 10 ** (min(math.ceil(-math.log10(p) - 1e-12), 14) + 1)
    return f"About {math.ceil(p * base - 1e-9)} in {_large(base)}"


def _large(value: int) -> str:
    for unit, word in _LARGE:
        if value >= unit and value % unit == 0:
            return f"{value // unit:,} {word}"
    return f"{value:,}"
