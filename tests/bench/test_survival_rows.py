"""Rows and bars of the survival benchmark, from numbers made by hand."""

from __future__ import annotations

import pytest
import torch

from ssl_wm.bench.survival_bars import judge_bars, winners_of
from ssl_wm.bench.survival_measure import compatibility, in_targets
from ssl_wm.bench.survival_plan import CLEAN, SurvivalCell, SurvivalConfig
from ssl_wm.bench.survival_rows import compared_with, losses_of, make_rows, spread, summary
from ssl_wm.bench.survival_thieves import Thief
from ssl_wm.report.survival import bar_line, row_words, survival_markdown, winner_line
from ssl_wm.report.survival_plot import copies_of, styles_of
from ssl_wm.report.survival_thefts import thefts_figure, thefts_of, thefts_png

FIT = {"epochs": 1}
NONE = {"watermark": {"method": "none", "fit": FIT}}
MOVE = {"watermark": {"method": "move-target", "fit": FIT}, "thefts": "one"}
SMALL = {
    "clean": {"pretrain": {}}, "thefts": {"one": [{}]}, "embedders": {"none": NONE, "move": MOVE}
}  # fmt: skip


def config(**changes: object) -> SurvivalConfig:
    return SurvivalConfig.model_validate({**SMALL, **changes})


THIEF = Thief("cosine", "convnet-xs", False, 60_000, "same")
FEW = Thief("cosine", "convnet-xs", False, 10_000, "same")
SIGNS = Thief("cosine", "convnet-xs", False, 20_000, "signs")


def facts(linear: float, knn: float, *, p: float = 1.0, wsr: float = 0.0, wfpr: float = 0.0):
    subs = [
        {"statistic": value, "rank": rank, "p_value": rank / 720, "decoys": 720}
        for rank, value in ((1, 0.4), (5, 0.2))
    ]
    verdict = {
        "p_value": p, "wsr": wsr, "wfpr": wfpr, "reader": "knn", "sub_keys": subs,
        "decision": "detected" if p <= 0.01 else "not_detected",
        "tests": [{"name": "A1", "p_value": p}],
    }  # fmt: skip
    return {
        "arch": "convnet-xs", "utility": {"linear": linear, "knn": knn}, "verdict": verdict,
        "seconds": {"make": 5.0, "all": 6.0},
    }  # fmt: skip


def three_runs():
    """Return a config and cells of three runs: the third move victim is dear, one copy weak."""
    whole = config(runs=3)
    done = {}
    for run, (loss, p) in enumerate([(0.002, 1e-7), (0.010, 1e-5), (0.013, 1e-7)]):
        clean = facts(0.66, 0.62)
        del clean["verdict"]
        done[SurvivalCell(run, CLEAN)] = clean
        done[SurvivalCell(run, "none")] = facts(0.65, 0.61)
        victim = facts(0.65 - loss, 0.61, p=1e-7, wsr=0.9, wfpr=0.02)
        victim["compatibility"] = {"all": 0.9 + run / 100, "outside": 0.99, "inside": None}
        done[SurvivalCell(run, "move")] = victim
        done[SurvivalCell(run, CLEAN, THIEF)] = facts(0.67, 0.62, p=0.5)
        copy = facts(0.668, 0.625, p=p, wsr=0.4 - run / 10, wfpr=0.03)
        copy |= {"fidelity": 0.8, "agreement": 0.7}
        done[SurvivalCell(run, "move", THIEF)] = copy
    return whole, list(done), done


def bars_of(whole, plan, done):
    losses = losses_of(done, config=whole)
    bars = judge_bars(plan, done, losses=losses, config=whole)
    return {(bar["embedder"], bar["bar"]): bar for bar in bars}


def test_spread_is_mean_or_median_with_the_least_and_the_largest():
    assert spread({0: 1.0, 1: 2.0, 2: 9.0}) == {
        "value": 4.0, "low": 1.0, "high": 9.0, "runs": {0: 1.0, 1: 2.0, 2: 9.0}
    }  # fmt: skip
    assert spread({0: 1.0, 1: 2.0, 2: 9.0}, middle="median")["value"] == 2.0
    assert spread({0: None, 1: 3.0})["runs"] == {1: 3.0}
    assert spread({0: None}) is None


def test_losses_are_paired_within_a_run_and_of_the_right_other_encoder():
    whole, _, done = three_runs()
    losses = losses_of(done, config=whole)
    assert [losses[SurvivalCell(run, "move")]["linear"] for run in range(3)] == [0.2, 1.0, 1.3]
    assert losses[SurvivalCell(0, "move", THIEF)] == {"linear": 0.2, "knn": -0.5}
    assert compared_with(SurvivalCell(2, "move", FEW), config=whole) == SurvivalCell(2, CLEAN, FEW)
    assert not any(cell.embedder in (CLEAN, "none") for cell in losses)
    del done[SurvivalCell(1, "none")]
    assert SurvivalCell(1, "move") not in losses_of(done, config=whole)


