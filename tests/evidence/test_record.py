"""A sealed bundle holds what its verdict rests on, gives it again, and keeps the rest secret."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from pathlib import Path

import pytest
import torch

from ssl_wm.encoders.embeddings import fingerprint
from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import (
    ConfigError,
    EncoderError,
    KeyFileError,
    OutputError,
    VerificationError,
)
from ssl_wm.evidence.bundle import question_hash
from ssl_wm.evidence.record import (
    check,
    check_against,
    load,
    recording,
    seal,
    verify_with_evidence,
)
from ssl_wm.files import read_tensors
from ssl_wm.verification.questions import question_names, render
from ssl_wm.verification.verify import verify

KEPT = Path(__file__).parent.parent / "bundles"


# --- a whole bundle ----------------------------------------------------------------------------


def test_a_bundle_gives_the_verdict_that_verify_gives(evidence, sealed, marked, key, images, nulls):
    result = check(sealed)
    assert (result.ok, result.problems) == (True, ())
    expected = verify(marked, key=key, images=images, nulls=nulls, config=evidence.config)
    assert result.verdict.to_dict() == expected.to_dict()
    assert expected.decision == "detected"
    assert json.loads(json.dumps(result.to_dict()))["verdict"]["decision"] == "detected"
    bundle = load(sealed)
    assert bundle.facts["made_at"] == "2025-01-02T03:04:05+00:00"
    assert bundle.facts["suspect"] == expected.facts["suspect"]
    assert bundle.config == evidence.config


def test_the_seal_and_hashes_are_what_other_tools_compute(evidence, sealed):
    manifest = json.loads((evidence.folder / "manifest.json").read_text())
    stored = manifest.pop("seal")
    plain = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(plain).hexdigest() == stored == load(sealed).seal
    for name, entry in manifest["files"].items():
        data = (evidence.folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_each_set_of_images_is_hashed_as_it_was_asked(evidence, sealed, key, images):
    asked = load(sealed).facts["questions"]
    assert list(asked) == question_names(key, config=evidence.config.read)
    for name, digest in asked.items():
        whole = torch.cat(list(render(name, key, images, config=evidence.config.read)))
        assert (
            digest == fingerprint(whole) == question_hash(name, key, images, evidence.config.read)
        )


def test_nothing_of_the_secret_or_of_hidden_sub_keys_is_in_a_bundle(evidence, world, tmp_path):
    images = world.images(groups=9)
    key = world.key(images, number=5, sub_keys=3)
    folder = tmp_path / "bundle"
    verdict = verify_with_evidence(
        world.palette(images, key=key), key=key, images=images, nulls=[world.palette(images)],
        folder=folder, config=evidence.config, reveal=[1],
    )  # fmt: skip
    assert check(folder).ok
    assert [sub.index for sub in verdict.sub_keys] == [1]
    assert "times 3 ways" in verdict.test
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert key.leaves[1].secret.hex().encode() in content
    for secret in (key.secret, key.leaves[0].secret, key.leaves[2].secret):
        assert secret not in content
        assert secret.hex().encode() not in content
    again = tmp_path / "again"
    verify_with_evidence(
        world.palette(images, key=key), key=key.reveal([1]), images=images,
        nulls=[world.palette(images)], folder=again, config=evidence.config,
    )  # fmt: skip
    assert (again / "key.json").read_bytes() == (folder / "key.json").read_bytes()
    with pytest.raises(ConfigError, match="owner's key alone"):
        verify_with_evidence(
            world.convnet(), key=key.reveal([1]), images=images, nulls=[world.convnet()],
            folder=tmp_path / "other", config=evidence.config, reveal=[1],
        )  # fmt: skip


def test_the_suspect_is_sent_each_image_once(evidence, marked, key, images, nulls, tmp_path):
    for access in ("embeddings", "labels"):
        seen = []

        def answer(pixels, seen=seen):
            seen.append(len(pixels))
            return marked(pixels)

        verdict = verify_with_evidence(
            load_encoder(answer), key=key, images=images, nulls=nulls, folder=tmp_path / access,
            config=evidence.config.model_copy(update={"access": access}),
        )  # fmt: skip
        assert sum(seen) == verdict.facts["queries"]
        assert verdict.facts["suspect"] is None
        assert check(tmp_path / access).ok


def test_a_suspect_that_gives_labels_only_is_recorded_as_labels(
    evidence, marked, key, images, nulls, tmp_path
):
    def label(pixels):
        return torch.nn.functional.one_hot(marked(pixels).argmax(dim=1), 8).float()

    config = evidence.config.model_copy(update={"access": "labels"})
    verdict = verify_with_evidence(
        load_encoder(label), key=key, images=images, nulls=nulls, folder=tmp_path / "b",
        config=config,
    )  # fmt: skip
    expected = verify(marked, key=key, images=images, nulls=nulls, config=config)
    assert verdict.p_value == expected.p_value
    for name in question_names(key, config=evidence.config.read):
        assert set(load(tmp_path / "b").answer(name).unique().tolist()) <= {0.0, 1.0}
    result = check_against(
        tmp_path / "b", images=images, suspect=load_encoder(label), nulls=nulls, sample=6
    )
    assert result.problems == ()


def test_answers_are_recorded_once_and_none_is_kept_in_memory(tmp_path):
    asked, kept = [], []

    def answers(name):
        asked.append(name)
        z = torch.rand(5, 3)
        kept.append(weakref.ref(z))
        return z

    record = recording(answers, tmp_path)
    first, second = record("pairs/0"), record("fresh/0")
    assert torch.equal(record("pairs/0"), first)
    assert torch.equal(record("fresh/0"), second)
    assert asked == ["pairs/0", "fresh/0"]
    stored = read_tensors(tmp_path / "suspect-pairs-0.safetensors")["answers"]
    assert torch.equal(stored, first)
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


# --- what cannot be sealed ---------------------------------------------------------------------


def test_a_run_that_fails_leaves_no_answers(evidence, marked, key, images, nulls, tmp_path):
    calls = []

    def answer(pixels):
        calls.append(len(pixels))
        return torch.full((len(pixels), 8), torch.nan) if len(calls) > 1 else marked(pixels)

    with pytest.raises(EncoderError, match="not finite"):
        verify_with_evidence(
            load_encoder(answer), key=key, images=images, nulls=nulls, folder=tmp_path / "b",
            config=evidence.config,
        )  # fmt: skip
    assert len(calls) > 1
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "nulls", "images", "sub-key"])
def test_bad_input_is_refused_before_the_suspect_is_asked(
    evidence, world, key, images, nulls, tmp_path, what
):
    def answer(pixels):
        raise AssertionError("asked")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("x")
    changed = {
        "folder": ({"folder": tmp_path / "full"}, OutputError, "not empty"),
        "nulls": ({"nulls": []}, VerificationError, "at least one null"),
        "images": ({"images": world.images(groups=8, seed=1)}, KeyFileError, "other images"),
        "sub-key": ({"reveal": [7]}, ConfigError, "sub-keys 0 to 0"),
    }
    change, error, message = changed[what]
    given = {"key": key, "images": images, "nulls": nulls, "folder": tmp_path / "b", **change}
    with pytest.raises(error, match=message):
        verify_with_evidence(load_encoder(answer), config=evidence.config, **given)
    assert not (tmp_path / "b").exists()


def test_a_bundle_is_sealed_once_and_only_around_its_answers(copy, sealed):
    bundle = load(sealed)
    parts = {
        "verdict": check(sealed).verdict, "key": bundle.key, "config": bundle.config,
        "nulls": bundle.nulls, "facts": bundle.facts, "base": bundle.base,
    }  # fmt: skip
    with pytest.raises(OutputError, match="not empty"):
        seal(copy, **parts)
    for path in copy.iterdir():
        if not path.name.startswith("suspect-"):
            path.unlink()
    assert seal(copy, **parts) == bundle.seal
    (copy / "suspect-fresh-0.safetensors").unlink()
    for name in ("manifest", "verdict", "key", "settings", "facts"):
        (copy / f"{name}.json").unlink()
    for name in ("nulls", "clean"):
        (copy / f"{name}.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"suspect-fresh-0\.safetensors are missing"):
        seal(copy, **parts)
    assert not (copy / "manifest.json").exists()


# --- for ever ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "space", "counted", "sealed_as", "p_value"),
    [
        (
            "v1", "plain", 0,
            "c3f37b8ffee60de312bf4747a2ef91f9a01b80b9630aa8e1f04197804b3deea9", 0.0018,
        ),
        (
            "v1-evened-fitted", "evened", 0,
            "b978c16faff7ec7587d40b42efde384ae04163f7526b1b20597344933a50cf82", 0.0003,
        ),
        (
            "v2", "evened", 20_000_000,
            "249f46544f99e02fc6a47887f80f4ee56fed2f6d01a858948282b6c5b6a86561", 15 / 60_480,
        ),
        (
            "v3", "evened", 20_000_000,
            "35e55ccd53061dfaa18b780474ba135fe973e23bd4e51a110f8afbf10ac4ff8d", 0.005411405385,
        ),
        (
            "v4", "evened", 20_000_000,
            "f5f5f5d7f10c9972d4d88484cdd6ef855f21e1b4bbcd5ab5370df6ced07cb936", 0.005578048612,
        ),
    ],
)  # fmt: skip
def test_a_kept_bundle_verifies_for_ever(world, name, space, counted, sealed_as, p_value):
    result = check(KEPT / name)
    assert result.problems == ()
    assert result.bundle.seal == sealed_as
    assert (result.bundle.config.read.space, result.bundle.config.counted) == (space, counted)
    assert result.verdict.decision == result.stored["decision"] == "detected"
    assert result.verdict.p_value == pytest.approx(p_value)
    assert [sub.index for sub in result.verdict.sub_keys] == [0, 2]
    images = world.images(groups=9)
    clean = world.convnet() if name == "v4" else world.palette(images)
    assert check_against(result, images=images, nulls=[clean]).problems == ()
