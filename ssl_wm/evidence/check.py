"""Check a bundle by itself: are its bytes as sealed, and does its verdict follow from them?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.evidence.bundle import VERDICT, Bundle, open_bundle
from ssl_wm.evidence.manifest import DAMAGE, changes, one_line
from ssl_wm.files import plain
from ssl_wm.verification.judge import judge
from ssl_wm.verification.readings import read_margins, read_rates

if TYPE_CHECKING:
    from ssl_wm.verification.verdict import Verdict

SAME = 1e-9
"""Largest difference between a stored and a recomputed number, relative or absolute."""
SAME_RATE = 0.005
"""The same for WSR and WFPR, whose linear reader is fitted by iteration; no p-value uses them."""
CORE = ("decision", "p_value", "alpha", "smallest_p", "tests", "sub_keys", "wsr", "wfpr", "reader",
        "position", "facts")  # fmt: skip
WORDS = ("reason", "test", "says")


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What a check of a bundle found.

    Attributes:
        problems: one line "FILE: what is wrong" each.
        done: what was compared and agreed, in words.
        verdict: as recomputed; None where that was not possible.
        stored: the verdict that was stored; None where it could not be read.
        bundle: the bundle; None where it could not be opened.
    """

    problems: tuple[str, ...]
    done: tuple[str, ...] = ()
    verdict: Verdict | None = None
    stored: dict[str, Any] | None = None
    bundle: Bundle | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the result, JSON-ready, with the recomputed verdict."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "done": list(self.done),
            "seal": self.bundle.seal if self.bundle else None,
            "verdict": plain(self.verdict.to_dict()) if self.verdict else None,
        }


def check(folder: Path) -> CheckResult:
    """Return whether a bundle is whole and its verdict follows from what it holds.

    Every file is held against the manifest. Then the key's proofs are followed to its
    commitment, the margins and rates are read from the stored answers again, and the verdict
    that they give is compared with the stored one. Nothing is computed from damaged files.

    Raises:
        VerificationError: there is no such folder.
    """
    problems = changes(folder)
    if problems:
        return CheckResult(tuple(problems))
    bundle = None
    try:
        bundle = open_bundle(folder)
        verdict = recompute(bundle)
        found = tuple(f"{VERDICT}: {told}" for told in _differences(bundle.verdict, verdict))
    except DAMAGE as error:
        told = one_line(error)
        if not re.match(r"[\w.-]+\.(json|safetensors): ", told):  # no one file is to blame
            told = f"{VERDICT}: it cannot be recomputed: {told}"
        return CheckResult((told,), stored=bundle.verdict if bundle else None, bundle=bundle)
    done = (
        f"{len(bundle.manifest['files'])} files and the seal have not changed",
        f"{len(verdict.sub_keys)} sub-keys belong to the commitment",
        *(() if found else ("the verdict follows from the stored answers",)),
    )
    return CheckResult(found, done, verdict, bundle.verdict, bundle)


def recompute(bundle: Bundle) -> Verdict:
    """Return the verdict that a bundle's key, answers and null margins give.

    Raises:
        VerificationError: answers are missing or not what was asked for.
    """
    key, read = bundle.key, bundle.config.read
    return judge(
        read_margins(bundle.answer, key, config=read, base=bundle.base),
        nulls=bundle.nulls,
        rates=read_rates(bundle.answer, key, config=read),
        key=key,
        config=bundle.config,
        facts={name: bundle.facts[name] for name in ("suspect", "nulls")},
    )


def _differences(stored: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """Return how a stored verdict differs from the recomputed one; words are not compared."""
    told = plain(verdict.to_dict())
    missing = [name for name in CORE if name not in stored]
    if missing:
        return [f"does not say '{missing[0]}'"]
    reader = stored["reader"]
    if reader in ("linear", "knn") and reader != told["reader"]:
        # two readers that are equal but for rounding
        means = {
            rate: sum(sub["readers"][reader][rate] for sub in told["sub_keys"])
            / len(told["sub_keys"])
            for rate in ("wsr", "wfpr")
        }
        if told["wsr"] - means["wsr"] <= SAME_RATE:
            told = {**told, **means, "reader": reader}
    return list(_compare(stored, told, name=""))


def _compare(stored: Any, told: Any, *, name: str) -> Iterator[str]:
    """Yield "NAME is X, and Y when recomputed" for each stored value that differs."""
    last = name.rpartition(".")[2]
    if last in WORDS:
        return
    if isinstance(stored, dict) and isinstance(told, dict):
        for key, value in stored.items():
            yield from _compare(value, told.get(key), name=f"{name}.{key}" if name else key)
    elif isinstance(stored, list) and isinstance(told, list) and len(stored) == len(told):
        for place, (one, other) in enumerate(zip(stored, told, strict=True)):
            inner = last if last.endswith("_interval") else str(place)
            yield from _compare(one, other, name=f"{name}.{inner}")
    elif _numbers(stored, told):
        rate = last.startswith(("wsr", "wfpr"))
        if not math.isclose(stored, told, rel_tol=SAME, abs_tol=SAME_RATE if rate else SAME):
            yield f"{name} is {stored!r}, and {told!r} when recomputed"
    elif type(stored) is not type(told) or stored != told:
        yield f"{name} is {str(stored)[:80]!r}, and {str(told)[:80]!r} when recomputed"


def _numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
