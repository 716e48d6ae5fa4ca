"""Whatever changes in a bundle is named: bytes, files, names, and what a forger seals anew."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_wm.errors import (
    VerificationError,
)
from ssl_wm.evidence.manifest import changes
from ssl_wm.evidence.record import (
    check,
    load,
)

NAMES = (
    "clean.safetensors", "facts.json", "key.json", "manifest.json", "nulls.safetensors",
    "settings.json",
    "suspect-fresh-0.safetensors", "suspect-others-0.safetensors", "suspect-pairs-0.safetensors",
    "suspect-recipes-0.safetensors", "suspect-reference.safetensors", "verdict.json",
)  # fmt: skip
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@FUZZ
@given(
    file=st.sampled_from(NAMES),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_any_byte_that_changes_names_its_file_and_no_other(evidence, copy, file, place, flip):
    path = copy / file
    data = bytearray((evidence.folder / file).read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    result = check(copy)
    assert evidence.named(result.problems) == {file}
    assert not result.ok
    with pytest.raises(VerificationError, match=file):
        load(copy)
    shutil.copy(evidence.folder / file, path)
    assert changes(copy) == []


def test_a_bundle_holds_these_files(evidence):
    assert sorted(path.name for path in evidence.folder.iterdir()) == list(NAMES)


def test_every_byte_of_the_manifest_is_guarded(evidence, copy):
    path = copy / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        assert evidence.named(changes(copy)) == {"manifest.json"}, place


@FUZZ
@given(
    file=st.sampled_from(NAMES), cut=st.floats(0, 1, exclude_max=True), more=st.binary(min_size=1)
)
def test_a_file_cut_short_or_made_longer_is_named(evidence, copy, file, cut, more):
    data = (evidence.folder / file).read_bytes()
    for changed in (data[: int(cut * len(data))], data + more):
        (copy / file).write_bytes(changed)
        assert evidence.named(check(copy).problems) == {file}
    (copy / file).write_bytes(data)


@FUZZ
@given(file=st.sampled_from(NAMES), name=st.text("abc.-_ ", min_size=1).map(lambda t: f"x{t}"))
def test_files_added_removed_or_renamed_are_named(evidence, copy, file, name):
    path, data = copy / file, (evidence.folder / file).read_bytes()
    (copy / name).write_bytes(b"more")
    assert evidence.named(check(copy).problems) == {name}
    (copy / name).unlink()
    path.rename(copy / name)
    found = check(copy).problems
    assert file in evidence.named(found)
    if file != "manifest.json":
        assert evidence.named(found) == {file, name}
        assert f"{file}: missing; {name} has its content, so it was renamed" in found
    (copy / name).unlink()
    assert evidence.named(check(copy).problems) == {file}
    path.write_bytes(data)


def test_two_files_that_change_places_are_both_named(evidence, copy):
    one, other = copy / "suspect-fresh-0.safetensors", copy / "suspect-others-0.safetensors"
    one.rename(copy / "aside")
    other.rename(one)
    (copy / "aside").rename(other)
    assert evidence.named(check(copy).problems) == {one.name, other.name}


@pytest.mark.parametrize("file", ["verdict.json", "manifest.json"])
def test_a_link_or_a_folder_in_place_of_a_file_is_named(evidence, copy, file):
    (copy / file).unlink()
    (copy / file).symlink_to(evidence.folder / file)
    assert evidence.named(check(copy).problems) == {file}
    (copy / file).unlink()
    (copy / file).mkdir()
    assert evidence.named(check(copy).problems) == {file}


def test_an_empty_folder_and_an_odd_name_are_named_on_one_line(evidence, copy):
    (copy / "inside").mkdir()
    (copy / "two\nlines").write_text("")
    found = check(copy).problems
    assert evidence.named(found) == {"inside", "'two\\nlines'"}
    assert not any("\n" in problem for problem in found)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: json.dumps(json.loads(text)),
        lambda text: text + " ",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"version": 4', '"version": 4, "version": 4'),
        lambda text: text.replace('"version": 4', '"version": 4.0'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: "1" * 5_000,
        lambda text: '{"seal": "\\ud800", "x": NaN}',
    ],
)
def test_a_manifest_that_only_looks_the_same_is_named(evidence, copy, write):
    path = copy / "manifest.json"
    path.write_bytes(write(path.read_text()).encode())
    assert evidence.named(check(copy).problems) == {"manifest.json"}


def test_a_folder_that_is_not_there_is_an_error(evidence, tmp_path):
    with pytest.raises(VerificationError, match="no evidence folder"):
        check(tmp_path / "none")
    assert evidence.named(check(tmp_path).problems) == {"manifest.json"}
