# ruff: noqa: RUF001 (a dash stands for what is not known)
from __future__ import annotations

import io

import pytest
from rich.console import Console

from ssl_wm.errors import VerificationError
from ssl_wm.report import result_table, verdict_table
from ssl_wm.report.tables import result_rows, setting_rows, sub_key_rows

LINEAR = {"wsr": 0.713, "wsr_interval": [0.68, 0.75], "wfpr": 0.034, "wfpr_interval": [0.02, 0.05]}
SUB_KEY = {"margin": 0.48, "null_margin": -0.012, "statistic": 6.9, "p_value": 0.0008, "rank": 3}
STOLEN = {
    "decision": "detected",
    "p_value": 0.0008,
    "alpha": 0.01,
    "wsr": 0.713,
    "wfpr": 0.034,
    "reason": "",
    "sub_keys": [SUB_KEY | {"decoys": 3600, "readers": {"linear": LINEAR}}],
}
RESULT = {
    "utility": {"clean": {"linear": 0.921, "knn": 0.953}, "stolen": {"linear": 0.907}},
    "verdicts": {
        "stolen": STOLEN,
        "independent": {"decision": "not_detected", "p_value": 0.412, "wsr": float("nan")},
    },
}


def rendered(table, width=100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def cells(table) -> list[list[str]]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_result_table_has_one_row_for_each_encoder_in_order():
    table = result_table(RESULT)
    heads = [str(column.header) for column in table.columns]
    assert heads == ["encoder", "linear %", "kNN %", "decision", "p", "WSR %", "WFPR %"]
    assert cells(table) == [
        ["clean", "92.1", "95.3", "–", "–", "–", "–"],
        ["stolen", "90.7", "–", "detected", "0.0008", "71.3", "3.4"],
        ["independent", "–", "–", "not detected", "0.42", "–", "–"],
    ]


def test_result_table_of_nothing_has_no_rows():
    assert cells(result_table({})) == []
    assert cells(result_table({"utility": {}, "verdicts": None})) == []


def test_a_row_with_unknown_decision_is_refused():
    with pytest.raises(VerificationError, match="expected one of detected"):
        result_rows({"verdicts": {"x": {"decision": "yes"}}})


def test_names_are_not_read_as_terminal_markup():
    name = "[red]x[/red] \x1b[31m"
    out = rendered(result_table({"utility": {name: {"linear": 0.5}}}))
    assert "[red]x[/red]" in out
    assert "\x1b" not in out


def test_verdict_table_shows_each_measure_of_each_sub_key():
    second = SUB_KEY | {"decoys": None, "readers": {"knn": {"wsr": 0.5, "wfpr": None}}}
    table = verdict_table(STOLEN | {"sub_keys": [*STOLEN["sub_keys"], second]})
    assert [str(column.header) for column in table.columns] == ["", "sub-key 1", "sub-key 2"]
    assert cells(table) == [
        ["margin", "0.48", "0.48"],
        ["null margin", "−0.012", "−0.012"],
        ["statistic", "6.9", "6.9"],
        ["p", "0.0008", "0.0008"],
        ["rank", "3", "3"],
        ["decoys", "3,600", "–"],
        ["WSR %, linear", "71.3 [68.0, 75.0]", "–"],
        ["WFPR %, linear", "3.4 [2.0, 5.0]", "–"],
        ["WSR %, knn", "–", "50.0"],
        ["WFPR %, knn", "–", "–"],
    ]


def test_verdict_table_fits_eighty_columns_with_three_sub_keys():
    out = rendered(verdict_table(STOLEN | {"sub_keys": STOLEN["sub_keys"] * 3}), width=80)
    assert out.count("71.3 [68.0, 75.0]") == 3


def test_verdict_table_shows_decision_and_reason():
    out = rendered(verdict_table({"decision": "inconclusive", "reason": "[b]only\n4 decoys"}))
    assert "INCONCLUSIVE  p = – (limit –)  WSR –  WFPR –" in out
    assert "[b]only 4 decoys" in out


def test_sub_key_rows_of_several_verdicts_share_their_columns():
    heads, rows = sub_key_rows({"a": STOLEN, "b": {"decision": "inconclusive"}, "c": STOLEN})
    assert [row[:2] for row in rows] == [["a", "1"], ["c", "1"]]
    assert {len(row) for row in rows} == {len(heads)}


def test_settings_are_grouped_flattened_and_free_of_nan():
    settings = {
        "seed": 3,
        "train": {"optimizer": {"lr": 0.06, "decay": float("nan")}, "resume": False, "sets": []},
        "empty": {},
        "note": None,
        "images": ["a", "b"],
    }
    assert setting_rows(settings) == [
        ("run", [("seed", "3"), ("note", "–"), ("images", "a, b")]),
        (
            "train",
            [
                ("optimizer.lr", "0.06"),
                ("optimizer.decay", "–"),
                ("resume", "False"),
                ("sets", "–"),
            ],
        ),
    ]
