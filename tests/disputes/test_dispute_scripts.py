"""The scripts of the two attacks run from files to result.json."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.watermark.keyfile import save_key
from ssl_wm.watermark.keygen import keygen

SCRIPTS = Path(__file__).parents[2] / "scripts"
IMAGES = ["--images", "digits", "--limit", "200", "--size", "8"]


def call(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    path = SCRIPTS / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    return ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two encoders with random weights, two keys, and settings that ask for little."""
    from ssl_wm.data.sources import open_images

    place = tmp_path_factory.mktemp("disputes")
    for number, name in enumerate(("suspect", "clean")):
        save_encoder(load_encoder(f"convnet-xs?seed={number}"), place / name)
    images = open_images("digits", size=8, limit=200)
    for name in ("owner", "rival"):
        save_key(keygen(images, sub_keys=1, autoencoder_steps=0), place / f"{name}.key")
    read = {"per_pair": 8, "recipes": 0, "reference": 20, "trigger_count": 20}
    claim = {
        "beacons": 2, "redraws": 10, "keys": 3, "shortlist": 1, "read": read,
        "craft": {"steps": 2, "count": 8},
    }  # fmt: skip
    fit = {"batch_size": 64, "warmup_steps": 1}
    (place / "claim.yaml").write_text(json.dumps(claim))
    mark = {"options": {"steps": 20}, "fit": fit}
    settings = {"verify": {"draws": 99, "read": read}, "watermark": mark}
    (place / "settings.yaml").write_text(json.dumps(settings))
    return place


def test_false_claim_writes_what_it_prints(folder, monkeypatch, capsys):
    arguments = [
        "--suspect", str(folder / "suspect"), "--null", str(folder / "clean"), *IMAGES,
        "--sub-keys", "1", "--config", str(folder / "claim.yaml"), "--beacons", "3",
        "--out", str(folder / "claim.json"), "--json",
    ]  # fmt: skip
    assert call("false_claim", arguments, monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "claim.json").read_text())
    assert printed["grinding"]["with_beacon"]["draws"] == 3  # a flag overrides the file
    assert call("false_claim", arguments, monkeypatch) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("embed", [False, True])
def test_ambiguity_writes_what_it_prints(folder, monkeypatch, capsys, embed):
    out = folder / f"ambiguity-{embed}.json"
    arguments = [
        "--owner-model", str(folder / "suspect"), "--disputed", str(folder / "suspect"),
        "--owner-key", str(folder / "owner.key"), "--rival-key", str(folder / "rival.key"),
        "--owner-null", str(folder / "clean"), "--rival-null", str(folder / "clean"), *IMAGES,
        "--owner-date", "2025-01-01", "--rival-date", "2025-01-02",
        "--config", str(folder / "settings.yaml"), "--out", str(out), "--json",
        *(["--embed", "1"] if embed else []),
    ]  # fmt: skip
    assert call("ambiguity", arguments, monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["order"] == "the owner committed first"
    verdicts = printed["verdicts"]
    same = (
        verdicts["owner in owner_model"]["facts"]["suspect"]
        == verdicts["owner in disputed"]["facts"]["suspect"]
    )
    assert same != embed


@pytest.mark.parametrize("name", ["false_claim", "ambiguity"])
def test_each_script_tells_how_it_is_called_and_refuses_what_it_does_not_know(
    name, monkeypatch, capsys
):
    text = (SCRIPTS / f"{name}.py").read_text()
    assert f"python scripts/{name}.py --" in text
    assert len(text.splitlines()) <= 80
    assert call(name, ["--help"], monkeypatch) == 0
    assert "--json" in capsys.readouterr().out
    assert call(name, ["--no-such-flag"], monkeypatch) == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_a_wrong_setting_is_one_line(folder, monkeypatch, capsys):
    (folder / "wrong.yaml").write_text("beacon: 3")
    arguments = [
        "--suspect", str(folder / "suspect"), "--null", str(folder / "clean"), *IMAGES,
        "--config", str(folder / "wrong.yaml"),
    ]  # fmt: skip
    assert call("false_claim", arguments, monkeypatch) == 2
    assert "unknown setting 'beacon'; did you mean 'beacons'?" in capsys.readouterr().err
