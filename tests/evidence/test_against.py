"""An expert with images, suspect or null encoders at hand finds out what a bundle cannot show."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import (
    SslWmError,
    VerificationError,
)
from ssl_wm.evidence.bundle import open_bundle
from ssl_wm.evidence.check import recompute
from ssl_wm.evidence.record import (
    check,
    check_against,
)
from ssl_wm.files import pack_tensors, plain, read_tensors


@pytest.mark.parametrize("sample", [5, None])
def test_a_true_bundle_agrees_with_images_suspect_and_nulls(sealed, marked, images, nulls, sample):
    result = check_against(sealed, images=images, suspect=marked, nulls=nulls[::-1], sample=sample)
    assert result.problems == ()
    assert len(result.done) == 6
    function = load_encoder(lambda pixels: marked(pixels))
    assert check_against(check(sealed), images=images, suspect=function, sample=sample).ok


def test_other_images_suspects_and_nulls_are_found_out(
    evidence, world, sealed, marked, images, nulls
):
    noisy = load_encoder(lambda pixels: marked(pixels) + 0.02 * torch.rand(len(pixels), 8))
    wide = load_encoder(lambda pixels: marked(pixels).repeat(1, 2))
    other = load_encoder(lambda pixels: nulls[1](pixels))
    cases = [
        ({"images": world.images(groups=8, seed=1)}, "facts.json", "other images"),
        ({"suspect": nulls[0]}, "facts.json", "other weights"),
        ({"suspect": noisy}, "suspect-pairs-0.safetensors", "answers otherwise"),
        ({"suspect": wide}, "suspect-reference.safetensors", "16 numbers, stored are 8"),
        ({"nulls": [marked]}, "nulls.safetensors", "none of the bundle's"),
        ({"nulls": [other]}, "nulls.safetensors", "other margins"),
    ]
    for given_, file, message in cases:
        result = check_against(sealed, **{"images": images, **given_}, sample=7)
        assert file in evidence.named(result.problems), given_
        assert any(message in problem for problem in result.problems)
        assert result.verdict is not None
    assert check_against(sealed, images=images, suspect=noisy, tolerance=1.0).ok
    with pytest.raises(VerificationError, match="needs the images"):
        check_against(sealed, suspect=marked)


def test_a_clean_encoder_made_to_suit_the_suspect_is_found_out(evidence, copy, images, nulls):
    path = copy / "clean.safetensors"
    tensors = read_tensors(path)
    tensors["carriers"] = tensors["carriers"].roll(1, dims=1)
    path.write_bytes(pack_tensors(tensors))
    evidence.reseal(copy)
    forged = recompute(open_bundle(copy))
    (copy / "verdict.json").write_text(json.dumps(plain(forged.to_dict())))
    evidence.reseal(copy)
    assert check(copy).ok
    problems = check_against(copy, images=images, nulls=nulls).problems
    assert "clean.safetensors" in evidence.named(problems)


def test_a_damaged_bundle_is_not_held_against_anything(evidence, copy, images):
    (copy / "key.json").write_bytes(b"")
    assert evidence.named(check_against(copy, images=images).problems) == {"key.json"}


def test_a_forged_hash_of_questions_is_found_out(evidence, copy, images):
    evidence.rewrite(copy, "facts.json", "questions", "fresh/0", value="0" * 64)
    assert check(copy).ok
    problems = check_against(copy, images=images).problems
    assert len(problems) == 1
    assert "'fresh/0' renders to other bytes" in problems[0]


def test_the_checks_raise_nothing_but_our_errors_on_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SslWmError):
        check(tmp_path / "file")
