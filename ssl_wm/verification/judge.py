"""Judge: the verdict that follows from what was read. Nothing is asked here any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.verification.carried import (
    both,
    carried_p_value,
    carried_ranks,
    carried_statistics,
    least_p_value,
)
from ssl_wm.verification.centring import key_statistics, null_centred
from ssl_wm.verification.counting import joint_keys, null_sample, rank_of_all
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.questions import count_queries
from ssl_wm.verification.statistics import (
    alpha_of_look,
    bootstrap_mean,
    conformal_p_value,
    joint_p_value,
    rank_p_value,
    recipe_p_value,
    standardise,
    ways_to_reveal,
)
from ssl_wm.verification.verdict import SubVerdict, TestResult, Verdict, decide
from ssl_wm.watermark.carriers import own_carriers

if TYPE_CHECKING:
    from ssl_wm.verification.readings import Margins
    from ssl_wm.verification.settings import VerifyConfig
    from ssl_wm.watermark.open_key import OpenKey

Rates = list[dict[str, dict[str, object]]]
NO_NULLS = "verify needs at least one null encoder: name the clean encoder with --null"
SAMPLE = 20_000
"""Random joint keys that a plot of the null shows."""


def judge(
    margins: Margins,
    *,
    nulls: Sequence[Margins],
    rates: Rates,
    key: OpenKey,
    config: VerifyConfig,
    facts: dict[str, Any],
) -> Verdict:
    """Return the verdict that follows from what was read; nothing is asked any more.

    Raises:
        VerificationError: there is no null encoder, or a margin is not a number.
    """
    if not nulls:
        raise VerificationError(NO_NULLS)
    statistics = key_statistics(
        margins.tables, [null.tables for null in nulls], centring=config.read.centring
    )
    subs = _sub_verdicts(margins, nulls, rates, statistics, key)
    first, null, position = _test_a1(statistics, subs, key, config)
    known = carried_statistics(margins.carried, [null.carried for null in nulls])
    carried, subs = _test_c(known, subs, key)
    found = [first, *carried, *_test_a2(margins, nulls), _test_b(margins, nulls, key)]
    tests = [_for_the_choice(test, key) for test in found]
    main = _for_the_choice(_together([first, *carried]), key)
    alpha = config.alpha if config.look is None else alpha_of_look(config.alpha, config.look)
    decision, reason = decide(main.p_value, smallest=main.smallest_p, alpha=alpha)
    reader = None
    if not config.read.natural_only:
        reader = max(("linear", "knn"), key=lambda name: _mean_rate(subs, name, "wsr"))
    return Verdict(
        decision=decision,
        p_value=main.p_value,
        alpha=alpha,
        smallest_p=main.smallest_p,
        test=main.says,
        tests=tuple(tests),
        wsr=None if reader is None else _mean_rate(subs, reader, "wsr"),
        wfpr=None if reader is None else _mean_rate(subs, reader, "wfpr"),
        reader=reader,
        reason=reason,
        sub_keys=tuple(subs),
        facts={
            "commitment": key.commitment,
            "beacon": key.beacon,
            "images": key.fingerprints,
            "groups": len(key.groups),
            "sub_keys_in_all": key.terms.sub_key_count,
            "clean_encoder_committed": key.terms.encoder,
            "queries": count_queries(key, config=config.read),
            "settings": config.model_dump(mode="json"),
            **facts,
        },
        position=position,
        null=null,
        carried=known,
    )


def _sub_verdicts(
    margins: Margins, nulls: Sequence[Margins], rates: Rates, statistics: Tensor, key: OpenKey
) -> list[SubVerdict]:
    null_tables = torch.stack([null.tables for null in nulls]).mean(dim=0)
    null_own = torch.stack([null.own for null in nulls]).mean(dim=0)
    subs = []
    for place, (sub_key, rate) in enumerate(zip(key.sub_keys, rates, strict=True)):
        triple = (sub_key.a, sub_key.b, sub_key.target)
        p_value, rank, decoys = rank_p_value(statistics[place], triple)
        subs.append(
            SubVerdict(
                index=sub_key.index,
                margin=float(margins.tables[place][triple]),
                null_margin=float(null_tables[place][triple]),
                statistic=float(statistics[place][triple]),
                interval=bootstrap_mean(margins.own[place] - null_own[place]),
                p_value=p_value,
                rank=rank,
                decoys=decoys,
                readers=rate,
            )
        )
    return subs


def _test_a1(
    statistics: Tensor, subs: Sequence[SubVerdict], key: OpenKey, config: VerifyConfig
) -> tuple[TestResult, Tensor, float]:
    """Return the test, a sample of its null and the key's position in it."""
    natural = config.read.natural_only
    twins = 2 if natural else 1  # nearness is the same for (A, B) and (B, A)
    of = ", of natural images alone" if natural else ""
    if len(subs) == 1:
        table = statistics[0]
        smallest = twins / subs[0].decoys
        test = TestResult("A1", subs[0].p_value, smallest, f"rank among all keys{of}")
        null, position = table[~table.isnan()], subs[0].statistic
    else:
        tables = torch.stack([standardise(table) for table in statistics])
        joint = np.array([[sub.a, sub.b, sub.target] for sub in key.sub_keys])
        p_value, says, sample = _rank(tables, joint, config)
        smallest = twins ** len(subs) / joint_keys(len(key.groups), sub_keys=len(subs))
        if not config.counted:
            smallest = max(1 / (1 + config.draws), smallest)
        test = TestResult("A1", p_value, smallest, says + of)
        null = torch.from_numpy(sample)
        position = sum(
            float(tables[place][sub.a, sub.b, sub.target]) for place, sub in enumerate(key.sub_keys)
        )
    return test, null, position


