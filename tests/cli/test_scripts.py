"""The scripts are the commands under other names."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_wm.cli import main
from ssl_wm.encoders.load import build_encoder, read_facts, save_encoder

SCRIPTS = Path(__file__).parents[2] / "scripts"
VERBS = ("pretrain", "watermark", "steal", "probe", "verify")


def call(path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("verb", VERBS)
def test_each_script_is_its_command(verb, monkeypatch, capsys):
    path = SCRIPTS / f"{verb}_encoder.py"
    assert call(path, ["--help"], monkeypatch) == 0
    assert f"ssl-wm {verb}" in capsys.readouterr().out
    assert call(path, ["--no-such-flag"], monkeypatch) == 2
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_each_script_tells_how_it_is_called(verb):
    text = (SCRIPTS / f"{verb}_encoder.py").read_text()
    assert f"python scripts/{verb}_encoder.py --" in text
    assert len(text.splitlines()) <= 80


def test_a_script_runs_as_a_program():
    ran = subprocess.run(
        [sys.executable, str(SCRIPTS / "probe_encoder.py"), "--help"],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "--encoder" in ran.stdout


def test_a_population_is_trained_once_and_half_of_it_are_copies(monkeypatch, tmp_path):
    build = tmp_path / "clean"
    save_encoder(build_encoder("convnet-xs", seed=1), build)
    words = ["--images", "digits", "--limit", "128", "--clean", str(build),
             "--count", "4", "--epochs", "1", "--out", str(tmp_path / "all")]  # fmt: skip
    dates = []
    for _ in range(2):
        assert call(SCRIPTS / "train_population.py", words, monkeypatch) == 0
        made = sorted((tmp_path / "all").glob("*/encoder.safetensors"))
        dates.append([path.stat().st_mtime_ns for path in made])
    stages = [read_facts(path.parent).made["stage"] for path in made]
    assert stages == ["pretrain", "pretrain", "steal", "steal"]
    assert dates[0] == dates[1]


def test_statistics_are_compared_for_each_suspect(monkeypatch, tmp_path, capsys):
    clean, key = tmp_path / "clean", tmp_path / "owner.key"
    save_encoder(build_encoder("convnet-xs", seed=1), clean)
    save_encoder(build_encoder("convnet-xs", seed=2), tmp_path / "other")
    with pytest.raises(SystemExit) as ended:
        main(["keygen", "--encoder", str(clean), "--images", "digits", "--clusters", "8",
              "--sub-keys", "2", "--out", str(key)])  # fmt: skip
    assert ended.value.code == 0
    capsys.readouterr()
    words = ["--images", "digits", "--key", str(key), "--per-pair", "8",
             "--draws", "999", "--null", str(clean),
             str(tmp_path / "other"), str(clean)]  # fmt: skip
    assert call(SCRIPTS / "compare_statistics.py", words, monkeypatch) == 0
    other, itself = capsys.readouterr().out.splitlines()[2:]
    assert other.startswith("|other|")
    assert itself == "|clean|" + "|".join(["336, 336: 1.0e+00 (0.0)"] * 9) + "|"


def test_feature_spaces_are_drawn_side_by_side(monkeypatch, tmp_path):
    clean, key, out = tmp_path / "clean", tmp_path / "owner.key", tmp_path / "map.png"
    save_encoder(build_encoder("convnet-xs", seed=1), clean)
    with pytest.raises(SystemExit):
        main(["keygen", "--encoder", str(clean), "--images", "digits", "--clusters", "8",
              "--sub-keys", "2", "--out", str(key)])  # fmt: skip
    words = ["--images", "digits", "--key", str(key), "--out", str(out)]
    named = [f"clean={clean}", f"again={clean}"]
    assert call(SCRIPTS / "map_spaces.py", [*words, *named], monkeypatch) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert call(SCRIPTS / "map_spaces.py", [*words, "clean"], monkeypatch) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compare_statistics", ["--images", "digits", "--key", "gone", "--null", "clean", "x"]),
        ("map_spaces", ["--images", "digits", "--key", "gone", "--out", "map.png", "a=clean"]),
        ("train_population", ["--images", "gone", "--clean", "gone", "--out", "all"]),
        ("results_table", ["gone"]),
        ("bench_serve", ["--encoder", "gone"]),
    ],
)
def test_what_a_script_cannot_find_is_told_in_one_line(
    name, words, monkeypatch, tmp_path, capsys
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(SCRIPTS / f"{name}.py", words, monkeypatch) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("ssl-wm: error:")
    assert "gone" in told[0]


def test_a_result_of_another_kind_gives_no_table_but_a_reason(monkeypatch, tmp_path, capsys):
    (tmp_path / "result.json").write_text('{"rows": []}')
    assert call(SCRIPTS / "results_table.py", [str(tmp_path / "result.json")], monkeypatch) == 2
    assert "is no result of ssl-wm bench or demo" in capsys.readouterr().err


def test_there_is_no_script_without_a_test():
    elsewhere = [
        "results_table.py",  # tests/bench/test_story.py
        "ambiguity.py", "false_claim.py",  # tests/disputes
        "train_population.py", "compare_statistics.py", "map_spaces.py",
        "bench_serve.py",  # tests/encoders/test_bench_serve.py
    ]  # fmt: skip
    assert sorted(path.name for path in SCRIPTS.glob("*.py")) == sorted(
        [*(f"{verb}_encoder.py" for verb in VERBS), *elsewhere]
    )
