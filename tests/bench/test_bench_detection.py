"""The detection benchmark: its cells, what is kept of them, and what they say together."""

from __future__ import annotations

import json

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ssl_wm.bench import detection_run
from ssl_wm.bench.detection import run_detection
from ssl_wm.bench.detection_cells import in_key
from ssl_wm.bench.detection_plan import DetectionBench, expand, load_detection_config
from ssl_wm.bench.detection_summary import comparable
from ssl_wm.detection.detect import DETECTORS
from ssl_wm.detection.given import Detection
from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.errors import ConfigError, DataError
from ssl_wm.watermark.keyfile import save_key

SETTINGS = {
    "sample": 128, "clusters": 4,
    "inversion": {"rounds": 2, "steps": 1, "batch": 4, "precision": "float32"},
    "collapse": {"starts": 1}, "stimulation": {"units": 2},
    "outliers": {"neighbours": 5}, "scan": {"per_cell": 4, "mixers": ["left-right"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def images(world):
    return world.images()


@pytest.fixture(scope="module")
def at(tmp_path_factory, world, images):
    folder = tmp_path_factory.mktemp("encoders")
    for seed, name in enumerate(("marked", "other", "clean", "more/00", "more/01")):
        save_encoder(build_encoder("convnet-xs", seed=seed), folder / name)
    save_key(world.key(images, sub_keys=2), folder / "owner.key")
    save_key(world.key(images, number=1), folder / "second.key")
    return folder


def bench(at, **changes) -> DetectionBench:
    key = str(at / "owner.key")
    told = {
        "marked": {n: {"encoder": str(at / n), "key": key} for n in ("marked", "other")},
        "clean": {"clean": str(at / "clean"), "more": str(at / "more")},
        "settings": SETTINGS, "queries": 16, "trial": {"fitted": 100, "judged": 64},
        "read": {"per_pair": 8, "recipes": 0, "reference": 12, "trigger_count": 16},
    }  # fmt: skip
    return DetectionBench.model_validate({**told, **changes})


@pytest.fixture(scope="module")
def ran(at, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run_detection(bench(at), out=out, images=images)


def test_every_encoder_meets_every_detector_and_queries_meet_every_key():
    cells = expand({"m": "k1", "n": "k1"}, ["c"], list(DETECTORS))
    assert len(cells) == 2 * 7 + 6  # seam asks no encoder, so no clean one
    assert {c.queries_of for c in cells if c.detector == "lof"} == {"m"}
    two = expand({"m": "k1", "n": "k2"}, ["c"], ["lof", "decree"])
    assert [(c.encoder, c.detector, c.queries_of) for c in two if not c.marked] == [
        ("c", "lof", "m"), ("c", "lof", "n"), ("c", "decree", "")
    ]  # fmt: skip
    assert len({c.path(detection_run.Path()) for c in two}) == len(two)


def test_all_detectors_run_and_the_files_can_be_read_again(ran):
    out, result = ran
    assert result["failed"] == []
    kept = json.loads((out / "result.json").read_text())
    assert kept == result
    by_name = {row["detector"]: row for row in result["comparisons"]}
    assert set(by_name) == set(DETECTORS)
    assert set(by_name["decree"]["clean"]) == {"clean", "more/00", "more/01"}
    assert by_name["seam"]["clean"] == {}
    assert by_name["seam"]["roc"] is None
    table = (out / "table.md").read_text()
    assert all(name in table for name in DETECTORS)
    assert (out / "roc.png").read_bytes().startswith(b"\x89PNG")
    for name in ("marked", "other"):
        assert 0 <= result["rates"][name]["linear"]["wsr"] <= 1
        for detector in ("neural-cleanse", "abs", "decree", "ssl-cleanse", "prms"):
            found = result["found"][name][detector]
            assert 0 <= found["success"]["share"] <= 1
            assert 0 <= found["composites"]["share"] <= 1
            assert found["key"]["chance"] == 2 / 8
        assert "is_sub_key" in result["found"][name]["prms"]["key"]
    assert "key" not in result["found"]["clean"]["decree"]


def test_areas_p_values_and_false_alarms_follow_from_the_cells(ran):
    out, result = ran
    for row in result["comparisons"]:
        if row["detector"] in ("prms", "seam"):
            continue
        scores = {
            side: [
                json.loads((out / "cells" / name / f"{row['detector']}.json").read_text())["score"]
                for name in names
            ]
            for side, names in (
                ("marked", ("marked", "other")), ("clean", ("clean", "more/00", "more/01"))
            )
        }  # fmt: skip
        truth = [1, 1, 0, 0, 0]
        expected = roc_auc_score(truth, scores["marked"] + scores["clean"])
        assert row["roc"]["area"] == pytest.approx(expected), row["detector"]
        for name, score in zip(("marked", "other"), scores["marked"], strict=True):
            higher = sum(clean >= score for clean in scores["clean"])
            assert row["judged"][name]["p_value"] == pytest.approx((1 + higher) / 4)
        if row["threshold"] is not None:
            beyond = sum(clean > row["threshold"] for clean in scores["clean"])
            assert row["false_alarms"]["count"] == beyond


def counted(monkeypatch) -> list[str]:
    calls, real = [], detection_run.scan

    def scan(encoder, *, detector, **given):
        calls.append(detector)
        return real(encoder, detector=detector, **given)

    monkeypatch.setattr(detection_run, "scan", scan)
    return calls


def test_a_finished_run_is_not_run_again_and_a_new_encoder_alone_is(ran, at, images, monkeypatch):
    out, result = ran
    calls = counted(monkeypatch)
    assert run_detection(bench(at), out=out, images=images) == result
    assert calls == []
    (out / "cells" / "clean" / "decree.json").unlink()
    again = run_detection(bench(at), out=out, images=images)
    assert calls == ["decree"]
    assert again["comparisons"] == result["comparisons"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"settings": {**SETTINGS, "sample": 64}}, "settings.sample was 128, now 64"),
        ({"trial": {"fitted": 90, "judged": 64}}, "trial.fitted was 100, now 90"),
    ],
)
def test_a_changed_setting_is_refused_by_name_before_anything_runs(
    ran, at, images, monkeypatch, changes, told
):
    calls = counted(monkeypatch)
    with pytest.raises(ConfigError, match=told):
        run_detection(bench(at, **changes), out=ran[0], images=images)
    assert calls == []


def test_a_failing_cell_is_recorded_and_run_again_next_time(at, images, tmp_path, monkeypatch):
    real = detection_run.scan

    def scan(encoder, *, detector, **given):
        if detector == "decree":
            raise DataError("no luck")
        return real(encoder, detector=detector, **given)

    config = bench(at, detectors=["decree", "lof"])
    with monkeypatch.context() as patch:
        patch.setattr(detection_run, "scan", scan)
        result = run_detection(config, out=tmp_path, images=images)
    assert len(result["failed"]) == 5
    assert result["failed"][0]["error"] == "DataError: no luck"
    assert [row["detector"] for row in result["comparisons"]] == ["lof"]
    assert "no luck" in (tmp_path / "table.md").read_text()
    calls = counted(monkeypatch)
    assert run_detection(config, out=tmp_path, images=images)["failed"] == []
    assert calls == ["decree"] * 5


def test_damaged_tensors_beside_a_cell_are_refused(at, images, tmp_path):
    config = bench(at, detectors=["prms"])
    run_detection(config, out=tmp_path, images=images)
    (tmp_path / "cells" / "clean" / "prms.safetensors").write_bytes(b"gone")
    with pytest.raises(ConfigError, match="delete both"):
        run_detection(config, out=tmp_path, images=images)


def test_two_keys_have_two_sets_of_queries(at, images, tmp_path):
    marked = {
        name: {"encoder": str(at / name), "key": str(at / key)}
        for name, key in (("marked", "owner.key"), ("other", "second.key"))
    }
    config = bench(at, detectors=["lof"], marked=marked)
    rows = run_detection(config, out=tmp_path, images=images)["comparisons"]
    assert [(row["queries_of"], list(row["marked"])) for row in rows] == [
        ("marked", ["marked"]), ("other", ["other"])
    ]  # fmt: skip
    assert rows[0]["clean"] != rows[1]["clean"]


def test_scores_of_a_scan_have_equally_many_others_behind_them():
    stream = torch.Generator().manual_seed(0)

    def found() -> Detection:
        table = torch.rand(1, 4, 4, 4, generator=stream, dtype=torch.float64)
        return Detection(0.0, table=table, details={"mixers": ["left-right"]})

    clean = {name: found() for name in "abc"}
    marked, scores = comparable("prms", {"m": found(), "twin": clean["a"]}, clean)
    by_hand = (clean["a"].table - (clean["b"].table + clean["c"].table) / 2).max()
    assert scores["a"] == pytest.approx(float(by_hand))
    assert set(marked) == {"m", "twin"}


def test_a_group_is_a_target_if_most_of_its_images_are_the_targets(world, images):
    key = world.key(images)
    owners = images.test.labels
    target = key.sub_keys[0].target
    told = in_key(owners, owners, target, key=key)
    assert told["is_target"] is True
    assert (told["agreement"], told["in_targets"]) == (1.0, 1.0)
    assert told["expected"] == pytest.approx(1 / 8) == told["chance"]
    assert in_key(owners, owners, key.sub_keys[0].a, key=key)["is_target"] is False
    assert in_key(owners, owners, 99, key=key)["is_target"] is None


def test_encoders_that_count_twice_or_carry_a_mark_are_refused(at, images, tmp_path):
    with pytest.raises(ConfigError, match="the same encoder"):
        run_detection(bench(at, clean={"c": str(at / "marked")}), out=tmp_path, images=images)
    marked = build_encoder("convnet-xs", seed=9)
    marked.made = {"stage": "watermark"}
    save_encoder(marked, tmp_path / "x")
    with pytest.raises(ConfigError, match="no clean encoder"):
        run_detection(bench(at, clean={"c": str(tmp_path / "x")}), out=tmp_path, images=images)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clean: {c: x}", "marked"),
        ("marked: {m: {encoder: x, key: k}}\nclean: {m: y}", "both marked and clean"),
        ("marked: {m: {encoder: x, key: k}}\nclean: {c: y}\ndetectors: [decre]", "decree"),
        ("marked: {../m: {encoder: x, key: k}}\nclean: {c: y}", "cannot name a folder"),
        ("marked: {m: {encoder: x, key: k}}\nclean: {c: y}\nsead: 1", "seed"),
    ],
)
def test_a_wrong_config_is_told_by_name(tmp_path, text, told):
    path = tmp_path / "bench.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_detection_config(path, {})
