"""How the result of an attempt is judged: by one reading, or by a longer one where that misses.

A short reading makes hundreds of results affordable, and misses marks that are half gone. With
``confirm`` a result that it does not detect is read again, longer, before it counts as lost. Two
readings are two chances to accuse, so they share alpha (Bonferroni): the first may spend ``FIRST``
of it, the second the rest. Divided by its share, the p-value of the reading that decides is held
against alpha itself.

What was read is kept, so a result can be judged again, by other settings, without its encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args

import numpy as np

from ssl_wm.bench.robustness_open import Opened
from ssl_wm.bench.robustness_plan import CONTROL, Cell, RobustnessConfig
from ssl_wm.bench.robustness_readings import Reading
from ssl_wm.calibration.calibrate import best_choice_p_values
from ssl_wm.calibration.fresh import fresh_keys, places_among
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import known_digest
from ssl_wm.files import canonical_json, plain
from ssl_wm.verification.answers import ask
from ssl_wm.verification.carried import Base, carried_shares, carried_statistics
from ssl_wm.verification.centring import key_statistics
from ssl_wm.verification.judge import judge
from ssl_wm.verification.once import once
from ssl_wm.verification.questions import REFERENCE
from ssl_wm.verification.readings import Margins, read_margins, read_rates
from ssl_wm.verification.settings import ReadConfig, SpaceName, VerifyConfig
from ssl_wm.verification.statistics import draw_joint_keys
from ssl_wm.verification.verdict import Verdict, decide
from ssl_wm.verification.verify import affordable, clean_base
from ssl_wm.watermark.key import WatermarkKey

Facts = dict[str, Any]
FIRST = 0.1
"""Share of alpha that the first of two readings may spend."""
FIRST_NAME, SECOND_NAME = "first", "second"
JUDGING = ("alpha", "look", "draws", "counted")
"""Settings that judge and ask nothing; the nulls, ``read.space`` and ``read.centring`` do too."""
MOST_DRAWS = 199_999
"""Random joint keys behind the p-values of the fresh keys on the control, at most."""


class _NotReadError(Exception):
    """A reading is wanted that was not kept."""


class Judge:
    """Reads and judges results with the owner's key; every null encoder is read once a reading.

    Args:
        config: the benchmark's settings.
        opened: the key, its images and the null encoders.

    Raises:
        VerificationError: the key needs more queries than ``verify.max_queries`` allows.
    """

    def __init__(self, config: RobustnessConfig, *, opened: Opened) -> None:
        self.opened, self.seed, self.control_keys = opened, config.seed, config.control_keys
        self.first = affordable(config.verify, opened.key)
        self.second: VerifyConfig | None = None
        if config.confirm is not None:
            longer = config.verify.model_copy(update={"read": config.confirm})
            self.second = affordable(longer, opened.key)
        self._known: dict[tuple[ReadConfig, str], list[Margins]] = {}
        self._bases: dict[Any, Base | None] = {}

    def __call__(self, encoder: Encoder, *, cell: Cell) -> tuple[Facts, dict[str, Reading]]:
        """Ask ``encoder``; return what its readings come to, and the readings by name.

        The facts are ``verdict`` and, of the control, ``fresh``, which counts the fresh random
        keys, drawn for this cell alone, that are found; of a second reading ``second``; and
        ``judged``, the settings that judged.
        """
        readings: dict[str, Reading] = {}

        def asked(name: str) -> Reading:
            readings[name] = self._ask(encoder, cell, self._config(name).read)
            return readings[name]

        return self._judged(cell, asked), readings

    def again(self, cell: Cell, readings: Mapping[str, Reading]) -> Facts | None:
        """Return the facts of ``readings`` by today's settings; None where another is wanted."""

        def kept(name: str) -> Reading:
            reading = readings.get(name)
            if reading is None or reading.read != asked_of(self._config(name).read):
                raise _NotReadError
            return reading

        try:
            return self._judged(cell, kept)
        except _NotReadError:
            return None

    def is_final(self, facts: Facts) -> bool:
        """Return whether a kept cell was read as often, and as long, as the settings ask."""
        if self.second is None or not self._wants_more(facts):
            return True
        return "second" in facts and facts["second"]["read"] == asked_of(self.second.read)

    @property
    def settings(self) -> Facts:
        """What judges and asks nothing: a cell that others judged can be judged again."""
        told = {name: getattr(self.first, name) for name in JUDGING}
        nulls = [known_digest(null) or spec for spec, null in self.opened.nulls.items()]
        configs = [self.first] if self.second is None else [self.first, self.second]
        read = [(each.read.space, each.read.centring) for each in configs]
        facts = {**told, "nulls": nulls, "read": read}
        return dict(plain(facts))

    def _config(self, name: str) -> VerifyConfig:
        return self.first if name == FIRST_NAME or self.second is None else self.second

    def _judged(self, cell: Cell, reading_of: Callable[[str], Reading]) -> Facts:
        verdict, fresh = self._read(reading_of(FIRST_NAME), cell, self.first)
        facts: Facts = {"judged": self.settings, "verdict": verdict}
        alpha = verdict["alpha"]
        if fresh is not None:
            facts["fresh"] = _counted(fresh <= alpha)
        if self.second is not None and self._wants_more(facts):
            verdict, again = self._read(reading_of(SECOND_NAME), cell, self.second)
            facts["second"] = {"read": asked_of(self.second.read), "verdict": verdict}
            if fresh is not None and again is not None:
                either = (fresh <= FIRST * alpha) | (again <= (1 - FIRST) * alpha)
                facts["second"]["fresh"] = _counted(either)
        return facts

    def _wants_more(self, facts: Facts) -> bool:
        return "fresh" in facts or not _decides(facts["verdict"])

    def _ask(self, encoder: Encoder, cell: Cell, read: ReadConfig) -> Reading:
        key, whole = self.opened.key, self._whole
        answers = once(ask(encoder, whole, self.opened.images, config=read))
        in_each = {name: read.model_copy(update={"space": name}) for name in get_args(SpaceName)}
        margins = {name: read_margins(answers, key, config=each) for name, each in in_each.items()}
        if (base := self._base(read)) is not None:
            carried = carried_shares(answers(REFERENCE), base)
            margins = {name: replace(each, carried=carried) for name, each in margins.items()}
        tables = {}
        if self._tries_fresh(cell) and key.chosen is not None:
            tables = {
                name: read_margins(answers, whole, config=each).tables
                for name, each in in_each.items()
            }
        return Reading(asked_of(read), read_rates(answers, key, config=read), margins, tables)

    def _base(self, read: ReadConfig) -> Base | None:
        """Return what carriers are read against, asked for once a reading."""
        name = canonical_json(asked_of(read))
        if name not in self._bases:
            nulls = list(self.opened.nulls.values())
            config = self.first.model_copy(update={"read": read})
            self._bases[name] = clean_base(
                nulls, self.opened.key, self.opened.images, config=config
            )
        return self._bases[name]

    def _tries_fresh(self, cell: Cell) -> bool:
        return cell.encoder == CONTROL and self.control_keys > 0

    def _read(
        self, reading: Reading, cell: Cell, config: VerifyConfig
    ) -> tuple[Facts, np.ndarray | None]:
        """Return the verdict of one reading and the p-values of the fresh keys (control only)."""
        key = self.opened.key
        nulls = self._nulls_for(cell.encoder, config.read, key)
        margins = reading.margins[config.read.space]
        verdict = judge(margins, nulls=nulls, rates=reading.rates, key=key, config=config, facts={})
        fresh = self._fresh(cell, reading, config.read) if self._tries_fresh(cell) else None
        return _kept_of(verdict), fresh

    def _nulls_for(self, name: str, read: ReadConfig, key: WatermarkKey) -> list[Margins]:
        """Return the nulls' margins; without an encoder's own where there are others."""
        if (read, key.name) not in self._known:
            self._known[read, key.name] = [
                read_margins(
                    ask(null, key, self.opened.images, config=read), key, config=read,
                    base=self._base(read),
                )
                for null in self.opened.nulls.values()
            ]  # fmt: skip
        known = self._known[read, key.name]
        encoder = {name: self.opened.encoders[name]}
        own = places_among(encoder, list(self.opened.nulls.values()))[name]
        if own is None or len(known) == 1:
            return known
        return [each for place, each in enumerate(known) if place != own]

    def _fresh(self, cell: Cell, reading: Reading, read: ReadConfig) -> np.ndarray:
        """Return p of fresh keys whose owners show the sub-keys that do best (``calibrate``)."""
        key = self._whole
        nulls = self._nulls_for(cell.encoder, read, key)
        tables = [null.tables for null in nulls]
        statistics = key_statistics(reading.all_tables(read.space), tables, centring=read.centring)
        known = reading.margins[read.space].carried
        tried = fresh_keys(
            key, cell.seed(self.seed), "control", count=self.control_keys, carriers=len(known)
        )
        return best_choice_p_values(
            statistics, tried, drawn=self._drawn, shown=len(self.opened.key.sub_keys),
            carried=carried_statistics(known, [null.carried for null in nulls]),
        )  # fmt: skip

    @cached_property
    def _whole(self) -> WatermarkKey:
        """The owner's key with all its sub-keys, whatever was chosen of them."""
        return replace(self.opened.key, chosen=None)

    @cached_property
    def _drawn(self) -> np.ndarray:
        key, draws = self._whole, min(self.first.draws, MOST_DRAWS)
        return draw_joint_keys(len(key.groups), sub_keys=len(key.sub_keys), draws=draws, seed=0)