def test_rows_hold_all_runs_of_an_embedder_and_thief_the_control_first():
    whole, plan, done = three_runs()
    done[SurvivalCell(1, "move", THIEF)] = {"error": "no room", "seconds": {"all": 1.0}}
    rows = {(row["embedder"], row["kind"]): row for row in make_rows(plan, done, config=whole)}
    assert list(rows) == [
        (CLEAN, "clean"), (CLEAN, "copy"), ("none", "victim"), ("move", "victim"),
        ("move", "copy"),
    ]  # fmt: skip
    victim, copy = rows["move", "victim"], rows["move", "copy"]
    loss = victim["linear_loss"]
    assert loss["value"] == pytest.approx(2.5 / 3)
    assert (loss["low"], loss["high"]) == (0.2, 1.3)
    assert victim["compatibility_all"]["value"] == pytest.approx(0.91)
    assert victim["compatibility_inside"] is None
    assert (victim["against"], victim["equally_long"]) == ("none", True)
    assert (copy["measured"], copy["planned"], copy["errors"]) == (2, 3, {1: "no room"})
    assert copy["p_value"]["runs"] == {0: 1e-7, 2: 1e-7}
    assert copy["wsr"]["low"] == pytest.approx(0.2)
    assert copy["detected"] == [2, 2]
    assert copy["contrasts"] == {0: [0.4, 0.2], 2: [0.4, 0.2]}
    assert copy["ranks"][0] == [1, 5]
    assert copy["contrast"]["value"] == pytest.approx(0.3)
    assert rows[CLEAN, "clean"]["p_value"] is None


def test_bars_name_the_cells_that_fail_them_with_their_values():
    found = bars_of(*three_runs())
    utility = found["move", "loss of utility, linear probe"]
    assert (utility["holds"], utility["held"], utility["of"]) == (False, 2, 3)  # 1.0 is within
    assert utility["fails"] == [{"cell": "run 2, move", "value": 1.3}]
    assert found["move", "loss of utility, kNN"]["holds"]
    p = found["move", "p, in-task, 50,000 images"]
    name = "run 1, move, cosine_60000_convnet-xs_same"
    assert p["fails"] == [{"cell": name, "value": 1e-5}]
    wsr = found["move", "WSR of in-task copies"]
    assert [each["cell"] for each in wsr["fails"]] == [
        "run 2, move, cosine_60000_convnet-xs_same"
    ]  # fmt: skip
    assert found["move", "WFPR"]["of"] == 6
    assert found[CLEAN, "not detected"]["holds"]
    assert found["none", "not detected"]["holds"]
    assert "FAILS, 2 of 3. Not within it: run 2, move (1.30)" in bar_line(utility)
    assert f"{name} (1e-05)" in bar_line(p)


def test_a_copy_is_held_to_the_bar_of_its_pool_and_budget():
    whole, plan, done = three_runs()
    for run in range(3):
        done[SurvivalCell(run, "move", FEW)] = facts(0.6, 0.6, p=5e-4)
        done[SurvivalCell(run, "move", SIGNS)] = facts(0.6, 0.6, p=0.2 if run == 0 else 1e-4)
    plan = list(done)
    found = bars_of(whole, plan, done)
    assert found["move", "p, in-task, 10,000 images"]["holds"]
    other = found["move", "p, another domain"]
    assert (other["holds"], other["held"], other["share"]) == (True, 2, 0.5)
    assert [each["cell"] for each in other["fails"]] == [
        "run 0, move, cosine_20000_convnet-xs_signs"
    ]  # fmt: skip
    assert found["move", "WSR of in-task copies"]["of"] == 6
    done[SurvivalCell(1, "move", SIGNS)] = facts(0.6, 0.6, p=0.3)
    assert bars_of(whole, plan, done)["move", "p, another domain"]["holds"] is False


def test_a_bar_stays_open_while_cells_are_missing_and_a_failed_cell_fails_it():
    whole, plan, done = three_runs()
    missing = SurvivalCell(2, "move", THIEF)
    del done[missing], done[SurvivalCell(1, "move", THIEF)]
    found = bars_of(whole, plan, done)["move", "p, in-task, 50,000 images"]
    assert (found["holds"], len(found["waiting"])) == (None, 2)
    done[missing] = {"error": "no room", "seconds": {"all": 1.0}}
    found = bars_of(whole, plan, done)["move", "p, in-task, 50,000 images"]
    assert found["holds"] is False
    assert found["fails"] == [{"cell": missing.name, "value": None, "error": "no room"}]
    del done[SurvivalCell(2, "none")]
    utility = bars_of(whole, plan, done)["move", "loss of utility, kNN"]
    assert (utility["holds"], utility["waiting"]) == (None, ["run 2, move"])


