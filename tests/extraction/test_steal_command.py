"""``ssl-wm steal``: the price comes first, a dry run sends nothing, the options reach the theft."""

from __future__ import annotations

import json

import pytest

from ssl_wm.cli import main
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.extraction import steal as theft


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "steal.yaml"
    path.write_text("steal: {arch: convnet-xs, fit: {epochs: 1, batch_size: 32}}\n")
    return path


@pytest.fixture
def run(capsys):
    def call(*words: object):
        with pytest.raises(SystemExit) as ended:
            main(["steal", *map(str, words), "--json"])
        told = capsys.readouterr()
        return ended.value.code, json.loads(told.out) if told.out else None, told.err

    return call


COMMON = ("--images", "digits", "--size", "16", "--limit", "100", "--victim", "convnet-xs")


def test_a_dry_run_tells_the_price_and_does_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(theft, "query", None)
    out = tmp_path / "out"
    code, told, _ = run(
        *COMMON, "--out", out, "--attack", "rda", "--budget", 50, "--price", 4, "--rate", 100,
        "--dry-run",
    )  # fmt: skip
    assert code == 0
    assert told["quote"] == {
        "images": 50, "unique": 500, "repeated": 0, "billed": 500, "price_per_1000": 4.0,
        "cost": 2.0, "rate": 100.0, "seconds": 5.0,
    }  # fmt: skip
    assert not out.exists()


def test_the_price_is_told_before_anything_is_sent(run, config, tmp_path, monkeypatch):
    real = theft.query

    def stops(*_args: object, **_names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(theft, "query", stops)
    words = (*COMMON, "--config", config, "--out", tmp_path / "out", "--budget", 40)
    code, _, err = run(*words, "--repeats", 3, "--price", 10, "--rate", 60)
    assert code == 130
    assert "120 images will be sent, 80 of them again, price 1.2, at least 2 s" in err
    monkeypatch.setattr(theft, "query", real)
    code, told, _ = run(*words, "--repeats", 3, "--price", 10, "--resume")
    assert code == 0
    assert told["queries"] == {"unique": 40, "repeated": 80, "billed": 120, "cost": 1.2}


def test_every_option_reaches_the_theft(run, tmp_path):
    start = tmp_path / "start"
    save_encoder(load_encoder("convnet-xs?seed=4"), start)
    plain = tmp_path / "plain.yaml"
    plain.write_text("steal: {held_out: 0.2, fit: {batch_size: 32}}\n")
    code, told, _ = run(
        *COMMON, "--config", plain, "--out", tmp_path / "out", "--budget", 40, "--attack", "hybrid",
        "--selection", "k-centre", "--start", start, "--denoise", "--keep", "best", "--epochs", 2,
    )  # fmt: skip
    assert code == 0
    assert told["arch"] == "convnet-xs"
    made = load_encoder(tmp_path / "out").made["config"]
    assert {name: made[name] for name in ("attack", "selection", "start", "denoise", "keep")} == {
        "attack": "hybrid", "selection": "k-centre", "start": str(start), "denoise": True,
        "keep": "best",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--selection", "k-center"), "did you mean 'k-centre'"),
        (("--price", "-1"), "price of 1,000 images"),
        (("--rate", "0"), "more than 0 images a second"),
        (("--keep", "first"), "steal.keep"),
        (("--attack", "rda", "--repeats", "2"), "nothing to repeat"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_bad_options_are_told_in_one_line_and_leave_nothing(run, words, says, dry, tmp_path):
    code, told, err = run(*COMMON, "--out", tmp_path / "out", *words, *dry)
    assert (code, told) == (2, None)
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not [*tmp_path.glob("out/*")]
