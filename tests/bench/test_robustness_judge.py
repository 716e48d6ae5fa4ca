"""Reading a miss again: when it happens, what it costs alpha, and what a resumed run does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ssl_wm.bench import robustness as bench
from ssl_wm.bench.robustness import RobustnessBench
from ssl_wm.bench.robustness_judge import FIRST, Judge, concluded
from ssl_wm.bench.robustness_open import Opened
from ssl_wm.bench.robustness_plan import CONTROL, UNTOUCHED, Cell, RobustnessConfig
from ssl_wm.calibration.fresh import fresh_keys
from ssl_wm.errors import ConfigError
from ssl_wm.report.robustness import robustness_markdown, summary_lines
from ssl_wm.verification.answers import ask
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.statistics import draw_joint_keys, standardise
from ssl_wm.verification.verify import verify

READ = {"per_pair": 8, "reference": 16, "trigger_count": 16, "recipes": 0}
LONGER = {**READ, "per_pair": 12}
STRENGTHS = {"rotate": [1], "answer-noise": [0.1, 3.0]}


def config(**changes: object) -> RobustnessConfig:
    plain = {
        "key": "owner.key", "encoders": {"victim": "v"}, "nulls": ["c"], "control_keys": 20,
        "attempts": list(STRENGTHS), "strengths": STRENGTHS,
        "verify": {"draws": 9_999, "read": READ}, "confirm": LONGER,
    }  # fmt: skip
    return RobustnessConfig.model_validate({**plain, **changes})


@pytest.fixture(scope="module")
def opened(world) -> Opened:
    images = world.images()
    key = world.key(images, sub_keys=2)
    clean, other = world.palette(images), world.convnet(seed=1)
    return Opened(
        images, key, {"victim": world.palette(images, key=key), CONTROL: clean},
        {"victim": "marked", CONTROL: "palette"}, {"clean": clean, "other": other},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(opened, tmp_path_factory):
    out = tmp_path_factory.mktemp("twice")
    return out, RobustnessBench(config(), opened=opened, out=out).run()


def cells(out, encoder: str) -> dict[str, dict]:
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((out / "cells" / encoder).glob("*.json"))
    }


def read(p: float) -> dict[str, float]:
    return {"p_value": p, "smallest_p": 1e-6, "alpha": 0.01}


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_two_readings_never_spend_more_than_alpha_together(first, second):
    facts = {"verdict": read(first), "second": {"verdict": read(second)}}
    told = concluded(facts, confirm=True)["verdict"]
    assert (told["decision"] == "detected") == (told["p_value"] <= 0.01)
    if told["decision"] == "detected":
        assert first <= 0.001 * (1 + 1e-9) or second <= 0.009 * (1 + 1e-9)
    once = concluded(facts, confirm=False)["verdict"]
    assert (once["p_value"], once["readings"]) == (first, 1)


def test_false_detections_of_two_independent_readings_are_alpha_or_less():
    p_values = np.random.default_rng(0).uniform(size=(200_000, 2))
    found = 0
    for one, two in p_values[p_values.min(axis=1) <= 0.02]:
        facts = {"verdict": read(one), "second": {"verdict": read(two)}}
        found += concluded(facts, confirm=True)["verdict"]["decision"] == "detected"
    assert 0.0094 < found / len(p_values) < 0.0106  # 0.001 + 0.999 * 0.009, within 3 sd


def test_only_a_miss_is_read_again_and_the_control_always(finished):
    out, result = finished
    victim = cells(out, "victim")
    for facts in victim.values():
        assert ("second" in facts) == (facts["verdict"]["p_value"] > FIRST * 0.01)
    assert {("second" in facts) for facts in victim.values()} == {True, False}
    assert all("second" in facts for facts in cells(out, CONTROL).values())
    (before,) = [c for c in victim.values() if c["cell"]["attempt"] == UNTOUCHED]
    told = result["untouched"]["victim"]
    assert (told["decision"], told["readings"]) == ("detected", 1)
    assert told["p_value"] == pytest.approx(10 * before["verdict"]["p_value"])


def test_the_second_reading_is_what_verify_says_with_its_settings(finished, opened):
    out, result = finished
    (facts,) = [c for c in cells(out, CONTROL).values() if c["cell"]["attempt"] == UNTOUCHED]
    longer = config().verify.model_copy(update={"read": config().confirm})
    clean, other = opened.nulls.values()
    again = verify(clean, key=opened.key, images=opened.images, nulls=[other], config=longer)
    assert facts["second"]["verdict"]["p_value"] == again.p_value
    assert facts["second"]["verdict"]["wsr"] == pytest.approx(again.wsr)
    assert result["untouched"][CONTROL]["p_value"] == min(1.0, again.p_value / (1 - FIRST))


def test_fresh_keys_on_the_control_are_judged_by_the_same_rule(opened):
    judge = Judge(config(control_keys=400), opened=opened)
    cell, clean = Cell(CONTROL, UNTOUCHED), opened.encoders[CONTROL]
    (_, first), (_, second) = (
        judge._read(judge._ask(clean, cell, each.read), cell, each)
        for each in (judge.first, judge.second)
    )
    either = (first <= 0.1 * 0.01) | (second <= 0.9 * 0.01)
    facts, _ = judge(clean, cell=cell)
    assert facts["fresh"] == {"keys": 400, "detected": int((first <= 0.01).sum())}
    assert facts["second"]["fresh"] == {"keys": 400, "detected": int(either.sum())}
    assert concluded(facts, confirm=True)["fresh"] == facts["second"]["fresh"]
    assert concluded(facts, confirm=False)["fresh"] == facts["fresh"]


def test_fresh_keys_with_spare_sub_keys_show_those_that_do_best_as_calibrate_has_it(world, opened):
    images = world.images(groups=9)
    whole = world.key(images, sub_keys=3)
    spared = replace(opened, key=replace(whole, chosen=(0, 2)), images=images)
    judge = Judge(config(control_keys=300, confirm=None), opened=spared)
    cell, clean = Cell(CONTROL, UNTOUCHED), opened.encoders[CONTROL]
    _, told = judge._read(judge._ask(clean, cell, judge.first.read), cell, judge.first)
    tables = [
        read_margins(
            ask(each, whole, images, config=judge.first.read), whole, config=judge.first.read
        )
        for each in (clean, opened.nulls["other"])
    ]
    statistics = contrasts(tables[0].tables) - contrasts(tables[1].tables)
    drawn_for = (whole, cell.seed(judge.seed), "control")
    triples = fresh_keys(*drawn_for, count=300, carriers=0).triples
    drawn = draw_joint_keys(len(whole.groups), sub_keys=3, draws=judge.first.draws, seed=0)
    units = [standardise(each).numpy() for each in statistics]
    mine, null = (
        np.stack([units[place][tuple(keys[:, place].T)] for place in range(3)])
        for keys in (triples, drawn)
    )
    least = np.ones(300)
    for shown in ([0, 1], [0, 2], [1, 2]):
        sums = null[shown].sum(axis=0)
        at_least = (sums[None] >= mine[shown].sum(axis=0)[:, None] - 1e-9).sum(axis=1)
        least = np.minimum(least, (1 + at_least) / (1 + len(sums)))
    assert told == pytest.approx(np.minimum(1.0, 3 * least))


@pytest.mark.parametrize(
    "changed",
    [
        {"draws": 4_999}, {"alpha": 0.02}, {"counted": 0}, {"read": {**READ, "space": "plain"}},
        {"read": {**READ, "centring": "fitted"}},
    ],
    ids=["draws", "alpha", "counted", "space", "centring"],
)  # fmt: skip
def test_by_other_settings_what_was_read_is_judged_again_and_no_encoder_is_asked(
    changed, finished, opened, tmp_path, monkeypatch
):
    spared = {"verify": {"draws": 9_999, "read": READ, **changed}}
    anew = RobustnessBench(config(**spared), opened=opened, out=tmp_path / "anew").run()
    shutil.copytree(finished[0], tmp_path / "kept")
    monkeypatch.setattr(bench, "remove", lambda *args, **kwargs: pytest.fail("ran"))
    again = RobustnessBench(config(**spared), opened=opened, out=tmp_path / "kept").run()
    assert again["left"] == 0
    for one, two in zip(again["rows"], anew["rows"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert again["control"] == anew["control"]
    assert again["untouched"] == anew["untouched"]


def test_by_other_nulls_what_was_read_is_judged_again(
    world, finished, opened, tmp_path, monkeypatch
):
    more = replace(opened, nulls={**opened.nulls, "third": world.convnet(seed=2)})
    settings = config(confirm=None)
    anew = RobustnessBench(settings, opened=more, out=tmp_path / "anew").run()
    shutil.copytree(finished[0], tmp_path / "kept")
    monkeypatch.setattr(bench, "remove", lambda *args, **kwargs: pytest.fail("ran"))
    again = RobustnessBench(settings, opened=more, out=tmp_path / "kept").run()
    told, before = ([row["statistic"] for row in each["rows"]] for each in (again, finished[1]))
    assert told == [row["statistic"] for row in anew["rows"]]
    assert told != before


def test_what_was_judged_again_is_told_before_another_cell_is_run(finished, opened, tmp_path):
    shutil.copytree(finished[0], tmp_path / "kept")
    cells = sorted((tmp_path / "kept" / "cells" / CONTROL).glob("*.json"))
    next(cell for cell in cells if UNTOUCHED not in cell.name).unlink()
    settings = config(verify={"draws": 9_999, "read": READ, "alpha": 0.02})

    def stop(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RobustnessBench(settings, opened=opened, out=tmp_path / "kept").run(after=stop)
    told = json.loads((tmp_path / "kept" / "result.json").read_text())
    assert (told["left"], told["alpha"]) == (1, 0.02)
    assert len(told["rows"]) == len(finished[1]["rows"]) - 1


def test_a_damaged_reading_is_named_not_judged(finished, opened, tmp_path):
    shutil.copytree(finished[0], tmp_path / "kept")
    path = next((tmp_path / "kept" / "cells" / "victim").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=path.name):
        RobustnessBench(config(), opened=opened, out=tmp_path / "kept").run()


def test_a_run_without_confirm_is_continued_with_it_by_reading_the_misses_alone(
    finished, opened, tmp_path, monkeypatch
):
    short = RobustnessBench(config(confirm=None), opened=opened, out=tmp_path).run()
    assert all(row["readings"] == 1 for row in short["rows"])
    asked, real = [], bench.remove

    def counting(encoder: object, **kwargs: object) -> object:
        asked.append((encoder is opened.encoders["victim"], kwargs["attempt"]))
        return real(encoder, **kwargs)

    monkeypatch.setattr(bench, "remove", counting)
    again = RobustnessBench(config(), opened=opened, out=tmp_path).run()
    twice = [r for r in again["rows"] if r["readings"] > 1 and r["encoder"] == "victim"]
    assert [name for victim, name in asked if victim] == [row["attempt"] for row in twice]
    whole = finished[1]
    for one, two in zip(again["rows"], whole["rows"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    back = RobustnessBench(config(confirm=None), opened=opened, out=tmp_path).run()
    assert [row["p_value"] for row in back["rows"]] == [row["p_value"] for row in short["rows"]]
    monkeypatch.setattr(bench, "remove", lambda *args, **kwargs: pytest.fail("ran"))
    once_more = RobustnessBench(config(), opened=opened, out=tmp_path).run()
    assert once_more["rows"] == again["rows"]


def test_a_second_reading_of_another_length_is_made_again(opened, tmp_path):
    RobustnessBench(config(), opened=opened, out=tmp_path).run()
    other = config(confirm={**LONGER, "per_pair": 16})
    RobustnessBench(other, opened=opened, out=tmp_path).run()
    lengths = {
        facts["second"]["read"]["per_pair"]
        for name in ("victim", CONTROL)
        for facts in cells(tmp_path, name).values()
        if "second" in facts
    }
    assert lengths == {16}


def test_a_second_reading_that_is_not_longer_is_refused():
    with pytest.raises(ValidationError, match="more than per_pair 8; got 8"):
        config(confirm=READ)
    natural = {**READ, "natural_only": True}
    assert config(confirm=natural).confirm.natural_only
    with pytest.raises(ValidationError, match="more than reference 16; got 16"):
        config(verify={"draws": 999, "read": natural}, confirm=natural)


def test_table_and_findings_say_what_was_read_twice(finished):
    result = finished[1]
    twice = [r for r in result["rows"] if r["readings"] > 1 and r["encoder"] == "victim"]
    (line,) = [line for line in summary_lines(result) if "read again" in line]
    assert line.startswith(f"{len(twice)} of 3 results were read again, by 12 composites a pair")
    assert "| readings |" in robustness_markdown(result)


def test_results_may_be_read_from_natural_images_alone(opened, tmp_path):
    read = {"natural_only": True, "reference": 16}
    alone = config(confirm=None, verify={"draws": 9_999, "read": read}, attempts=["rotate"],
                   strengths={"rotate": [1]})  # fmt: skip
    result = RobustnessBench(alone, opened=opened, out=tmp_path).run()
    before = result["untouched"]["victim"]
    (row,) = [row for row in result["rows"] if row["encoder"] == "victim"]
    assert (before["decision"], before["wsr"]) == ("detected", None)
    assert row["p_value"] == before["p_value"]
    assert "| victim |" in robustness_markdown(result)
