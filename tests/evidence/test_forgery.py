"""A forger who seals a changed bundle anew is found out, and none gives a traceback."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_wm.evidence import check as recheck
from ssl_wm.evidence.bundle import answers_file
from ssl_wm.evidence.manifest import changes
from ssl_wm.evidence.record import (
    check,
    verify_with_evidence,
)
from ssl_wm.files import pack_tensors, read_tensors

TENSORS = ("clean.safetensors", "nulls.safetensors", "suspect-fresh-0.safetensors")
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)

FORGERIES = [
    ("verdict.json", ("p_value",), 1e-9),
    ("verdict.json", ("p_value",), "0.001"),
    ("verdict.json", ("decision",), "not_detected"),
    ("verdict.json", ("alpha",), 0.5),
    ("verdict.json", ("tests", 0, "p_value"), 1e-9),
    ("verdict.json", ("tests", 1, "name"), "A9"),
    ("verdict.json", ("tests",), []),
    ("verdict.json", ("sub_keys", 0, "rank"), 7),
    ("verdict.json", ("sub_keys", 0, "margin"), 0.9),
    ("verdict.json", ("sub_keys", 0, "readers", "linear", "wfpr"), 0.987),
    ("verdict.json", ("wsr",), 0.5),
    ("verdict.json", ("reader",), "eyes"),
    ("verdict.json", ("facts", "commitment"), "0" * 64),
    ("verdict.json", ("facts", "settings", "draws"), 99),
    ("verdict.json", ("more",), 1),
    ("settings.json", ("read",), None),
    ("settings.json", ("alpha",), 2),
    ("settings.json", ("alfa",), 0.1),
    ("facts.json", ("images", "test"), "0" * 64),
    ("facts.json", ("nulls",), []),
    ("facts.json", ("questions",), {}),
    ("key.json", ("leaves", 0, "secret"), "00" * 32),
    ("key.json", ("leaves", 0, "places"), [1, 2, 3]),
    ("key.json", ("beacon",), "another"),
    ("key.json", ("terms", "sub_keys"), 2),
    ("key.json", ("terms", "groups", "train"), ""),
]


@pytest.mark.parametrize(("file", "path", "value"), FORGERIES)
def test_a_value_forged_and_sealed_again_is_named(evidence, copy, file, path, value):
    evidence.rewrite(copy, file, *path, value=value)
    assert changes(copy) == []
    assert evidence.named(check(copy).problems) == {file}


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("settings.json", ("alpha",), 0.5),
        ("settings.json", ("look",), 3),
        ("facts.json", ("suspect",), "0" * 64),
        ("facts.json", ("nulls",), ["0" * 64, "1" * 64]),
    ],
)
def test_facts_and_settings_forged_alone_disagree_with_the_verdict(
    evidence, copy, file, path, value
):
    evidence.rewrite(copy, file, *path, value=value)
    assert evidence.named(check(copy).problems) == {"verdict.json"}


def test_rounding_is_no_forgery(evidence, copy):
    stored = json.loads((copy / "verdict.json").read_text())
    evidence.rewrite(copy, "verdict.json", "position", value=stored["position"] * (1 + 1e-12))
    assert check(copy).ok
    evidence.rewrite(copy, "verdict.json", "position", value=stored["position"] * (1 + 1e-6))
    assert evidence.named(check(copy).problems) == {"verdict.json"}


def test_a_reader_that_is_as_good_may_have_been_named(evidence, copy, monkeypatch):
    """On another machine one composite more may make the other reader the better one."""
    stored = json.loads((copy / "verdict.json").read_text())
    rates = stored["sub_keys"][0]["readers"]["linear"]
    assert (stored["reader"], stored["wsr"], rates["wsr"]) == ("knn", 1.0, 23 / 24)
    for name, value in {"reader": "linear", "wsr": rates["wsr"], "wfpr": rates["wfpr"]}.items():
        evidence.rewrite(copy, "verdict.json", name, value=value)
    assert evidence.named(check(copy).problems) == {"verdict.json"}
    monkeypatch.setattr(recheck, "SAME_RATE", 0.05)
    assert check(copy).ok
    evidence.rewrite(copy, "verdict.json", "wfpr", value=0.2)
    assert evidence.named(check(copy).problems) == {"verdict.json"}


def forged_nulls(tensors: dict[str, torch.Tensor], how: str) -> None:
    if how == "rivals left out":
        tensors["tables"][:, :, 0] = torch.nan
    elif how == "no such key":
        tensors["tables"][:, :, 0, 0, 0] = 0.0
    elif how == "infinite":
        tensors["own"][0, 0, 0] = torch.inf
    elif how == "fewer":
        for name in tensors:
            tensors[name] = tensors[name][:1]
    elif how == "narrow":
        tensors["tables"] = tensors["tables"].float()
    else:
        del tensors["recipes"]


@pytest.mark.parametrize(
    "how", ["rivals left out", "no such key", "infinite", "fewer", "narrow", "missing"]
)
def test_null_margins_that_cannot_be_are_named(evidence, copy, how):
    tensors = read_tensors(copy / "nulls.safetensors")
    forged_nulls(tensors, how)
    (copy / "nulls.safetensors").write_bytes(pack_tensors(tensors))
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {"nulls.safetensors"}


@pytest.mark.parametrize("how", ["short", "nan", "wide", "many", "missing"])
def test_a_clean_encoder_that_cannot_be_is_named(evidence, copy, how):
    path = copy / "clean.safetensors"
    tensors = read_tensors(path)
    if how == "short":
        tensors["z"] = tensors["z"][1:]
    elif how == "nan":
        tensors["carriers"][0, 0] = torch.nan
    elif how == "wide":
        tensors["carriers"] = tensors["carriers"].double()
    elif how == "many":
        tensors["carriers"] = tensors["carriers"].repeat(1, 200)
    else:
        del tensors["carriers"]
    path.write_bytes(pack_tensors(tensors))
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {"clean.safetensors"}


def test_another_clean_encoder_gives_another_verdict(evidence, copy):
    path = copy / "clean.safetensors"
    tensors = read_tensors(path)
    tensors["carriers"] = tensors["carriers"].roll(1, dims=1)
    path.write_bytes(pack_tensors(tensors))
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {"verdict.json"}


@pytest.mark.parametrize("how", ["short", "nan", "double", "flat", "other name", "text"])
def test_answers_that_cannot_be_are_named(evidence, copy, how):
    path = copy / answers_file("pairs/0")
    z = read_tensors(path)["answers"]
    bad = z.clone()
    bad[3, 2] = torch.nan
    tensors = {
        "short": {"answers": z[1:]}, "nan": {"answers": bad}, "double": {"answers": z.double()},
        "flat": {"answers": z.flatten()}, "other name": {"z": z}, "text": None,
    }[how]  # fmt: skip
    path.write_bytes(b"text" if tensors is None else pack_tensors(tensors))
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {path.name}


def test_answers_of_another_encoder_give_another_verdict(evidence, copy, tmp_path):
    verify_with_evidence(
        evidence.nulls[0], key=evidence.key, images=evidence.images, nulls=evidence.nulls,
        folder=tmp_path / "other", config=evidence.config,
    )  # fmt: skip
    for path in (tmp_path / "other").glob("suspect-*"):
        path.rename(copy / path.name)
    evidence.reseal(copy)
    result = check(copy)
    assert evidence.named(result.problems) == {"verdict.json"}
    assert result.verdict.decision == "not_detected"
    assert result.stored["decision"] == "detected"


def test_a_file_slipped_in_or_left_out_and_sealed_again_is_named(evidence, copy):
    (copy / "note.txt").write_text("x")
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {"manifest.json"}
    (copy / "note.txt").unlink()
    (copy / "verdict.json").unlink()
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) == {"verdict.json"}


ANYTHING = st.sampled_from([None, "x", "", -1, 0, 1.5, True, [], {}, [None], {"a": 1}, "00", 10**9])


@FUZZ
@given(
    file=st.sampled_from(["facts.json", "key.json", "settings.json", "verdict.json"]),
    data=st.data(),
)
def test_no_forged_value_gives_a_traceback(evidence, copy, file, data):
    whole = json.loads((evidence.folder / file).read_text())
    place, path = whole, []
    while isinstance(place, dict | list) and len(place) and (not path or data.draw(st.booleans())):
        steps = sorted(place) if isinstance(place, dict) else range(len(place))
        path.append(data.draw(st.sampled_from(steps)))
        place = place[path[-1]]
    value = data.draw(ANYTHING)
    if path == ["draws"] and value == 10**9:  # a valid setting, which takes an hour
        return
    evidence.rewrite(copy, file, *path, value=value)
    result = check(copy)
    assert all(
        problem.partition(":")[0].endswith((".json", ".safetensors")) for problem in result.problems
    )
    shutil.copy(evidence.folder / file, copy / file)


@FUZZ
@given(
    file=st.sampled_from(TENSORS),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_no_forged_tensor_gives_a_traceback(evidence, copy, file, place, flip):
    data = bytearray((evidence.folder / file).read_bytes())
    data[int(place**4 * len(data))] ^= flip  # the head of the file more often than the rest
    (copy / file).write_bytes(data)
    evidence.reseal(copy)
    assert evidence.named(check(copy).problems) <= {file, "verdict.json"}
    shutil.copy(evidence.folder / file, copy / file)
