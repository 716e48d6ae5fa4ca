"""Folders for results: refused, resumed, overwritten, and never more than that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

from ssl_wm.commands.outputs import Out, first_difference
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.training import loop
from ssl_wm.watermark.keyfile import save_key
from ssl_wm.watermark.keygen import keygen

ROOT = Path(__file__).parents[2]
DIGITS = ("--images", "digits", "--limit", "100")
SMALL = """
pretrain: {arch: convnet-xs, fit: {epochs: 2, batch_size: 50, warmup_steps: 0}}
steal: {arch: convnet-xs, fit: {epochs: 2, batch_size: 50}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with an encoder ``clean``, a key ``owner.key`` and ``small.yaml``."""
    folder = tmp_path_factory.mktemp("made")
    save_encoder(build_encoder("convnet-xs", seed=1), folder / "clean")
    save_key(keygen(open_images("digits", limit=100), autoencoder_steps=0), folder / "owner.key")
    (folder / "small.yaml").write_text(SMALL)
    return folder


def stage(name: str, made: Path) -> list[object]:
    return {
        "pretrain": ["pretrain", "--arch", "convnet-xs", *DIGITS],
        "watermark": ["watermark", "--encoder", made / "clean", "--key", made / "owner.key",
                      *DIGITS],
        "steal": ["steal", "--victim", made / "clean", *DIGITS],
        "demo": ["demo"],
        "bench": ["bench", "--config", ROOT / "configs" / "demo.yaml"],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["pretrain", "watermark", "steal", "demo", "bench"])
def test_a_folder_that_is_not_empty_is_refused_and_left_alone(name, made, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    ran = run(*stage(name, made), "--out", tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    for words in (f"{tmp_path} is not empty", "--resume", "--overwrite"):
        assert words in ran.err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert "is a file" in run(*stage(name, made), "--out", tmp_path / "thesis.txt").err
    both = run(*stage(name, made), "--out", tmp_path, "--resume", "--overwrite")
    assert (both.code, "give one" in both.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["pretrain", "steal"])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_never_stopped(
    name, made, tmp_path, monkeypatch
):
    words = [*stage(name, made), "--config", made / "small.yaml", "--json"]
    save = loop.save_checkpoint

    def stop(folder, checkpoint):
        save(folder, checkpoint)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop)
        cut = run(*words, "--out", tmp_path / "a")
    assert (cut.code, cut.out) == (130, "")
    assert cut.err.splitlines()[-1] == (
        "ssl-wm: interrupted; run the same command with --resume to go on"
    )
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["command"] == name
    refused = run(*words, "--out", tmp_path / "a")
    assert (refused.code, refused.err.count("--resume")) == (2, 1)
    other = run(*words, "--out", tmp_path / "a", "--resume", "--epochs", "3")
    assert (other.code, "settings.fit.epochs was 2, now 3" in other.err) == (2, True)
    resumed = run(*words, "--out", tmp_path / "a", "--resume")
    whole = run(*words, "--out", tmp_path / "b")
    assert resumed.json["sha256"] == whole.json["sha256"]
    assert resumed.json["epochs"] == 2
    assert not (tmp_path / "a" / "training.ckpt").exists()


def test_a_finished_run_is_not_run_again(made, tmp_path):
    words = [*stage("steal", made), "--config", made / "small.yaml", "--json"]
    words += ["--out", tmp_path / "x"]
    first = run(*words)
    written = (tmp_path / "x" / "encoder.safetensors").stat().st_mtime_ns
    again = run(*words, "--resume")
    assert again.json["sha256"] == first.json["sha256"]
    assert again.json["queries"] == first.json["queries"]
    assert (tmp_path / "x" / "encoder.safetensors").stat().st_mtime_ns == written
    other = run(*words, "--victim", "convnet-xs?seed=5", "--resume")
    assert "inputs.victim was" in other.err
    other = run(*words, "--limit", "90", "--resume")
    assert "inputs.images was" in other.err


def test_overwriting_starts_over(made, tmp_path):
    words = [*stage("pretrain", made), "--config", made / "small.yaml", "--json"]
    words += ["--out", tmp_path / "x", "--epochs", "1"]
    one = run(*words)
    (tmp_path / "x" / "left.txt").touch()
    two = run(*words, "--seed", "1", "--overwrite")
    assert two.json["sha256"] != one.json["sha256"]
    assert not (tmp_path / "x" / "left.txt").exists()


def test_overwriting_never_throws_away_what_is_read_or_worked_in(made, monkeypatch):
    for out in (made / "clean", made):
        ran = run(*stage("watermark", made), "--out", out, "--overwrite")
        assert (ran.code, "would throw away" in ran.err) == (2, True)
    words = ("steal", "--victim", "convnet-xs", *DIGITS, "--overwrite")
    with monkeypatch.context() as patch:
        patch.chdir(made)
        ran = run(*words, "--out", ".")
        assert (ran.code, "would throw away" in ran.err) == (2, True)
    monkeypatch.setenv("HOME", str(made))
    ran = run(*words, "--out", made)
    assert (ran.code, "would throw away" in ran.err) == (2, True)
    assert (made / "clean" / "encoder.json").exists()
    assert (made / "owner.key").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("steal", "--victim", "convnet-zz"),
        ("steal", "--victim", "convnet-xs", "--arch", "convnet-zz"),
        ("steal", "--victim", "convnet-xs", "--attack", "cosin"),
        ("steal", "--victim", "convnet-xs", "--budget", "1000000"),
        ("pretrain", "--arch", "convnet-zz"),
        ("pretrain", "--arch", "convnet-xs", "--objective", "simclear"),
        ("watermark", "--encoder", "MADE/clean", "--key", "MADE/owner.key", "--method", "moove"),
    ],
)
def test_a_setting_that_cannot_work_throws_nothing_away(words, made, tmp_path):
    (tmp_path / "old").write_text("an earlier run")
    told = [word.replace("MADE", str(made)) for word in words]
    ran = run(*told, *DIGITS, "--out", tmp_path, "--overwrite")
    assert ran.code == 2, ran.err
    assert (tmp_path / "old").exists()


def test_a_key_is_never_written_over_unasked(made, tmp_path):
    before = (made / "owner.key").read_bytes()
    ran = run("keygen", *DIGITS, "--out", made / "owner.key")
    assert (ran.code, "exists already; add --overwrite" in ran.err) == (2, True)
    assert (made / "owner.key").read_bytes() == before
    (tmp_path / "my.key.commitment.json").touch()
    ran = run("keygen", *DIGITS, "--out", tmp_path / "my.key")
    assert (ran.code, "my.key.commitment.json exists already" in ran.err) == (2, True)


def test_a_place_that_cannot_be_written_is_told_at_once(made, tmp_path):
    (tmp_path / "file").touch()
    ran = run(*stage("steal", made), "--out", tmp_path / "file" / "x")
    assert (ran.code, ran.err.count("\n"), "cannot make --out" in ran.err) == (2, 1, True)


def test_only_the_first_of_several_processes_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    (tmp_path / "kept").touch()
    out = Out(tmp_path, overwrite=True)
    out.check()
    assert out.claim() == tmp_path
    assert (tmp_path / "kept").exists()
    with pytest.raises(SystemExit):
        out.keep(build_encoder("convnet-xs"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "run.a.b was [1, 2], now [1, 3]"),
        ({}, {"a": 1}, "run.a was None, now 1"),
        ({"a": 1}, {}, "run.a was 1, now None"),
        ("x", {"a": 1}, "run was x, now {'a': 1}"),
    ],
)
def test_the_first_difference_between_two_runs_is_named(before, now, told):
    assert first_difference(before, now, name="run") == told
