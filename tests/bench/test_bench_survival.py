"""Survival of the mark, run at toy size: what is measured, what a second run does."""

from __future__ import annotations

import json
import shutil
from functools import partial

import command_line
import pytest
import yaml
from small_survival import FIT, MOVE, NONE, SMALL, VERIFY, config

from ssl_wm.bench import survival_run
from ssl_wm.bench.survival import SurvivalBench
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import ConfigError, EncoderError, VerificationError
from ssl_wm.report.survival import survival_markdown


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=4, train=24, test=12, side=16)


@pytest.fixture
def stages(monkeypatch):
    """Return the list of stages that were run, in order."""
    ran: list[str] = []
    for name in ("pretrain", "watermark", "steal", "keygen"):
        own = getattr(survival_run, name)

        def counted(*given, own=own, name=name, **named):
            ran.append(name)
            return own(*given, **named)

        monkeypatch.setattr(survival_run, name, counted)
    return ran


def test_a_killed_run_keeps_its_cells_and_its_table_and_goes_on(images, tmp_path, stages):
    whole = config(thefts={"one": [{"attacks": ["cosine", "mse"]}]})
    partial = []

    def kill(result):
        partial.append(result)
        if len(partial) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SurvivalBench(whole, images=images, out=tmp_path).run(after=kill)
    assert stages == ["pretrain", "keygen", "watermark", "watermark", "steal"]
    left = json.loads((tmp_path / "result.json").read_text())
    assert (left["cells"], left["pending"], len(left["rows"])) == (7, 3, 7)
    assert "3 of 7 cells are not done yet" in survival_markdown(left)
    stages.clear()
    result = SurvivalBench(whole, images=images, out=tmp_path).run()
    assert stages == ["steal"] * 3
    assert (result["pending"], result["failed"]) == (0, [])
    for place in (0, 1, 3):  # what was there is told as before
        assert result["rows"][place]["linear"] == left["rows"][place]["linear"]
    stages.clear()
    again = SurvivalBench(whole, images=images, out=tmp_path).run()
    assert stages == []
    assert again["rows"] == result["rows"]


def test_embedders_thefts_and_runs_may_be_added_and_only_these_are_made(images, tmp_path, stages):
    first = SurvivalBench(config(), images=images, out=tmp_path).run()
    stages.clear()
    peer = {"watermark": {"method": "composite-backdoor", "fit": FIT}, "runs": 1, "thefts": "one"}
    more = config(runs=2, embedders={**SMALL["embedders"], "peer": peer})
    result = SurvivalBench(more, images=images, out=tmp_path).run()
    assert stages == [
        "watermark", "steal", "pretrain", "keygen", "watermark", "watermark", "steal", "steal"
    ]  # fmt: skip
    assert [row["planned"] for row in result["rows"]] == [2, 2, 2, 2, 2, 1, 1]
    assert result["rows"][0]["linear"]["runs"]["0"] == first["rows"][0]["linear"]["value"]
    keys = [json.loads((tmp_path / f"run-{n}/owner.json").read_text()) for n in (0, 1)]
    assert keys[0]["commitment"] != keys[1]["commitment"]
    clean = [known_digest(load_encoder(tmp_path / f"run-{n}/clean")) for n in (0, 1)]
    assert clean[0] != clean[1]


def test_runs_of_two_machines_are_told_in_one_table(images, tmp_path, stages):
    whole, gathered = config(runs=2), tmp_path / "gathered"
    for number in (0, 1):
        out = tmp_path / f"machine-{number}"
        part = SurvivalBench(whole, images=images, out=out).run(only=[number])
        assert part["pending"] == part["cells"] // 2
        for note in out.rglob("*.json"):  # no encoder, no key
            kept = gathered / note.relative_to(out)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(note, kept)
    stages.clear()
    result = SurvivalBench(whole, images=images, out=gathered).run()
    assert stages == []
    assert result["pending"] == 0
    assert set(result["rows"][0]["linear"]["runs"]) == {"0", "1"}


