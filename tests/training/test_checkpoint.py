"""A checkpoint is whole, of the same run, and only data; else it is refused in one line."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_wm.errors import OutputError, TrainingError
from ssl_wm.files import sha256_bytes
from ssl_wm.training.checkpoint import (
    NAME,
    Checkpoint,
    drop_checkpoint,
    find_checkpoint,
    save_checkpoint,
)


def some_checkpoint(epoch: int = 3) -> Checkpoint:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.rand(5, 4)).square().sum().backward()
    optimiser.step()
    return Checkpoint(epoch, "this run", module.state_dict(), optimiser.state_dict())


@functools.cache
def content() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(Path(name), some_checkpoint())
        return (Path(name) / NAME).read_bytes()


def equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return one == two


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = some_checkpoint()
    save_checkpoint(tmp_path, saved)
    found = find_checkpoint(tmp_path, run="this run")
    assert (found.epoch, found.run) == (3, "this run")
    assert equal(found.module, saved.module)
    assert equal(found.optimiser, saved.optimiser)
    save_checkpoint(tmp_path, some_checkpoint(epoch=4))
    assert find_checkpoint(tmp_path, run="this run").epoch == 4
    drop_checkpoint(tmp_path)
    drop_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_is_none(tmp_path):
    assert find_checkpoint(tmp_path, run="x") is None
    assert find_checkpoint(tmp_path / "absent", run="x") is None


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path):
    save_checkpoint(tmp_path, some_checkpoint())
    with pytest.raises(TrainingError, match=r"other settings.*--overwrite"):
        find_checkpoint(tmp_path, run="another run")
    assert (tmp_path / NAME).read_bytes()[:64] == sha256_bytes(
        (tmp_path / NAME).read_bytes()[64:]
    ).encode()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_or_truncated_checkpoint_is_never_resumed(data):
    raw = bytearray(content())
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / NAME).write_bytes(raw)
        with pytest.raises(TrainingError, match=r"damaged.*delete it") as caught:
            find_checkpoint(Path(name), run="this run")
        assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("save", [torch.save, pickle.dump])
def test_a_hostile_pickle_in_the_place_of_a_checkpoint_does_not_run(save, sealed, tmp_path):
    path = tmp_path / NAME
    with path.open("wb") as file:
        save({"epoch": 1, "module": Hostile(tmp_path / "it ran")}, file)
    if sealed:  # one who can write the file can also write its digest
        raw = path.read_bytes()
        path.write_bytes(sha256_bytes(raw).encode() + raw)
    with pytest.raises(TrainingError, match="damaged"):
        find_checkpoint(tmp_path, run="this run")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, [1], "text", {"epoch": 1, "more": 2}])
def test_a_sealed_file_that_is_no_checkpoint_is_refused(state, tmp_path):
    torch.save(state, tmp_path / NAME)
    raw = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(sha256_bytes(raw).encode() + raw)
    with pytest.raises(TrainingError, match="damaged"):
        find_checkpoint(tmp_path, run="this run")


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, some_checkpoint(epoch=1))

    def full_disk(*_paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_wm.files.os.replace", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(tmp_path, some_checkpoint(epoch=2))
    monkeypatch.undo()
    assert find_checkpoint(tmp_path, run="this run").epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
