"""The decision follows from p, the least p and alpha; the verdict tells what it rests on."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.files import canonical_json, plain
from ssl_wm.verification import verdict as module
from ssl_wm.verification.verdict import EXIT_CODES, SubVerdict, Verdict, decide


def verdict(decision: str = "detected") -> Verdict:
    readers = {name: {"wsr": 0.9, "wsr_interval": [0.8, 1.0]} for name in ("linear", "knn")}
    return Verdict(
        decision=decision, p_value=0.001, alpha=0.01, smallest_p=0.0005, test="rank",
        tests=tuple(module.TestResult(name, 0.5, 0.5, "nulls") for name in ("A1", "B")),
        wsr=0.9, wfpr=0.1, reader="linear", reason="because",
        sub_keys=(SubVerdict(2, 0.3, -0.1, 0.4, (0.3, 0.5), 0.001, 1, 1000, readers),),
        facts={"commitment": "ab"}, position=0.4, null=torch.zeros(7), carried=torch.zeros(5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p_value", "smallest", "decision"),
    [
        (0.01, 0.001, "detected"),
        (0.0101, 0.001, "not_detected"),
        (0.01, 0.01, "detected"),
        (0.5, 0.011, "inconclusive"),
        (1.0, 0.01, "not_detected"),
        (1.0, 1.0, "inconclusive"),
    ],
)
def test_the_decision_is_at_alpha(p_value, smallest, decision):
    found, reason = decide(p_value, smallest=smallest, alpha=0.01)
    assert found == decision
    assert "0.01" in reason


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-9, 0.99))
def test_nobody_is_accused_above_alpha_and_none_cleared_without_a_chance(p, smallest, alpha):
    p_value = max(p, smallest)
    found, reason = decide(p_value, smallest=smallest, alpha=alpha)
    assert (found == "detected") == (p_value <= alpha)
    assert (found == "inconclusive") == (smallest > alpha)
    assert f"alpha = {alpha:.3g}" in reason


def test_what_to_do_about_too_few_keys_is_said():
    assert decide(0.5, smallest=0.5, alpha=0.01)[1].endswith("use more groups or more sub-keys")


def test_a_verdict_is_plain_data_without_the_plot():
    whole = verdict().to_dict()
    assert "null" not in whole
    assert json.loads(canonical_json(plain(whole))) == plain(whole)
    assert plain(whole)["sub_keys"][0]["index"] == 2
    assert [test["name"] for test in whole["tests"]] == ["A1", "B"]
    assert "null" not in repr(verdict()).replace("null_margin", "").replace("nulls", "")


@pytest.mark.parametrize(
    ("decision", "code"), [("detected", 0), ("not_detected", 1), ("inconclusive", 2)]
)
def test_each_decision_has_its_exit_code(decision, code):
    assert verdict(decision).exit_code == EXIT_CODES[decision] == code
