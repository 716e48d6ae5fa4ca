"""The commands: the whole story through them, what they print, and how they end."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from command_line import Ran, run
from rich.text import Text

from ssl_wm.cli import terminal
from ssl_wm.commands import claims as claim_commands
from ssl_wm.commands import stages as commands
from ssl_wm.encoders.saved import read_facts
from ssl_wm.extraction.steal import ATTACKS
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.training.objectives import OBJECTIVES
from ssl_wm.verification.verdict import EXIT_CODES
from ssl_wm.watermark.embed import EMBEDDERS

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "pretrain", "keygen", "watermark", "steal", "remove", "probe", "verify", "demo", "bench",
)  # fmt: skip
SMALL = """
images: {spec: digits, limit: 120}
pretrain: {arch: convnet-xs, fit: {epochs: 1, batch_size: 60, warmup_steps: 0}}
key: {autoencoder_steps: 2, clusters: 4}
watermark: {options: {steps: 20}, fit: {epochs: 1, batch_size: 60}}
steal: {arch: convnet-xs, fit: {epochs: 1, batch_size: 60}}
verify: {draws: 99, read: {per_pair: 8, reference: 20, trigger_count: 16}}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def story(tmp_path_factory, small) -> tuple[Path, dict[str, Ran]]:
    """Return a folder with the whole story in it, and how each command went."""
    at = tmp_path_factory.mktemp("story")
    clean, marked, stolen, key = at / "clean", at / "marked", at / "stolen", at / "owner.key"
    told = ["--config", small, "--json"]
    ran = {
        "pretrain": run("pretrain", "--out", clean, *told),
        "keygen": run("keygen", "--encoder", clean, "--out", key, *told),
        "watermark": run("watermark", "--encoder", clean, "--key", key, "--out", marked, *told),
        "steal": run("steal", "--victim", marked, "--out", stolen, "--budget", "100", *told),
        "probe": run("probe", "--encoder", stolen, *told),
        "verify": run("verify", "--key", key, "--suspect", stolen, "--null", clean, *told),
    }
    return at, ran


def test_the_whole_story_runs_through_the_commands(story):
    at, ran = story
    for name in ("pretrain", "keygen", "watermark", "steal", "probe"):
        assert ran[name].code == 0, ran[name].err
        assert "Traceback" not in ran[name].err
    for name, folder in (("pretrain", "clean"), ("watermark", "marked"), ("steal", "stolen")):
        told = ran[name].json
        assert told["out"] == str(at / folder)
        assert told["seconds"] > 0
        trained = name != "watermark"  # the default method fits its map and trains nothing
        assert told["metrics"].get("epoch", 0) == told["epochs"] == trained
        assert told["sha256"] == read_facts(at / folder).sha256
    assert "'fit' had no effect" in ran["watermark"].err
    verdict = ran["verify"].json
    assert ran["verify"].code == EXIT_CODES[verdict["decision"]]
    assert 0 < verdict["p_value"] <= 1
    assert len(verdict["sub_keys"]) == 1
    assert {"linear", "knn"} == set(verdict["sub_keys"][0]["readers"])
    assert set(ran["probe"].json) == {"linear", "knn"}
    assert ran["probe"].json["linear"] > 0.3


def test_each_folder_keeps_encoder_metrics_and_settings_and_no_checkpoint(story):
    at, _ = story
    for name in ("clean", "marked", "stolen"):
        kept = {path.name for path in (at / name).iterdir()}
        assert {"encoder.safetensors", "encoder.json", "settings.json"} <= kept
        assert ("metrics.jsonl" in kept) == (name != "marked")
        assert ("map.jsonl" in kept) == (name == "marked")
        assert "training.ckpt" not in kept
        settings = json.loads((at / name / "settings.json").read_text())
        assert settings["settings"]["fit"]["batch_size"] == 60
        assert {"ssl_wm", "torch", "python", "device"} <= set(settings["versions"])
        assert settings["images"]["train"] == 120
    assert {"transfer.safetensors", "ledger.json"} <= {p.name for p in (at / "stolen").iterdir()}
    assert json.loads((at / "stolen" / "ledger.json").read_text())["calls"]["billed"] == 100