def test_a_run_that_is_not_there_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match="there is no run 2: the config has 2"):
        SurvivalBench(config(runs=2), images=images, out=tmp_path).run(only=[0, 2])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clean": {"pretrain": {"arch": "convnet-xs", "fit": {**FIT, "epochs": 2}}}},
         r"clean\.pretrain\.fit\.epochs was 1, now 2"),
        ({"embedders": {"none": NONE, "move": {
            **MOVE, "watermark": {**MOVE["watermark"], "seed": 3}}}},
         r"watermark\.seed was 0, now 3"),
        ({"steal": {**SMALL["steal"], "held_out": 0.2}}, r"steal\.held_out was 0\.02, now 0\.2"),
        ({"key": {**SMALL["key"], "clusters": 9}}, r"key\.clusters was 20, now 9"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"neighbours": 5}, "neighbours was 20, now 5"),
        ({"verify": {**VERIFY, "draws": 100}}, r"verify\.draws was 99, now 100"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_name_before_anything_runs(
    changes, says, images, finished, stages
):
    with pytest.raises(ConfigError, match=says):
        SurvivalBench(config(**changes), images=images, out=finished).run()
    assert stages == []


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("survival") / "out"
    SurvivalBench(config(), images=images, out=out).run()
    return out


def test_other_images_are_refused(world, finished):
    with pytest.raises(ConfigError, match=r"images\.train was"):
        SurvivalBench(
            config(), images=world.images(groups=4, train=24, test=12, side=16, seed=1),
            out=finished,
        ).run()  # fmt: skip


def test_a_cell_holds_what_was_measured_and_no_answers(finished):
    theft = finished / "run-0" / "move" / "thefts" / "cosine_96_convnet-xs_same"
    assert not (theft / "transfer.safetensors").exists()
    copy = json.loads((theft / "cell.json").read_text())
    assert set(copy["utility"]) == {"linear", "knn"}
    assert -1 <= copy["fidelity"] <= 1
    assert copy["calls"]["billed"] == 96
    verdict = copy["verdict"]
    assert verdict["sub_keys"][0]["rank"] / verdict["sub_keys"][0]["decoys"] == verdict["p_value"]
    victim = json.loads((finished / "run-0" / "move" / "victim" / "cell.json").read_text())
    assert set(victim["compatibility"]) == {"all", "outside", "inside"}
    assert "verdict" not in json.loads((finished / "run-0" / "clean" / "cell.json").read_text())
    assert (finished / "run-0" / "owner.key").stat().st_mode & 0o777 == 0o600
    secret = json.loads((finished / "run-0" / "owner.key").read_text())["secret"]
    assert not any(secret in path.read_text() for path in finished.rglob("*.json"))


def test_a_failed_cell_is_told_and_tried_again_and_the_others_are_run(
    images, tmp_path, monkeypatch
):
    own = survival_run.watermark

    def broken(*given, **named):
        if named["config"].method == "move-target":
            raise EncoderError("the disk is full of eels")
        return own(*given, **named)

    monkeypatch.setattr(survival_run, "watermark", broken)
    result = SurvivalBench(config(), images=images, out=tmp_path).run()
    assert [each["cell"] for each in result["failed"]] == [
        "run 0, move", "run 0, move, cosine_96_convnet-xs_same"
    ]  # fmt: skip
    assert "eels" in result["failed"][0]["error"]
    assert "'run 0, move', which failed" in result["failed"][1]["error"]
    assert [row["measured"] for row in result["rows"]] == [1, 1, 1, 0, 0]
    assert "eels" in survival_markdown(result)
    monkeypatch.setattr(survival_run, "watermark", own)
    again = SurvivalBench(config(), images=images, out=tmp_path).run()
    assert again["failed"] == []
    assert [row["measured"] for row in again["rows"]] == [1, 1, 1, 1, 1]


def test_a_run_of_which_nothing_can_be_measured_ends_with_an_error(images, tmp_path, monkeypatch):
    def broken(*given, **named):
        raise EncoderError("no weights")

    monkeypatch.setattr(survival_run, "pretrain", broken)
    with pytest.raises(VerificationError, match=r"none of 5 cells.*run 0, clean: no weights"):
        SurvivalBench(config(), images=images, out=tmp_path).run()
    with pytest.raises(VerificationError, match=r"none of 5 cells.*run 1, clean: no weights"):
        SurvivalBench(config(runs=2), images=images, out=tmp_path / "second").run(only=[1])


def test_an_interrupted_measurement_does_not_steal_again(images, tmp_path, monkeypatch, stages):
    own = survival_run.nearness
    monkeypatch.setattr(survival_run, "nearness", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SurvivalBench(config(), images=images, out=tmp_path).run()
    assert stages.count("steal") == 1
    monkeypatch.setattr(survival_run, "nearness", own)
    SurvivalBench(config(), images=images, out=tmp_path).run()
    assert stages.count("steal") == 2


def test_a_saved_clean_encoder_is_shared_by_all_runs_and_this_is_said(images, tmp_path, stages):
    encoder = build_encoder("convnet-xs", seed=3).eval()
    save_encoder(encoder, tmp_path / "given")
    given = {"encoder": str(tmp_path / "given")}
    out = tmp_path / "out"
    result = SurvivalBench(config(runs=2, clean=given), images=images, out=out).run()
    assert "pretrain" not in stages
    assert not (out / "run-0" / "clean" / "encoder.json").exists()
    clean = result["rows"][0]
    assert clean["linear"]["low"] == clean["linear"]["high"]
    assert result["shared_clean"] == given["encoder"]
    assert "all runs share the clean encoder" in survival_markdown(result)
    assert result["common"]["clean"] == {"encoder": known_digest(encoder)}


def test_half_is_a_random_half_of_the_owners_images_the_same_for_all(images, tmp_path, monkeypatch):
    asked = []
    own = survival_run.steal

    def noted(*given, **named):
        asked.append(named["images"])
        return own(*given, **named)

    monkeypatch.setattr(survival_run, "steal", noted)
    whole = config(runs=2, thefts={"one": [{"pools": ["half"]}]})
    SurvivalBench(whole, images=images, out=tmp_path).run()
    assert [len(pool) for pool in asked] == [48] * 4
    prints = [pool.fingerprint for pool in asked]
    assert prints[0] == prints[1] != prints[2] == prints[3]
    own_rows = {bytes(row.numpy().tobytes()) for row in images.train.pixels}
    assert {bytes(row.numpy().tobytes()) for row in asked[0].pixels} <= own_rows


def test_a_key_that_was_exchanged_is_not_used(images, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "out")
    note = tmp_path / "out" / "run-0" / "owner.json"
    told = json.loads(note.read_text())
    note.write_text(json.dumps({**told, "commitment": "0" * 64}))
    more = config(thefts={"one": [{"attacks": ["cosine", "mse"]}]})
    result = SurvivalBench(more, images=images, out=tmp_path / "out").run()
    assert len(result["failed"]) == 2
    assert "not the key that was drawn" in result["failed"][0]["error"]


run = partial(command_line.run, "bench", "survival")


def test_command_marks_steals_and_judges_real_images(tmp_path):
    read = {"per_pair": 8, "reference": 16, "trigger_count": 20, "recipes": 3}
    told = {
        **SMALL, "title": "digits", "key": {"groups": "clusters", "clusters": 9, "sub_keys": 3,
                                            "autoencoder_steps": 1},
        "thefts": {"one": [{"budgets": [150]}], "two": [{"budgets": [150], "pools": ["half"]}]},
        "embedders": {"none": NONE, "move": {**MOVE, "thefts": "two"}},
        "verify": {"draws": 99, "read": read},
    }  # fmt: skip
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False))
    words = ("--config", path, "--images", "digits", "--limit", "360", "--out", tmp_path / "out")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["rows"] == json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert (result["cells"], result["pending"], result["failed"]) == (5, 0, [])
    copy = result["rows"][-1]
    assert (copy["attack"], copy["budget"], copy["pool"]) == ("cosine", 150, "half")
    assert 0.01 <= copy["p_value"]["value"] <= 1
    assert len(copy["contrasts"]["0"]) == 3
    assert copy["wsr"]["low"] == copy["wsr"]["value"] == copy["wsr"]["high"]
    for name in ("survival.png", "thefts.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "NaN" not in (tmp_path / "out/result.json").read_text()
    code, out, err = run(*words, "--resume")
    assert code == 0, err
    assert "survival.png" in out
    assert "steal" not in err
    assert run(*words)[0] == 2


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "thefs": {}}))
    code, out, err = run("--config", path, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "did you mean 'thefts'?" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