def asked_of(read: ReadConfig) -> Facts:
    """Return the settings of a reading that decide what is asked, as written in a cell."""
    facts: Facts = plain(read.model_dump(mode="json"))
    return {name: value for name, value in facts.items() if name not in ("space", "centring")}


def concluded(facts: Facts, *, confirm: bool) -> Facts:
    """Return a cell's facts with the verdict that its readings come to.

    Args:
        facts: a cell's, as ``Judge`` left them, or those of one that failed.
        confirm: whether a miss is read again. Without, the first reading counts, with all alpha.

    Returns:
        The facts; their ``verdict`` tells the ``readings`` (1 or 2) too, and ``fresh`` is by the
        same rule.

    >>> def told(first, second):
    ...     one, two = ({"p_value": p, "smallest_p": 1e-6, "alpha": 0.01} for p in (first, second))
    ...     facts = concluded({"verdict": one, "second": {"verdict": two}}, confirm=True)
    ...     verdict = facts["verdict"]
    ...     return verdict["decision"], verdict["readings"], round(verdict["p_value"], 6)
    >>> told(0.0005, 0.2), told(0.2, 0.00225), told(0.002, 0.2)[0]
    (('detected', 1, 0.005), ('detected', 2, 0.0025), 'not_detected')
    """
    if "error" in facts:
        return facts
    first, second = facts["verdict"], facts.get("second")
    if not confirm:
        return {**facts, "verdict": {**first, "readings": 1}}
    told = dict(facts)
    if second is not None and "fresh" in second:
        told["fresh"] = second["fresh"]
    if second is None or _decides(first):
        told["verdict"] = _shared(first, FIRST, readings=1)
    else:
        told["verdict"] = _shared(second["verdict"], 1 - FIRST, readings=2)
    return told


