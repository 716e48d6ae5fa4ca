"""The page of a bundle says what its answers give, what that means, and what it does not."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from html_page import Page

from ssl_wm.errors import VerificationError
from ssl_wm.evidence.record import check, verify_with_evidence
from ssl_wm.report import Gallery
from ssl_wm.report.evidence import recipe_text, render_evidence
from ssl_wm.report.words import DECISIONS, p_text
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.watermark.mixers import CropPaste, PixelMerge, Stripes

KEPT = Path(__file__).parent.parent / "bundles" / "v1"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&\u202e'


@pytest.fixture(scope="module")
def result():
    return check(KEPT)


@pytest.fixture(scope="module")
def html(result) -> str:
    return render_evidence(result)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def bundle(world, tmp_path_factory):
    """A bundle with odd group names, without a beacon, on an innocent suspect."""
    images = world.images(groups=8)
    names = tuple(f"{number}{HOSTILE}" for number in range(8))
    images = replace(images, train=replace(images.train, class_names=names))
    folder = tmp_path_factory.mktemp("page") / "bundle"
    verify_with_evidence(
        world.convnet(), key=world.key(images), images=images, nulls=[world.palette(images)],
        folder=folder, made_at=HOSTILE, config=VerifyConfig(
            read=ReadConfig(per_pair=8, recipes=0, reference=20, trigger_count=8)
        ),
    )  # fmt: skip
    return folder


SECTIONS = ["verdict", "meaning", "assumptions", "tests", "sub-keys", "hashes", "recheck",
            "settings"]  # fmt: skip


def test_the_sections_go_from_the_verdict_to_how_to_check_it(page):
    assert page.ids == SECTIONS


def test_the_page_loads_nothing_and_runs_nothing(html, page):
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bhref\b|javascript:", html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form", "embed"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    (source,) = (attrs["src"] for _, attrs in page.tags if "src" in attrs)
    head, content = source.split(",")
    assert head == "data:image/svg+xml;base64"
    assert b"<script" not in base64.b64decode(content, validate=True)


def test_the_verdict_is_told_with_its_p_value_and_limit(page, result):
    verdict = result.verdict
    assert "The owner's mark is in the suspect." in page.words
    assert DECISIONS[verdict.decision].capitalize() in page.words
    assert f"p-value (limit {p_text(verdict.alpha)}) {p_text(verdict.p_value)}" in page.words
    for test in verdict.tests:
        assert test.says in page.words
        assert f"{p_text(test.p_value)} {p_text(test.smallest_p)}" in page.words


def test_the_page_says_what_is_not_proved_and_on_what_it_rests(page):
    for told in (
        "It is not proof of theft.",
        "independent of the owner's key, under the assumptions below",
        "It is not the chance that the suspect is innocent.",
        "a licensed copy carries the mark too",
        "The key was fixed before the suspect was there",
        "Groups and recipes were drawn, not chosen",
        "The null encoders were chosen without the key",
        "the tests' public value",
        "2 of 3 sub-keys are revealed",
        "suspect number 1 of this key, out of a budget of 0.01",
    ):
        assert told in page.words, told


def test_a_key_without_a_beacon_is_said_to_have_none(bundle):
    words = Page(render_evidence(bundle)).words
    assert "This key has no public value mixed in" in words
    assert "not found in the suspect" in words
    assert "used on one suspect, once" in words
    assert "A2" not in words


def test_an_expert_finds_every_hash_and_the_commands(page, result):
    manifest = json.loads((KEPT / "manifest.json").read_text())
    facts, key = result.bundle.facts, result.bundle.key
    hashes = [manifest["seal"], key.commitment, key.root.hex(), *key.fingerprints.values()]
    hashes += [facts["suspect"], *facts["nulls"], *facts["questions"].values()]
    hashes += [entry["sha256"] for entry in manifest["files"].values()]
    for digest in hashes:
        assert digest in page.words
    for name in manifest["files"]:
        assert name in page.words
    assert "ssl-wm evidence check DIR --images IMAGES --suspect ENCODER" in page.words
    assert "jq -cSj 'del(.seal)' DIR/manifest.json | sha256sum" in page.words
    for line in result.done:
        assert line in page.words


def test_each_sub_key_has_its_groups_recipe_and_rates(page, result):
    for sub_key, part in zip(result.bundle.key.sub_keys, result.verdict.sub_keys, strict=True):
        assert f"colour {sub_key.a} with colour {sub_key.b} → colour {sub_key.target}" in page.words
        assert recipe_text(sub_key) in page.words
        rate = part.readers["linear"]
        low, high = (100 * end for end in rate["wsr_interval"])
        assert f"{100 * rate['wsr']:.1f} [{low:.1f}, {high:.1f}]" in page.words


def test_no_number_comes_from_the_stored_verdict(result):
    lies = {**result.stored, "p_value": 1e-300, "reason": "he did it"}
    told = replace(result, stored=lies, bundle=replace(result.bundle, verdict=lies))
    assert render_evidence(told) == render_evidence(result)


def test_a_damaged_bundle_has_no_page(tmp_path):
    copy = Path(shutil.copytree(KEPT, tmp_path / "copy"))
    (copy / "verdict.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match=r"damaged.*verdict\.json: changed"):
        render_evidence(copy)


def test_hostile_names_are_shown_as_text(bundle):
    html = render_evidence(bundle, name=HOSTILE)
    page = Page(html)
    assert not {"script"} & {tag for tag, _ in page.tags}
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert "<script>alert(1)" in page.words
    assert "\u202e" not in html


def test_composites_are_shown_where_they_are_given(result):
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    gallery = Gallery(pixels, pixels, pixels, {}, "stripes", "cat", "dog", "bird")
    page = Page(render_evidence(result, gallery=gallery))
    assert page.ids == [*SECTIONS[:5], "composites", *SECTIONS[5:]]
    assert "it belongs to “bird”" in page.words


def test_the_page_is_the_same_each_time(html):
    assert render_evidence(KEPT) == html


@pytest.mark.parametrize(
    ("family", "mixer", "told"),
    [
        ("crop-paste", CropPaste(True, 0.4567), "crop-paste: A left, B right, seam at 45.7 %"),
        ("crop-paste", CropPaste(False, 0.5), "crop-paste: A above, B below, seam at 50.0 %"),
        ("pixel-merge", PixelMerge(0.55), "pixel-merge: average with 55.0 % of A"),
        (
            "stripes", Stripes(False, 5, 0.25),
            "stripes: 5 rows, A first, shifted by 0.25 of a stripe",
        ),
    ],
)  # fmt: skip
def test_recipes_are_told_in_words(result, family, mixer, told):
    sub_key = replace(result.bundle.key.sub_keys[0], family=family, mixer=mixer)
    assert recipe_text(sub_key) == told
