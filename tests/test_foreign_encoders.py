"""Encoders that others built go through watermark, theft and verification like our own."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from ssl_wm.cli import main
from ssl_wm.encoders.load import load_encoder, read_facts
from ssl_wm.verification.verdict import EXIT_CODES

SMALL = """
images: {spec: digits, limit: 100}
key: {groups: labels, sub_keys: 1, autoencoder_steps: 0}
watermark:
  options: {serve: weights, steps: 3, hidden: 16, pool: 20}
  fit: {epochs: 1, batch_size: 50}
steal: {arch: convnet-xs, fit: {epochs: 1, batch_size: 50}}
verify: {draws: 99, read: {per_pair: 8, reference: 10, trigger_count: 16}}
"""


def plain_state_dict(folder: Path) -> str:
    """Save what ``DistributedDataParallel`` training leaves: names that begin with module."""
    state = load_encoder("convnet-s?seed=4").backbone.state_dict()
    path = folder / "checkpoint.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    return f"{path}?arch=convnet-s"


ENCODERS = {
    "timm": lambda _: "timm/resnet10t?random&size=32",
    "torchvision": lambda _: "torchvision/shufflenet_v2_x0_5?seed=2&size=32",
    "state_dict": plain_state_dict,
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """Return a folder with ``small.yaml`` and a key for its images, ``owner.key``."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "small.yaml").write_text(SMALL)
    call("keygen", "--out", folder / "owner.key", "--config", folder / "small.yaml")
    return folder


def call(*words: object) -> tuple[dict, int]:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main([*(str(word) for word in words), "--json"])
    assert out.getvalue(), err.getvalue()
    return json.loads(out.getvalue()), ended.value.code


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_foreign_encoder_goes_through_watermark_theft_and_verification(kind, desk, tmp_path):
    spec = ENCODERS[kind](tmp_path)
    config = ("--config", desk / "small.yaml")
    key, marked, stolen = desk / "owner.key", tmp_path / "marked", tmp_path / "stolen"
    told, code = call("watermark", "--encoder", spec, "--key", key, "--out", marked, *config)
    assert code == 0
    clean = load_encoder(spec)
    facts = read_facts(marked)
    assert (facts.arch, facts.width) == (clean.arch, told["width"])
    assert facts.preprocessing == clean.preprocessing
    again = load_encoder(marked).backbone.state_dict()
    before = clean.backbone.state_dict()
    assert any(not torch.equal(again[name], before[name]) for name in before)
    for name, value in before.items():
        if "running_" in name:
            assert torch.equal(again[name], value), f"{name} moved: statistics must stay frozen"

    told, code = call("steal", "--victim", marked, "--out", stolen, *config)
    assert code == 0
    assert told["queries"] == {"unique": 100, "repeated": 0, "billed": 100}
    assert told["width"] == facts.width
    assert load_encoder(stolen).arch.startswith("convnet-xs")

    for suspect in (marked, stolen):
        words = ("--key", key, "--suspect", suspect, "--null", spec, *config)
        verdict, code = call("verify", *words)
        assert code == EXIT_CODES[verdict["decision"]]
        assert 0 < verdict["p_value"] <= 1
        assert verdict["sub_keys"][0]["decoys"] == 720
