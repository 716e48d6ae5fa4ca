from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.errors import VerificationError
from ssl_wm.report.words import (
    DASH,
    count,
    decimal,
    explain,
    finite,
    listing,
    p_text,
    percent,
    printable,
    verdict_sentence,
)

UNKNOWN = [None, float("nan"), float("inf"), "not a number", object(), np.float32("nan"), []]


@pytest.mark.parametrize("value", UNKNOWN)
@pytest.mark.parametrize("show", [percent, decimal, count, p_text])
def test_an_unknown_number_is_a_dash(show, value):
    assert show(value) == DASH


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), torch.tensor(0.25), "0.25"])
def test_every_kind_of_number_is_read(value):
    assert finite(value) == 0.25
    assert percent(value, sign=" %") == "25.0 %"


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (1.0, "1"),
        (0.999, "1"),
        (0.412, "0.42"),
        (0.1, "0.1"),
        (0.0101, "0.011"),
        (0.01, "0.01"),
        (0.0008, "0.0008"),
        (1 / 3601, "0.00028"),
        (0.0001, "0.0001"),
        (2e-6, "2e-06"),
        (2.01e-6, "2.1e-06"),
        (0.0, "0"),
    ],
)
def test_p_values_are_rounded_up_to_two_digits(p, shown):
    assert p_text(p) == shown


@given(st.floats(1e-12, 1.0), st.sampled_from([0.001, 0.005, 0.01, 0.05]))
def test_a_shown_p_value_never_flatters_and_never_contradicts_the_limit(p, alpha):
    shown = float(p_text(p))
    assert p <= shown <= p * 1.1 + 1e-300
    assert (shown <= alpha) == (p <= alpha)


@pytest.mark.parametrize(
    ("p", "start"),
    [
        (0.0008, "Fewer than 1 in 1,000 random keys fit this encoder as well"),
        (0.001, "About 1 in 1,000 "),
        (0.01, "About 1 in 100 "),
        (1 / 3601, "Fewer than 1 in 3,000 "),
        (2e-6, "About 1 in 500,000 "),
        (3e-7, "Fewer than 1 in 3 million "),
        (0.04, "Fewer than 1 in 20 "),
        (0.9, "About 90 in 100 "),
        (1e-40, "Fewer than 1 in 1,000 trillion "),
        (0.0, "No random keys fit"),
    ],
)
def test_odds_of_a_detected_mark(p, start):
    assert explain("x", {"decision": "detected", "p_value": p}).startswith(start)


@given(st.floats(1e-14, 0.5))
def test_odds_of_a_detected_mark_are_true_and_at_most_twofold_cautious(p):
    text = explain("x", {"decision": "detected", "p_value": p})
    found = re.match(r"(Fewer than|About) 1 in ([\d,]+)( million| billion| trillion)? ", text)
    assert found is not None
    unit = {None: 1, " million": 10**6, " billion": 10**9, " trillion": 10**12}[found[3]]
    odds = int(found[2].replace(",", "")) * unit
    assert p <= 1 / odds * (1 + 1e-6)
    assert p * odds * 2 >= 1 - 1e-6
    if found[1] == "About":
        assert p == pytest.approx(1 / odds, rel=1e-6)


@pytest.mark.parametrize(
    ("p", "alpha", "told"),
    [
        (0.412, 0.01, "About 42 in 100 random keys"),
        (0.0125, 0.01, "About 13 in 1,000 random keys"),
        (1.0, 0.01, "At least 99 in 100 random keys"),
        (0.07, None, "so nothing here points to theft."),
        (0.41, 0.01, "so nothing here points to theft."),
        (0.02, 0.01, "which is not rare enough for the limit of 0.01."),
    ],
)
def test_words_of_a_mark_that_was_not_detected(p, alpha, told):
    assert told in explain("x", {"decision": "not_detected", "p_value": p, "alpha": alpha})


def test_the_sentence_of_a_detected_copy():
    verdict = {"decision": "detected", "p_value": 0.0008, "alpha": 0.01}
    assert verdict_sentence("stolen", verdict) == (
        "stolen: DETECTED, p = 0.0008 (limit 0.01). Fewer than 1 in 1,000 random keys fit this "
        "encoder as well as the owner's key does."
    )


def test_an_inconclusive_sentence_gives_the_reason():
    verdict = {"decision": "inconclusive", "p_value": None, "reason": "too few\ndecoys."}
    assert verdict_sentence("x", verdict) == "x: INCONCLUSIVE. too few decoys."
    assert "does not decide" in verdict_sentence("x", {"decision": "inconclusive"})


@pytest.mark.parametrize("decision", ["detected", "not_detected"])
@pytest.mark.parametrize("p", [None, float("nan")])
def test_a_sentence_without_p_value_says_so_and_shows_no_nan(decision, p):
    told = verdict_sentence("x", {"decision": decision, "p_value": p, "alpha": 0.01})
    assert told.endswith("No p-value was given with this verdict.")
    assert "nan" not in told
    assert "None" not in told


@pytest.mark.parametrize(
    "verdict", [{}, {"decision": "guilty"}, {"decision": "detected", "p_value": 1.5}]
)
def test_an_impossible_verdict_is_refused_in_one_line(verdict):
    with pytest.raises(VerificationError, match="expected") as caught:
        verdict_sentence("x\ny", verdict)
    assert "\n" not in str(caught.value)


def test_names_cannot_bring_control_characters_to_the_terminal():
    told = verdict_sentence("\x1b[2Ja\u202eb\r\n", {"decision": "inconclusive"})
    assert told.startswith("\ufffd[2Ja\ufffdb: INC")


@given(st.text())
def test_printable_text_is_one_line_that_can_be_written_as_utf8(text):
    line = printable(text)
    assert line.isprintable()
    assert line.encode().decode() == line


def test_listing_of_no_names_is_empty():
    assert listing([]) == ""


def test_a_negative_zero_has_no_minus_sign():
    assert decimal(-0.0) == "0"
