"""Washing benchmarks: which cells are run, what the frontier says, what a second run does."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import command_line
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ssl_wm.bench import robustness as bench
from ssl_wm.bench.frontier import Point, false_rate, frontier, paired_loss, winners
from ssl_wm.bench.robustness import RobustnessBench
from ssl_wm.bench.robustness_open import Opened
from ssl_wm.bench.robustness_plan import (
    DRAWLESS,
    UNTOUCHED,
    Cell,
    RobustnessConfig,
    default_strengths,
    expand,
    load_robustness_config,
    missing_images,
)
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.errors import ConfigError, VerificationError
from ssl_wm.removal.remove import REMOVALS, remove
from ssl_wm.report.robustness import frontier_rows, robustness_markdown, summary_lines
from ssl_wm.report.robustness_plot import kind_of, styles_of
from ssl_wm.rng import derive_seed
from ssl_wm.watermark.groups import label_groups
from ssl_wm.watermark.key import new_key
from ssl_wm.watermark.keyfile import save_key

VERIFY = {"draws": 999, "read": {"per_pair": 8, "reference": 16, "trigger_count": 16, "recipes": 3}}
NEEDED = {"key": "owner.key", "encoders": {"victim": "v"}, "nulls": ["c"]}


def config(**changes: object) -> RobustnessConfig:
    return RobustnessConfig.model_validate({**NEEDED, "verify": VERIFY, **changes})


# --- cells -------------------------------------------------------------------------------------


def test_cells_are_untouched_first_then_each_attempt_strength_and_repetition_control_last():
    chosen = config(
        attempts=["prune", "noise", "prune + noise"], seeds=2,
        strengths={"prune": [0.5], "noise": [0.1, 0.2], "prune+noise": [[0.5, 0.1]]},
    )  # fmt: skip
    found = expand(chosen, skipped={})
    each = [
        (UNTOUCHED, (), 0), ("prune", (0.5,), 0),  # prune draws nothing, so it is not repeated
        ("noise", (0.1,), 0), ("noise", (0.1,), 1), ("noise", (0.2,), 0), ("noise", (0.2,), 1),
        ("prune+noise", (0.5, 0.1), 0), ("prune+noise", (0.5, 0.1), 1),
    ]  # fmt: skip
    assert [(c.attempt, c.strengths, c.repetition) for c in found if c.encoder == "victim"] == each
    assert [(c.attempt, c.strengths, c.repetition) for c in found if c.encoder == "clean"] == each
    assert [c.encoder for c in found] == ["victim"] * 8 + ["clean"] * 8


def test_all_means_every_attempt_at_four_strengths_or_more_and_no_two_files_are_one(tmp_path):
    chosen = config(attempts=["all", "prune+ftal"], transfer={"spec": "digits"})
    assert set(chosen.attempts) == {*REMOVALS, "prune+ftal"}
    assert not missing_images(chosen)
    for attempt in chosen.attempts:
        assert len(chosen.strengths_of(attempt)) >= 4, attempt
    cells = expand(chosen, skipped={})
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells)
    assert len({cell.seed(0) for cell in cells}) == len(cells)


def test_a_cells_seed_follows_from_seed_encoder_attempt_strength_and_repetition():
    names = ("robustness", "victim", "noise", "0.1", 2)
    assert Cell("victim", "noise", (0.1,), 2).seed(7) == derive_seed(7, *names) % 2**31


def test_a_stack_goes_from_weak_to_strong_in_both_parts():
    assert default_strengths("round-weights+round") == ((8, 0.25), (5, 0.5), (4, 1), (2, 2))


def test_attempts_without_their_images_are_left_out_by_name():
    told = missing_images(config(attempts=["prune", "transfer", "transfer+prune"]))
    assert set(told) == {"transfer", "transfer+prune"}
    assert all("--transfer-images" in why for why in told.values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attempts": ["prunne"]}, "did you mean 'prune'"),
        ({"attempts": ["noise+prune"]}, "weights first"),
        ({"attempts": ["prune"], "strengths": {"prune": [1.5]}}, "'prune' takes"),
        ({"attempts": ["prune"], "strengths": {"noise": [0.1]}}, "no attempt here"),
        ({"attempts": ["prune+noise"], "strengths": {"prune+noise": [0.5]}}, "as many strengths"),
        ({"attempts": ["prune"], "strengths": {"prune": []}}, "empty list"),
        ({"encoders": {"clean": "v"}}, "the control"),
        ({"encoders": {"a/b": "v"}}, "letters, digits"),
        ({"epochs": 3}, "unknown setting 'epochs'"),
        ({"verify": {"access": "labels"}}, "judged by embeddings"),
        ({"key": None}, "--key FILE"),
        ({"encoders": {}}, "--encoder victim=SPEC"),
        ({"nulls": []}, "--null SPEC"),
        ({"images": {}}, "--images FOLDER"),
    ],
)
def test_a_wrong_or_missing_setting_is_one_clear_line(changes, says, tmp_path):
    path = tmp_path / "robustness.yaml"
    path.write_text(json.dumps({**NEEDED, "images": {"spec": "digits"}, **changes}))
    with pytest.raises(ConfigError, match=says) as caught:
        load_robustness_config(path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attempt", sorted(DRAWLESS))
def test_what_is_said_to_draw_nothing_gives_the_same_with_any_seed(attempt, world):
    images, encoder = world.images(train=2, test=1).train, world.convnet()
    strength = REMOVALS[attempt].strengths[
        0 if attempt in ("cut-layers", "flatten", "flatten-places") else 1
    ]
    one, two = (
        embed(remove(encoder, attempt=attempt, strength=strength, images=images, seed=seed), images)
        for seed in (1, 2)
    )
    assert torch.equal(one, two)


# --- the frontier ------------------------------------------------------------------------------


def points(attempt: str, *pairs: tuple[float, float], encoder: str = "victim") -> list[Point]:
    return [Point(encoder, attempt, (n,), loss, p) for n, (loss, p) in enumerate(pairs)]


def judged(*given: list[Point], detected: bool = True) -> dict[str, object]:
    flat = [point for each in given for point in each]
    fronts = frontier(flat, detected={"victim": detected, "copy": True}, alpha=0.01, bar=5.0)
    return {front.attempt: front for front in fronts}


def test_frontier_tells_who_wins_below_the_bar_and_who_pays_for_it():
    fronts = judged(
        points("kept", (0.1, 1e-5), (0.4, 0.01)),  # p = alpha is detected
        points("dear", (1.0, 1e-5), (7.5, 0.4), (30.0, 0.9)),
        points("never", (2.0, 1e-5), (40.0, 1e-4)),
        points("wins", (1.0, 1e-5), (3.2, 0.2), (9.0, 0.5)),
        points("bounces", (0.5, 0.3), (1.5, 1e-5), (6.0, 0.02)),  # p rises, falls, rises
        points("free", (-0.5, 0.02)),
        points("at the bar", (5.0, 0.02)),
    )
    told = {name: (front.outcome, front.survives) for name, front in fronts.items()}
    assert told == {
        "free": ("beats", False), "bounces": ("beats", False), "wins": ("beats", False),
        "at the bar": ("holds", True), "dear": ("holds", True), "never": ("holds", True),
        "kept": ("kept", True),
    }  # fmt: skip
    assert list(fronts) == list(told)  # the winners first, each outcome's cheapest first
    assert fronts["wins"].cheapest == Point("victim", "wins", (1,), 3.2, 0.2)
    assert fronts["bounces"].cheapest.loss == 0.5
    assert (fronts["bounces"].lost, fronts["bounces"].results) == (2, 3)
    assert fronts["never"].cheapest is None
    assert fronts["never"].largest_loss == 40.0
    assert winners(fronts.values()) == ["free", "bounces", "wins"]


def test_an_encoder_that_was_not_detected_before_is_no_win_for_anybody():
    (front,) = judged(points("prune", (0.1, 0.7)), detected=False).values()
    assert (front.outcome, front.survives) == ("unmarked", None)
    assert winners([front]) == []


def test_a_loss_that_could_lie_below_the_bar_is_called_close():
    near = Point("victim", "near", (1.0,), 5.5, 0.5, (4.8, 6.2))
    far = Point("victim", "far", (1.0,), 9.0, 0.5, (8.0, 10.0))
    fronts = judged([near], [far])
    assert (fronts["near"].close, fronts["far"].close) == (True, False)
    assert fronts["near"].survives


@given(
    st.lists(st.tuples(st.floats(-5, 60), st.floats(0, 1)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_order_of_results_never_matters_and_a_win_has_a_witness(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, two = (judged(points("x", *some))["x"] for some in (pairs, shuffled))
    assert (one.outcome, one.largest_loss, one.lost) == (two.outcome, two.largest_loss, two.lost)
    assert (one.outcome == "beats") == any(loss < 5 and p > 0.01 for loss, p in pairs)


@pytest.mark.parametrize(
    ("count", "total", "place"), [(0, 150, "inside"), (3, 150, "inside"), (12, 150, "below"),
                                  (20, 15000, "above")],
)  # fmt: skip
def test_false_detections_have_the_exact_interval_of_clopper_and_pearson(count, total, place):
    rate = false_rate(count, total, alpha=0.01)
    low = stats.beta.ppf(0.005, count, total - count + 1) if count else 0.0
    high = stats.beta.ppf(0.995, count + 1, total - count)
    assert rate.interval == pytest.approx((low, high), rel=1e-9)
    assert rate.alpha_is == place


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_a_loss_is_the_mean_of_paired_differences_with_a_normal_interval(pairs):
    before, after = zip(*pairs, strict=True)
    differences = torch.tensor(before).double() - torch.tensor(after).double()
    loss, (low, high) = paired_loss(before, after)
    half = 1.96 * differences.std() / len(pairs) ** 0.5
    assert loss == pytest.approx(100 * float(differences.mean()), abs=1e-9)
    assert (high - low) / 2 == pytest.approx(100 * float(half), abs=1e-9)


# --- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(world) -> Opened:
    images = world.images()
    key = world.key(images, sub_keys=1)
    clean, other = world.palette(images), world.convnet(seed=1)
    marked = world.palette(images, key=key)
    return Opened(
        images, key, {"victim": marked, "clean": clean},
        {"victim": "marked", "clean": "palette"}, {"clean": clean, "other": other},
    )  # fmt: skip


SMALL = {
    "attempts": ["rotate", "noise", "top-k", "prune", "transfer"], "control_keys": 20,
    "strengths": {"rotate": [1], "noise": [0.01], "top-k": [0.25, 0.9], "prune": [0.5]},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(opened, tmp_path_factory):
    out = tmp_path_factory.mktemp("robustness")
    return out, RobustnessBench(config(**SMALL), opened=opened, out=out).run()


def test_a_rotation_costs_nothing_and_leaves_the_verdict_as_it_was(finished):
    _, result = finished
    before = result["untouched"]["victim"]
    (row,) = [r for r in result["rows"] if (r["encoder"], r["attempt"]) == ("victim", "rotate")]
    assert before["decision"] == row["decision"] == "detected"
    assert row["p_value"] == before["p_value"]
    for name in ("statistic", "margin"):
        assert row[name] == pytest.approx(before[name], abs=1e-5)
    assert abs(row["knn_loss"]) < 1.0


def test_a_cell_that_cannot_be_carried_out_is_told_and_the_others_go_on(finished):
    _, result = finished
    assert {(f["encoder"], f["attempt"]) for f in result["failed"]} == {
        ("victim", "prune"), ("clean", "prune"),
    }  # fmt: skip
    assert "no convolution" in result["failed"][0]["error"]
    assert set(result["skipped"]) == {"transfer"}
    assert len(result["rows"]) == 8


def test_losses_are_differences_of_the_accuracies_told(finished):
    _, result = finished
    for row in result["rows"]:
        before = result["untouched"][row["encoder"]]
        for name in ("linear", "knn"):
            loss = 100 * (before[name] - row[name])
            assert row[f"{name}_loss"] == pytest.approx(loss, abs=1e-9)


def test_control_counts_its_own_cells_and_fresh_keys(finished):
    _, result = finished
    own, fresh = result["control"]["own"], result["control"]["fresh"]
    read = [row for row in result["rows"] if row["encoder"] == "clean"]
    false = [row for row in read if row["p_value"] <= 0.01]
    untouched = result["untouched"]["clean"]["p_value"] <= 0.01
    assert (own["count"], own["total"]) == (len(false) + untouched, len(read) + 1)
    assert fresh["total"] == 20 * own["total"]
    assert fresh["count"] <= stats.binom.ppf(0.9999, fresh["total"], 0.01)
    assert not any(front["encoder"] == "clean" for front in result["frontier"])


def test_a_run_cut_short_has_a_result_of_what_is_done_and_says_what_is_left(opened, tmp_path):
    seen = []

    def cut(result):
        seen.append(result)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RobustnessBench(config(**SMALL), opened=opened, out=tmp_path).run(after=cut)
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["left"] == 12 - 4
    assert [row["attempt"] for row in told["rows"]] == ["rotate", "noise", "top-k"]
    assert list(told["untouched"]) == ["victim"]
    assert told["control"] == {"own": None, "detected": [], "fresh": None}
    assert "8 cells are not run yet, so no outcome is final" in summary_lines(told)
    whole = RobustnessBench(config(**SMALL), opened=opened, out=tmp_path).run()
    assert whole["left"] == 0
    assert not any("not run yet" in line for line in summary_lines(whole))


def test_finished_cells_are_not_run_again_but_failed_ones_are(finished, opened, monkeypatch):
    out, first = finished
    asked, real = [], bench.remove

    def counting(*args: object, **kwargs: object) -> object:
        asked.append(kwargs["attempt"])
        return real(*args, **kwargs)

    monkeypatch.setattr(bench, "remove", counting)
    again = RobustnessBench(config(**SMALL), opened=opened, out=out).run()
    assert asked == ["prune", "prune"]
    assert again["rows"] == first["rows"]
    more = config(**{**SMALL, "attempts": [*SMALL["attempts"], "shorten"]})
    RobustnessBench(more, opened=opened, out=out).run()
    assert asked.count("shorten") == 2 * len(REMOVALS["shorten"].strengths)
    assert set(asked) == {"prune", "shorten"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"neighbours": 5}, "neighbours was 20, now 5"),
        ({"utility_limit": 50}, "utility_limit was 10000, now 50"),
        ({"verify": {**VERIFY, "read": {**VERIFY["read"], "reference": 9}}}, "read.reference was"),
    ],
)
def test_a_changed_setting_is_refused_by_name_before_anything_runs(
    changes, says, finished, opened, monkeypatch
):
    monkeypatch.setattr(bench, "remove", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(ConfigError, match=says):
        RobustnessBench(config(**{**SMALL, **changes}), opened=opened, out=finished[0]).run()


def test_a_key_that_cannot_reach_alpha_ends_the_run_before_the_attempts(opened, tmp_path):
    strict = config(**{**SMALL, "verify": {**VERIFY, "alpha": 0.001}})
    with pytest.raises(VerificationError, match=r"victim.*no p-value below"):
        RobustnessBench(strict, opened=opened, out=tmp_path).run()
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_result_and_table_hold_every_row_and_no_number_that_is_none(finished):
    out, result = finished
    text = (out / "result.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in result.json"))
    page = robustness_markdown(result)
    assert sum(line.startswith("| victim | ") for line in page.splitlines()) == 3 + 1 + 4
    assert len(frontier_rows(result)) == len(result["frontier"]) == 3
    assert "transfer was left out" in page


def test_who_wins_is_said_first_and_by_name(finished):
    result = dict(finished[1], winners=["jpeg", "ftal"])
    assert summary_lines(result)[0].endswith("jpeg and ftal")
    assert "none of 3 attempts" in summary_lines(dict(result, winners=[]))[0]


def test_no_two_attempts_of_a_kind_look_alike_in_the_figure():
    names = [*REMOVALS, *(f"prune+{name}" for name in REMOVALS)]
    styles = styles_of(names)
    assert len({str(style) for style in styles.values()}) == len(names)
    assert len({styles[name]["color"] for name in names}) == len({kind_of(n) for n in names})


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for name in ("clean", "suspect"):
        save_encoder(build_encoder("convnet-xs", seed=len(name)), folder / name)
    images = open_images("digits", limit=100)
    key = new_key(images, groups=label_groups(images), secret=b"x" * 32, sub_keys=1)
    save_key(key, folder / "owner.key")
    (folder / "small.yaml").write_text(json.dumps({
        "images": {"spec": "digits", "limit": 100}, "verify": VERIFY, "control_keys": 0,
        "key": str(folder / "owner.key"), "encoders": {"victim": str(folder / "suspect")},
        "nulls": [str(folder / "clean")],
    }))  # fmt: skip
    return SimpleNamespace(
        folder=folder, config=folder / "small.yaml", out=folder / "out",
        first=("--attempts", "prune,noise", "--attempts", "rotate", "--strengths", "rotate=0.5,1",
               "--strengths", "prune=0.3", "--strengths", "noise=0.01"),
    )  # fmt: skip


run = partial(command_line.run, "bench", "robustness")


def test_command_writes_cells_result_table_and_figure_and_a_rotation_changes_no_p(files):
    code, out, err = run("--config", files.config, *files.first, "--out", files.out, "--json")
    assert code == 0, err
    told = json.loads(out)
    result = json.loads((files.out / "result.json").read_text())
    assert told["frontier"] == result["frontier"]
    assert len(list((files.out / "cells").rglob("*.json"))) == 2 * (1 + 4)
    before = result["untouched"]["victim"]["p_value"]
    turned = [
        row["p_value"] for row in result["rows"]
        if (row["encoder"], row["attempt"]) == ("victim", "rotate")
    ]  # fmt: skip
    assert turned == [before, before]
    assert (files.out / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    code, out, err = run("--config", files.config, *files.first, "--out", files.out, "--resume")
    assert code == 0, err
    assert "lost at" in out
    assert "attempts lose" in out or "attempts loses" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--attempts", "rotat"), "did you mean 'rotate'"),
        (("--encoder", "victim"), "NAME=SPEC"),
        (("--strengths", "prune=much"), "NAME=S,S"),
        (("--key", "missing.key"), "missing.key does not exist"),
        (("--images", "missing"), "missing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, says, files, tmp_path):
    code, out, err = run("--config", files.config, *words, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