def test_the_key_is_secret_and_its_commitment_public(story):
    at, ran = story
    key = at / "owner.key"
    assert key.stat().st_mode & 0o777 == 0o600
    secret = json.loads(key.read_text())["secret"]
    public = (at / "owner.key.commitment.json").read_text()
    assert ran["keygen"].json["commitment"] in public
    for text in (public, ran["keygen"].out, ran["keygen"].err, ran["watermark"].out):
        assert secret not in text
    assert ran["keygen"].json["groups"] == "clusters"


def test_a_person_reads_the_verdict_in_a_table_and_a_last_line(story, small):
    at, ran = story
    words = ("--key", at / "owner.key", "--suspect", at / "stolen", "--config", small)
    told = run("verify", *words, "--null", at / "clean", "--null", "convnet-xs?seed=9")
    lines = [line for line in told.out.splitlines() if line.strip()]
    assert "sub-key 1" in told.out
    word, rest = lines[-1].split(" p = ")
    assert word in ("DETECTED", "NOT DETECTED", "INCONCLUSIVE")
    assert rest.endswith("alpha = 0.01")
    told = run("probe", "--encoder", at / "stolen", "--config", small)
    assert told.out.startswith(f"linear: {100 * ran['probe'].json['linear']:.1f} %\nknn: ")


def test_groups_come_from_labels_or_clusters_as_asked(story, small, tmp_path):
    clean = story[0] / "clean"
    told = ["--images", "digits", "--limit", "120", "--json"]
    steps = tmp_path / "steps.yaml"
    steps.write_text("key: {autoencoder_steps: 0}")
    told += ["--config", steps]
    cases = [
        ([], "labels", 10), (["--labels", "--encoder", clean], "labels", 10),
        (["--encoder", clean, "--clusters", "3"], "clusters", 3),
        (["--no-labels", "--encoder", clean, "--clusters", "4", "--sub-keys", "1"], "clusters", 4),
    ]  # fmt: skip
    for number, (words, kind, count) in enumerate(cases):
        ran = run("keygen", *words, "--out", tmp_path / f"{number}.key", *told)
        assert ran.code == 0, ran.err
        assert (ran.json["groups"], ran.json["group_count"]) == (kind, count)
    ran = run("keygen", "--no-labels", "--out", tmp_path / "x.key", *told)
    assert (ran.code, "--encoder" in ran.err) == (2, True)
    ran = run("keygen", "--clusters", "5", "--out", tmp_path / "x.key", *told)
    assert (ran.code, "--encoder" in ran.err) == (2, True)
    assert not (tmp_path / "x.key").exists()


def test_the_demo_prints_and_keeps_the_result(tmp_path, monkeypatch):
    part = {"margin": 0.5, "null_margin": 0.1, "statistic": 0.4, "p_value": 0.001, "rank": 1,
            "decoys": 1000, "readers": {}}  # fmt: skip
    verdict = {"decision": "detected", "p_value": 0.001, "alpha": 0.01, "wsr": 0.9, "wfpr": 0.01,
               "reason": "because", "sub_keys": [part]}  # fmt: skip
    result = {"utility": {"clean": {"linear": 0.9, "knn": 0.8}}, "verdicts": {"stolen": verdict},
              "seconds": {}}  # fmt: skip
    seen = []

    def fake(config, *, out):
        seen.append((config.seed, config.images.limit, out))
        print("a library speaks")
        return result

    monkeypatch.setattr(commands, "run_benchmark", fake)
    told = run("demo", "--out", tmp_path / "d", "--seed", "3", "--limit", "50", "--json")
    assert told.code == 0, told.err
    assert seen == [(3, 50, tmp_path / "d")]
    assert told.json["verdicts"] == {"stolen": verdict}
    assert told.json["report"] == str(tmp_path / "d" / "report.html")
    assert "a library speaks" in told.err
    demo = ROOT / "configs" / "demo.yaml"
    told = run("bench", "--config", demo, "--out", tmp_path / "e")
    assert "stolen: DETECTED, p = 0.001" in told.out
    assert told.out.splitlines()[-1] == f"report: {tmp_path / 'e' / 'report.html'}"


@pytest.mark.parametrize(("decision", "code"), EXIT_CODES.items())
def test_verify_exits_with_its_decision(decision, code, monkeypatch):
    verdict = {"decision": decision, "p_value": 0.5, "alpha": 0.01, "sub_keys": [], "wsr": 0.1,
               "wfpr": 0.1, "reason": "because", "tests": []}  # fmt: skip
    monkeypatch.setattr(claim_commands, "verify", lambda *args, **kwargs: verdict)
    words = ("verify", "--key", "k", "--suspect", "s", "--null", "n", "--images", "digits")
    assert (run(*words, "--json").json, run(*words).code) == (verdict, code)
    assert code == {"detected": 0, "not_detected": 1, "inconclusive": 2}[decision]


