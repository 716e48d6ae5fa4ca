"""A file is written whole or not at all, and read back as it was or with an error."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm import files
from ssl_wm.errors import DataError, KeyFileError, OutputError
from ssl_wm.files import (
    canonical_json,
    claim_file,
    claim_folder,
    pack_tensors,
    plain,
    read_json,
    read_tensors,
    sha256_bytes,
    sha256_file,
    unpack_tensors,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


# --- atomic writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_content_and_mode_are_as_asked_and_nothing_else_is_left(tmp_path, mode):
    path = tmp_path / "deep" / "er" / "x.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"\x00new", mode=mode)
    assert path.read_bytes() == b"\x00new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(path.parent) == ["x.bin"]


@pytest.mark.parametrize("broken", ["write", "fsync", "chmod", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")

    def full(*_args: object, **_settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "write":
        real = os.fdopen

        def fdopen(handle: int, mode: str) -> object:
            file = real(handle, mode, buffering=0)
            return type("Full", (), {
                "__enter__": lambda self: self, "__exit__": lambda self, *_: file.close(),
                "write": full,
            })()  # fmt: skip

        monkeypatch.setattr(files.os, "fdopen", fdopen)
    else:
        monkeypatch.setattr(files.os, broken, full)
    with pytest.raises(OutputError, match=r"cannot write .*x\.bin: No space left"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_secret_is_never_readable_by_others_while_it_is_written(tmp_path, monkeypatch):
    modes = []
    real = os.fsync

    def fsync(handle: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_bytes(tmp_path / "secret", b"x", mode=0o600)
    assert modes[0] == 0o600


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            write_bytes(path, b"x")
        assert "\n" not in str(caught.value)


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "x", "ä→π")
    assert (tmp_path / "x").read_bytes() == "ä→π".encode()


# --- JSON --------------------------------------------------------------------------------------


@given(JSON)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(TEXT, JSON, max_size=5), st.randoms())
def test_equal_values_have_one_canonical_form(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


def test_the_canonical_form_is_compact_sorted_utf8():
    assert (
        canonical_json({"é": 1, "a": [None, True, 0.1]}) == '{"a":[null,true,0.1],"é":1}'.encode()
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_refused_in_hashes_and_null_in_files(tmp_path, bad):
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"x": [bad]})
    write_json(tmp_path / "x", {"x": [bad], "y": np.float64(bad)})
    assert read_json(tmp_path / "x") == {"x": [None], "y": None}


def test_numbers_of_other_libraries_become_plain():
    value = {
        1: np.int64(3), "f": np.float32(0.5), "t": torch.tensor([[1.5, math.nan]]),
        "a": np.array([True, False]), "p": Path("a/b"), "nested": ({"x": (np.bool_(True),)},),
    }  # fmt: skip
    expected = {
        "1": 3, "f": 0.5, "t": [[1.5, None]], "a": [True, False], "p": "a/b",
        "nested": [{"x": [True]}],
    }  # fmt: skip
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value))) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
    ],
    ids=["missing", "empty", "cut off", "binary", "nested"],
)
def test_a_damaged_json_file_is_the_error_that_was_asked_for(tmp_path, content, says):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyFileError, match=says) as caught:
        read_json(path, error=KeyFileError, what="key")
    assert "x.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_json_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_json(tmp_path, error=DataError)


# --- tensors -----------------------------------------------------------------------------------


TENSORS = {
    "half": torch.tensor([1.5, -2.0, 65504.0]).half(),
    "bfloat": torch.tensor([[1e30], [3e-30]]).bfloat16(),
    "double": torch.tensor(math.pi, dtype=torch.float64),
    "int": torch.arange(6).view(2, 3),
    "empty": torch.zeros(0, 4),
    "turned": torch.arange(12.0).view(3, 4).T,
    "weight": torch.ones(2, requires_grad=True),
}


def test_tensors_come_back_bit_by_bit(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    again = read_tensors(tmp_path / "x.safetensors")
    assert set(again) == set(TENSORS)
    for name, value in TENSORS.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)


def test_packing_does_not_depend_on_the_order_of_names():
    backwards = dict(reversed(list(TENSORS.items())))
    assert pack_tensors(TENSORS) == pack_tensors(backwards)


@settings(max_examples=60)
@given(st.data())
def test_truncated_tensors_are_the_error_that_was_asked_for(data):
    packed = pack_tensors(TENSORS)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(KeyFileError, match="the blob is not a whole safetensors file"):
        unpack_tensors(packed[:cut], error=KeyFileError, what="the blob")


def test_a_missing_tensor_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone"):
        read_tensors(tmp_path / "gone", error=DataError)


@given(st.binary(max_size=300))
def test_hashes_are_sha256(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(data)
    assert sha256_bytes(data) == sha256_file(path) == hashlib.sha256(data).hexdigest()


# --- where results may go ----------------------------------------------------------------------


def test_a_new_or_empty_folder_is_given(tmp_path):
    assert claim_folder(tmp_path / "a" / "b").is_dir()
    assert claim_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_full_folder_is_refused_and_both_ways_out_are_named(tmp_path):
    (tmp_path / "result").write_text("precious")
    with pytest.raises(OutputError, match=r"--resume .*--overwrite"):
        claim_folder(tmp_path)
    assert (tmp_path / "result").read_text() == "precious"


def test_resume_keeps_and_overwrite_empties(tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "x").write_text("x")
    claim_folder(out, resume=True)
    assert (out / "sub" / "x").exists()
    claim_folder(out, overwrite=True)
    assert list(out.iterdir()) == []


def test_a_file_is_no_folder_for_results_whatever_the_flags(tmp_path):
    (tmp_path / "x").write_text("precious")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="is a file"):
            claim_folder(tmp_path / "x", **flags)
    assert (tmp_path / "x").read_text() == "precious"


@pytest.mark.parametrize("where", [".", "..", "cwd", "above home"])
def test_overwrite_never_deletes_the_working_or_home_folder(tmp_path, monkeypatch, where):
    work, home = tmp_path / "a" / "work", tmp_path / "b" / "home"
    for folder in (work, home):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("x")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    path = {"cwd": work, "above home": tmp_path / "b"}.get(where, Path(where))
    with pytest.raises(OutputError, match="would delete"):
        claim_folder(path, overwrite=True)
    assert (work / "precious").exists()
    assert (home / "precious").exists()


def test_a_folder_that_cannot_be_made_or_emptied_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match="cannot make --out"):
        claim_folder(tmp_path / "x" / "y")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "z").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="cannot make --out"):
        claim_folder(tmp_path / "link", overwrite=True)
    assert (tmp_path / "real" / "z").exists()


def test_a_file_that_exists_is_refused_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "owner.key"
    assert claim_file(path) == path
    path.write_text("")
    with pytest.raises(OutputError, match="--overwrite"):
        claim_file(path)
    assert claim_file(path, overwrite=True) == path
    with pytest.raises(OutputError, match="is a folder"):
        claim_file(tmp_path, overwrite=True)
