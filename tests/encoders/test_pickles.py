"""Hostile and broken pickles: nothing of theirs runs, and the message names what was blocked."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.pickles import blocked_globals, read_pickle
from ssl_wm.errors import EncoderError


class Hostile:
    """Touches a canary file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Opens:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


WRITERS = {
    "zip": lambda value, path: torch.save(value, path),
    "zip, protocol 4": lambda value, path: torch.save(value, path, pickle_protocol=4),
    "old format": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "bare pickle, protocol 0": lambda value, path: path.write_bytes(pickle.dumps(value, 0)),
    "bare pickle, protocol 2": lambda value, path: path.write_bytes(pickle.dumps(value, 2)),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(writer, suffix, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / f"x{suffix}"
    WRITERS[writer]({"state_dict": {"w": torch.zeros(2)}, "evil": Hostile(canary)}, path)
    with pytest.raises(EncoderError, match=r"refused.*(posix|nt|os)\.system") as caught:
        load_encoder(path, arch="convnet-s")
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)


def test_the_canary_would_have_sung(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_every_blocked_name_is_listed(tmp_path):
    torch.save([Hostile(tmp_path / "a"), Opens(tmp_path / "b")], tmp_path / "x.pt")
    names = blocked_globals(tmp_path / "x.pt")
    assert any(name.endswith(".system") for name in names)
    assert any(name.endswith(".open") for name in names)
    assert not list(tmp_path.glob("[ab]"))


def test_a_whole_pickled_model_names_its_classes_and_the_way_out(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(EncoderError, match=r"torch\.nn\.modules\.linear\.Linear.*save_file"):
        load_encoder(tmp_path / "x.pt", arch="convnet-s")


def test_a_hostile_pickle_under_a_safetensors_name_is_not_even_unpickled(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "x.safetensors"
    torch.save(Hostile(canary), path)
    with pytest.raises(EncoderError, match="safetensors"):
        load_encoder(path, arch="convnet-s")
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "x.pt")
    with pytest.raises(EncoderError, match="TorchScript"):
        load_encoder(tmp_path / "x.pt", arch="convnet-s")


def test_an_export_archive_is_refused_under_any_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
        archive.writestr("x/models/model.json", "{}")
    with pytest.raises(EncoderError, match=r"torch\.export"):
        load_encoder(tmp_path / "x.pt", arch="convnet-s")


@pytest.mark.parametrize("writer", ["zip", "old format"])
def test_a_plain_state_dict_in_either_format_is_read(writer, tmp_path):
    state = nn.Linear(3, 2).state_dict()
    WRITERS[writer](state, tmp_path / "x.pt")
    value = read_pickle(tmp_path / "x.pt")
    assert torch.equal(value["weight"], state["weight"])
    assert blocked_globals(tmp_path / "x.pt") == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), writer=st.sampled_from(["zip", "old format", "bare pickle"]))
def test_a_truncated_or_changed_pickle_ends_in_one_typed_line(data, writer, tmp_path):
    path = tmp_path / "x.pt"
    WRITERS[writer](nn.Conv2d(3, 2, 2).state_dict(), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    message = ""
    try:
        read_pickle(path)  # a change in the weights' own bytes is not seen here
    except EncoderError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04rubbish", b"\x80\x02."])
def test_rubbish_is_called_rubbish(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(EncoderError, match="truncated or of another kind"):
        read_pickle(tmp_path / "x.pt")