@pytest.mark.parametrize("command", [*COMMANDS, "version"])
def test_help_shows_every_flag_and_an_example(command):
    ran = run(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    flags = {"--json"} if command == "version" else {"--json", "--images", "--config", "--limit"}
    if command not in ("probe", "verify", "version"):
        flags |= {"--out", "--overwrite"} | (set() if command == "keygen" else {"--resume"})
    for flag in flags:
        assert flag in ran.out
    assert f"Example: ssl-wm {command}" in ran.out


def test_help_names_what_can_be_chosen():
    flat = " ".join(Text.from_markup(run("steal", "--help").out).plain.replace("│", " ").split())
    assert all(name in flat for name in ATTACKS)
    flat = " ".join(run("remove", "--help").out.replace("│", " ").split())
    for name, entry in REMOVALS.items():
        assert bool(re.search(rf" {name}[,.]", flat)) != entry.wraps, name
    flat = " ".join(run("pretrain", "--help").out.replace("│", " ").split())
    assert all(name in flat for name in OBJECTIVES)
    flat = " ".join(run("watermark", "--help").out.replace("│", " ").split())
    assert all(name in flat for name in EMBEDDERS)


def test_the_first_screen_lists_the_commands():
    ran = run()
    assert ran.code == 2
    assert all(command in ran.out for command in COMMANDS)
    assert run("--help").code == 0


def test_versions_are_told():
    assert run("--version").out == "ssl-wm 0.1.0\n"
    assert run("version", "--json").json["torch"] == str(torch.__version__)
    assert run("version").out.startswith("ssl_wm: 0.1.0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["probe"], "Missing option '--encoder' (see ssl-wm probe --help)"),
        (["steel"], "No such command 'steel'"),
        (["probe", "--encodr", "x"], "--encodr"),
        (["pretrain", "--epochs", "few", "--out", "x"], "'--epochs'"),
        (["demo"], "--out"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(words, told):
    ran = run(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("ssl-wm: error: ")
    assert told in ran.err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "out/x"), "No space left on device: out/x"),
        (PermissionError(13, "Permission denied", "out"), "Permission denied: out"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_full_disk_is_one_line(error, told, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(commands, "probe", fail)
    ran = run("probe", "--encoder", "x", "--images", "digits")
    assert (ran.code, ran.out, ran.err) == (2, "", f"ssl-wm: error: {told}\n")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(commands, "probe", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("probe", "--encoder", "x", "--images", "digits")


def test_our_warnings_are_lines_and_the_libraries_are_silent(monkeypatch):
    def warn(*args, **kwargs):
        logging.getLogger("ssl_wm.data").warning("two files\nare odd")
        logging.getLogger("ssl_wm.data").info("nobody needs this")
        warnings.showwarning("noise", UserWarning, "library.py", 1)
        return {"linear": float("nan"), "knn": 0.5}

    monkeypatch.setattr(commands, "probe", warn)
    monkeypatch.setattr(sys, "warnoptions", [])
    ran = run("probe", "--encoder", "x", "--images", "digits", "--json")
    assert ran.err == "ssl-wm: warning: two files are odd\n"
    assert ran.json == {"linear": None, "knn": 0.5}
    assert not any(isinstance(h, terminal._OneLine) for h in logging.getLogger("ssl_wm").handlers)


def test_what_to_do_after_an_interruption_depends_on_the_command():
    told = terminal.interrupted(["demo", "--out", "x", "--overwrite"])
    assert "--resume instead of --overwrite" in told
    assert terminal.interrupted(["probe", "--encoder", "x"]).endswith("nothing was written")
    assert terminal.interrupted(["keygen", "--out", "x"]).endswith("nothing was written")


def test_a_real_interrupt_ends_with_130(tmp_path, small):
    words = ("pretrain", "--config", small, "--epochs", "100000", "--out", tmp_path / "x")
    started = subprocess.Popen(
        [sys.executable, "-m", "ssl_wm", *map(str, words)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "x" / "training.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    told = started.communicate(timeout=60)[1]
    assert started.returncode == 130, told
    assert told.splitlines()[-1].endswith("run the same command with --resume to go on")
    assert "Traceback" not in told
