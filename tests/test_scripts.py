"""The scripts are the commands under other names."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
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


def test_there_is_no_script_without_a_test():
    elsewhere = ["results_table.py"]  # tests/test_benchmark.py
    assert sorted(path.name for path in SCRIPTS.glob("*.py")) == sorted(
        [*(f"{verb}_encoder.py" for verb in VERBS), *elsewhere]
    )