def _shared(verdict: Facts, share: float, *, readings: int) -> Facts:
    """Return a verdict that may spend a share of alpha: its p-value divided by the share."""
    p_value, smallest = (min(1.0, verdict[name] / share) for name in ("p_value", "smallest_p"))
    decision, reason = decide(p_value, smallest=smallest, alpha=verdict["alpha"])
    return {
        **verdict, "p_value": p_value, "smallest_p": smallest, "decision": decision,
        "reason": reason, "readings": readings,
    }  # fmt: skip


def _decides(first: Facts) -> bool:
    """Return whether a first reading detects within its share of alpha."""
    return bool(first["p_value"] <= FIRST * first["alpha"])


def _counted(found: np.ndarray) -> Facts:
    return {"keys": len(found), "detected": int(found.sum())}


def _kept_of(verdict: Verdict) -> Facts:
    subs = verdict.sub_keys
    return {
        "decision": verdict.decision, "p_value": verdict.p_value, "alpha": verdict.alpha,
        "smallest_p": verdict.smallest_p, "statistic": verdict.position, "wsr": verdict.wsr,
        "wfpr": verdict.wfpr, "reader": verdict.reader, "reason": verdict.reason,
        "margin": float(np.mean([sub.margin - sub.null_margin for sub in subs])),
    }  # fmt: skip