def _rank(tables: Tensor, joint: np.ndarray, config: VerifyConfig) -> tuple[float, str, np.ndarray]:
    """Return p of a joint key, what it is, and a sample of its null.

    Exact where the rank among all joint keys is told. Where it is not, p among random ones plus
    the share of keys whose rank would have been: by the union bound p <= alpha then has a chance
    of at most alpha over both cases together.
    """
    share = 0.0
    if config.counted:
        rank, share = rank_of_all(tables, joint, most=config.counted)
        if rank is not None:
            everyone = joint_keys(tables.shape[1], sub_keys=len(tables))
            sample = null_sample(tables, draws=min(config.draws, SAMPLE))
            return rank / everyone, f"rank among all {everyone:,} joint keys", sample
    p_value, sample = joint_p_value(tables, joint, draws=config.draws, seed=0)
    return min(1.0, p_value + share), f"rank among {config.draws:,} random joint keys", sample


def _for_the_choice(test: TestResult, key: OpenKey) -> TestResult:
    """Return the test with its p-value times the ways to choose the sub-keys that are shown."""
    ways = ways_to_reveal(len(key.sub_keys), key.terms.sub_key_count)
    if ways == 1:
        return test
    says = f"{test.says}, times {ways} ways to choose what to reveal"
    smallest, p_value = (min(1.0, ways * p) for p in (test.smallest_p, test.p_value))
    return replace(test, p_value=p_value, smallest_p=smallest, says=says)


def _test_a2(margins: Margins, nulls: Sequence[Margins]) -> list[TestResult]:
    recipes = margins.recipes.shape[1] - 1
    if not recipes:
        return []
    apart = null_centred(margins.recipes, torch.stack([null.recipes for null in nulls]))
    p_value, smallest = recipe_p_value(apart)
    says = f"same groups, rank of the recipes among {recipes} random ones for each sub-key"
    return [TestResult("A2", p_value, smallest, says)]


def _test_c(
    statistics: Tensor, subs: list[SubVerdict], key: OpenKey
) -> tuple[list[TestResult], list[SubVerdict]]:
    """Return the test on carriers, where they were read, and the sub-keys with their places."""
    count = len(statistics)
    own = own_carriers(key, count=count)
    if not any(own):
        return [], subs
    ranks = carried_ranks(statistics, own)
    smallest = least_p_value(own, count=count)
    each = key.terms.carriers
    says = f"rank sum of {each} carriers a sub-key among {count}, of natural images alone"
    test = TestResult("C", carried_p_value(ranks, count=count), smallest, says)
    return [test], [
        replace(sub, carriers=tuple(places))
        for sub, places in zip(subs, ranks.tolist(), strict=True)
    ]


def _together(tests: Sequence[TestResult]) -> TestResult:
    """Return one test of all: Fisher's combination where there are two."""
    if len(tests) == 1:
        return tests[0]
    one, other = tests
    return TestResult(
        f"{one.name}+{other.name}",
        float(both(one.p_value, other.p_value)),
        float(both(one.smallest_p, other.smallest_p)),
        f"Fisher's combination of {one.name} ({one.says}) and {other.name} ({other.says})",
    )


def _test_b(margins: Margins, nulls: Sequence[Margins], key: OpenKey) -> TestResult:
    def scores(read: Margins) -> Tensor:
        tables = contrasts(read.tables)
        return torch.stack(
            [tables[place][sub.a, sub.b, sub.target] for place, sub in enumerate(key.sub_keys)]
        )

    p_value, smallest = conformal_p_value(
        scores(margins), torch.stack([scores(null) for null in nulls])
    )
    says = f"rank among {len(nulls)} null encoders; with so few, p is at least {smallest:.2g}"
    return TestResult("B", p_value, smallest, says)


def _mean_rate(subs: Sequence[SubVerdict], reader: str, rate: str) -> float:
    return float(np.mean([sub.readers[reader][rate] for sub in subs]))