def test_only_who_meets_every_bar_and_was_stolen_from_wins():
    bars = [
        {"embedder": name, "bar": bar, "holds": holds}
        for name, bar, holds in (
            ("all", "p, x", True), ("all", "WFPR", True), ("some", "p, x", True),
            ("some", "WFPR", None), ("unstolen", "WFPR", True), ("none", "not detected", True),
        )
    ]  # fmt: skip
    assert winners_of(bars) == ["all"]
    whole, plan, done = three_runs()
    told = {**told_of(whole, plan, done), "winners": ["move"]}
    assert winner_line(told) == "all bars hold for move (runs: 3, copies: 3)"


def test_a_copy_of_the_control_that_is_detected_is_named():
    whole, plan, done = three_runs()
    done[SurvivalCell(1, CLEAN, THIEF)] = facts(0.67, 0.62, p=0.001)
    found = bars_of(whole, plan, done)[CLEAN, "not detected"]
    assert found["holds"] is False
    assert "run 1, clean, cosine_60000_convnet-xs_same" in bar_line(found)


def told_of(whole, plan, done):
    return {
        "title": "toy", **summary(plan, done, config=whole),
        "settings": whole.model_dump(mode="json"),
    }  # fmt: skip


def test_the_table_shows_every_row_with_its_spread_and_what_failed():
    whole, plan, done = three_runs()
    done[SurvivalCell(1, "move", THIEF)] = {"error": "no | room", "seconds": {"all": 1.0}}
    told = told_of(whole, plan, done)
    page = survival_markdown(told)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert "0.83 [0.20, 1.30]" in page
    assert "no \\| room" in page
    assert "2 of 3" in page
    brief = row_words(told["rows"][3], spread=False)
    assert brief["linear_loss"] == "0.83"
    one = config(embedders={"move": MOVE})
    alone = {cell: each for cell, each in done.items() if cell.run == 0 and cell.embedder != "none"}
    page = survival_markdown(told_of(one, list(alone), alone))
    assert "one run: nothing is known of the spread" in page


def test_a_marker_for_each_copy_and_no_two_embedders_alike_in_the_figure():
    told = told_of(*three_runs())
    points = list(copies_of(told))
    assert len(points) == 6
    assert [loss for row, loss, *_ in points if row["embedder"] == CLEAN] == [0, 0, 0]
    assert [loss for row, loss, *_ in points if row["embedder"] == "move"] == [0.2] * 3
    assert {round(log_p, 6) for row, _, _, log_p in points if row["embedder"] == "move"} == {7, 5}
    rows = [{"embedder": f"e{n}", "kind": "copy"} for n in range(14)]
    styles = styles_of({"rows": [{"embedder": CLEAN, "kind": "copy"}, *rows]})
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 15


def test_the_figure_of_thefts_has_a_dot_for_each_copy_also_for_those_without_a_control():
    whole, _, done = three_runs()
    done[SurvivalCell(1, "move", FEW)] = facts(0.6, 0.6, p=1e-3, wsr=0.25)
    done[SurvivalCell(2, "move", SIGNS)] = {"error": "no room", "seconds": {"all": 1.0}}
    told = told_of(whole, list(done), done)
    thefts = thefts_of(told)
    assert list(thefts) == ["cosine, 60,000, convnet-xs, same", "cosine, 10,000, convnet-xs, same"]
    assert [name for name, *_ in thefts["cosine, 60,000, convnet-xs, same"]] == [
        CLEAN, CLEAN, CLEAN, "move", "move", "move",
    ]  # fmt: skip
    assert thefts["cosine, 10,000, convnet-xs, same"] == [("move", 25.0, pytest.approx(3.0))]
    left, right = thefts_figure(told).axes
    for axes, places in ((left, [0, 0, 0, 20, 30, 40, 25]), (right, [0.3, 0.3, 0.3, 5, 7, 7, 3])):
        dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
        found = [line.get_xdata()[0] for line in dots]
        assert sorted(found) == pytest.approx(sorted(places), abs=0.01)
        assert [line.get_ydata()[0] for line in dots] == [0] * 6 + [1]
    assert thefts_png(told) == thefts_png(told)


def test_compatibility_is_the_mean_cosine_all_and_outside_the_targets(world):
    marked = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    clean = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    targets = torch.tensor([False, True, False])
    found = compatibility(marked, clean, targets=targets)
    half = 2**-0.5
    assert found == pytest.approx(
        {"all": (1 + half) / 3, "outside": (1 + half) / 2, "inside": 0.0}, abs=1e-7
    )
    assert compatibility(marked, clean, targets=torch.zeros(3, dtype=torch.bool))["inside"] is None
    key = world.tiny_key(groups=8, sub_keys=2)
    expected = torch.isin(key.groups.test, torch.tensor([sub.target for sub in key.sub_keys]))
    assert torch.equal(in_targets(key), expected)
    assert 0 < int(expected.sum()) < len(expected)
