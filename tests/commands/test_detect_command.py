"""The commands detect and bench detection: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Ran, run
from PIL import Image
from rich.text import Text

from ssl_wm.commands import detect as detect_commands
from ssl_wm.detection.detect import DETECTORS
from ssl_wm.encoders.load import build_encoder, save_encoder

SMALL = """
images: {spec: digits, limit: 300}
detect:
  sample: 120
  clusters: 4
  inversion: {rounds: 2, steps: 1, batch: 4, precision: float32}
  collapse: {starts: 1}
  stimulation: {units: 2}
  outliers: {neighbours: 5}
  scan: {per_cell: 2, mixers: [left-right]}
"""


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    (folder / "small.yaml").write_text(SMALL)
    for seed, name in enumerate(("suspect", "clean", "nulls/0", "nulls/1")):
        save_encoder(build_encoder("convnet-xs", seed=seed), folder / name)
    return folder


def detect(at: Path, *words: object) -> Ran:
    return run("detect", "--suspect", at / "suspect", "--config", at / "small.yaml", *words)


def test_all_detectors_judge_beside_the_nulls_and_the_file_is_what_is_printed(at, tmp_path):
    out = tmp_path / "found.json"
    ran = detect(at, "--detector", "all", "--null", at / "clean", "--null", at / "nulls",
                 "--out", out, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert set(told["detectors"]) == set(DETECTORS)
    assert told["failed"] == {}
    for name, each in told["detectors"].items():
        assert each["least_p"] == 0.25
        assert len(each["null_scores"]) == 3
        assert each["threshold"] == DETECTORS[name].threshold
        higher = sum(score >= each["score"] for score in each["null_scores"])
        assert each["p_value"] == pytest.approx((1 + higher) / 4)
    decree = told["detectors"]["decree"]
    assert decree["group"] is not None
    assert decree["success"]["images"] > 50
    assert told["detectors"]["seam"]["success"] is None
    del told["seconds"]
    assert json.loads(out.read_text()) == told
    again = detect(at, "--detector", "seam", "--null", at / "clean", "--out", out)
    assert (again.code, "--overwrite" in again.err) == (2, True)


def test_a_reader_sees_a_table_and_the_number_of_the_seed_counts(at):
    words = ("--detector", "lof", "--null", at / "clean")
    first = detect(at, *words)
    assert first.code == 0, first.err
    assert "lof" in first.out
    assert "least p" in first.out
    assert detect(at, *words).out == first.out
    scores = [
        json.loads(detect(at, *words, "--json", "--seed", seed).out)["detectors"]["lof"]["score"]
        for seed in (0, 1)
    ]
    assert scores[0] != scores[1]


def test_clusters_of_the_first_null_make_groups_and_it_is_not_compared_with(at):
    words = ("--detector", "prms", "--clusters", 4, "--null", at / "clean")
    ran = detect(at, *words, "--null", at / "nulls", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert len(told["detectors"]["prms"]["null_scores"]) == 2
    assert told["detectors"]["prms"]["group_name"].startswith("cluster ")
    assert told["groups"].startswith("4 clusters of ")
    alone = detect(at, *words)
    assert (alone.code, "Add --null SPEC" in alone.err) == (2, True)


def test_queries_of_a_folder_are_judged(at, tmp_path):
    deep = tmp_path / "queries" / "deep"
    deep.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (32, 32), (number, 0, 200)).save(deep / f"{number}.png")
    words = ("--detector", "seam", "--null", at / "clean", "--json")
    ran = detect(at, *words, "--queries", tmp_path / "queries")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["detectors"]["seam"]["details"]["queries"] == 12
    Image.new("RGB", (9, 32)).save(deep / "odd.png")
    ran = detect(at, *words, "--queries", tmp_path / "queries")
    assert (ran.code, "odd.png has 32 x 9 pixels" in ran.err) == (2, True)


def test_with_all_a_detector_that_cannot_run_is_told_and_the_others_are_run(at, monkeypatch):
    real = detect_commands.scan

    def scan(encoder, *, detector, **given):
        if detector not in ("prms", "seam"):
            raise detect_commands.DataError("no gradients")
        return real(encoder, detector=detector, **given)

    monkeypatch.setattr(detect_commands, "scan", scan)
    ran = detect(at, "--detector", "all", "--null", at / "clean")
    assert ran.code == 0
    assert "not run: decree: no gradients" in ran.out
    ran = detect(at, "--detector", "decree", "--null", at / "clean")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--detector", "decre", "--null", "x"], "did you mean 'decree'"),
        (["--detector", "decree"], "--null"),
        (["--null", "x"], "--detector"),
        (["--detector", "decree", "--null", "x", "--queries", "q"], "judges no queries"),
        (["--detector", "decree", "--null", "no-such-folder"], "no-such-folder"),
        (["--detector", "lof", "--null", "{clean}", "--queries", "none"], "is no folder"),
        (["--detector", "lof", "--null", "{clean}", "--queries", "{empty}"], "holds no image"),
        (["--detector", "prms", "--null", "{clean}", "--null", "{clean}", "--clusters", "2"],
         "at least 3"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(at, tmp_path, words, told):
    ran = detect(at, *(word.format(clean=at / "clean", empty=tmp_path) for word in words))
    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err
    assert ran.err.splitlines()[-1].startswith("ssl-wm: error: ")


def test_help_names_the_detectors():
    flat = Text.from_markup(run("detect", "--help").out).plain.replace("│", " ").split()
    assert all(name in " ".join(flat) for name in DETECTORS)
    ran = run("bench", "detection", "--help")
    assert ran.code == 0
    assert "Example: ssl-wm bench detection" in ran.out


def test_bench_detection_needs_its_config_and_says_which_setting_is_wrong(tmp_path):
    ran = run("bench", "detection", "--out", tmp_path / "x")
    assert (ran.code, "--config" in ran.err) == (2, True)
    path = tmp_path / "bad.yaml"
    path.write_text("marked: {}\nclean: {c: x}")
    ran = run("bench", "detection", "--config", path, "--out", tmp_path / "x")
    assert (ran.code, "marked" in ran.err) == (2, True)
    assert not (tmp_path / "x").exists()
