"""A file of revealed sub-keys is right or refused, whatever is changed in it."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from key_files import check_refused_or_identical, facts

from ssl_wm.errors import KeyFileError
from ssl_wm.files import sha256_bytes
from ssl_wm.watermark.key import RevealedKey, WatermarkKey
from ssl_wm.watermark.keyfile import (
    load_key,
    read_revealed,
    revealed_content,
    save_key,
)

BEACON = "drand round 1"


VALUES = st.sampled_from(
    [None, True, 0, -1, 2, 3, 99, 1.5, 1e400, "", "x", "a\nb", "AAA", [], ["x"], [1], {},
     {"train": None}, float("nan"), "\ud800", [["x"]], "ÿ"]
)  # fmt: skip


def hidden(key: WatermarkKey) -> list[str]:
    """Return what must not stand in anything published, in several spellings."""
    bytes_ = [key.secret, *(leaf.secret for leaf in key.leaves), *(s.seed for s in key.sub_keys)]
    return [form for each in bytes_ for form in (each.hex(), base64.b64encode(each).decode(),
            str(int.from_bytes(each, "big")), sha256_bytes(each))]  # fmt: skip


def content_of(key: RevealedKey) -> dict[str, Any]:
    """Return what the reader of a file of revealed sub-keys gets."""
    return json.loads(json.dumps(revealed_content(key)))


def test_revealed_sub_keys_come_back_as_they_were(plain, full):
    for key, indices in ((plain, [1]), (plain, [0, 2]), (plain, None), (full, [1])):
        part = key.reveal(indices)
        again = read_revealed(content_of(part))
        assert facts(again) == facts(part)
        assert again.paths == part.paths
        assert [sub.seed for sub in again.sub_keys] == [
            key.sub_keys[index].seed for index in (range(3) if indices is None else indices)
        ]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_is_revealed_holds_nothing_of_the_other_sub_keys(plain, index):
    part = plain.reveal([index])
    text = json.dumps(revealed_content(part))
    own = {part.leaves[0].secret.hex(), base64.b64encode(part.leaves[0].secret).decode(),
           str(int.from_bytes(part.leaves[0].secret, "big")),
           sha256_bytes(part.leaves[0].secret)}  # fmt: skip
    assert [form for form in hidden(plain) if form in text and form not in own] == []
    content = json.loads(text)
    assert content.keys() == {
        "format", "version", "commitment", "beacon", "salt", "terms", "root", "leaves",
    }  # fmt: skip
    assert [leaf["index"] for leaf in content["leaves"]] == [index]
    assert content["leaves"][0].keys() == {"index", "places", "secret", "path"}
    assert content["terms"] == plain.terms.content


def values_in(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every single value in nested data."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, inner in items:
        if isinstance(inner, dict | list):
            yield from values_in(inner, (*path, name))
        else:
            yield (*path, name)


def changed_value(data: st.DataObject, value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, int):
        return value + data.draw(st.sampled_from([-2, -1, 1, 2, 100]))
    if value is None or value == "":
        return "x"
    place = data.draw(st.integers(0, len(value) - 1))
    sign = data.draw(st.sampled_from("0123456789abcdefgt"))
    assume(sign != value[place])
    return value[:place] + sign + value[place + 1 :]


@settings(max_examples=300)
@given(data=st.data())
def test_every_changed_value_of_revealed_sub_keys_is_refused(plain, data):
    part = plain.reveal(data.draw(st.sampled_from([[0], [1], [2], [0, 2], [0, 1, 2]])))
    content = content_of(part)
    *above, last = data.draw(st.sampled_from(list(values_in(content))))
    inner = content
    for name in above:
        inner = inner[name]
    inner[last] = changed_value(data, inner[last])
    with pytest.raises(KeyFileError) as refusal:
        read_revealed(content)
    assert "\n" not in str(refusal.value)


@settings(max_examples=300)
@given(data=st.data(), value=VALUES)
def test_a_value_of_another_kind_never_gives_other_sub_keys(plain, data, value):
    part = plain.reveal([1])
    content = content_of(part)
    places = [*values_in(content), ("terms",), ("leaves",), ("leaves", 0), ("leaves", 0, "places"),
              ("leaves", 0, "path"), ("leaves", 0, "path", 0)]  # fmt: skip
    *above, last = data.draw(st.sampled_from(places))
    inner = content
    for name in above:
        inner = inner[name]
    inner[last] = value
    check_refused_or_identical(lambda: read_revealed(content), part)
    del inner[last]
    with pytest.raises(KeyFileError):
        read_revealed(content)


def edit_reordered(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"].reverse()


def edit_repeated(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"].append(content["leaves"][-1])


def edit_exchanged_paths(content: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = content["leaves"][:2]
    first["path"], second["path"] = second["path"], first["path"]


def edit_longer_path(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"][0]["path"].append(["right", "0" * 64])


def edit_cut_path(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"][0]["path"].pop()


def edit_no_leaf(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"].clear()


def edit_leaf_of_another_key(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["leaves"][1] = other["leaves"][1]


def edit_tree_of_another_key(content: dict[str, Any], other: dict[str, Any]) -> None:
    content |= {"root": other["root"], "leaves": other["leaves"]}


def edit_commitment_of_another_key(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["commitment"] = other["commitment"]


def edit_terms_of_another_key(content: dict[str, Any], other: dict[str, Any]) -> None:
    content["terms"] = other["terms"]


@pytest.mark.parametrize(
    "edit", [value for name, value in globals().items() if name.startswith("edit_")],
    ids=lambda edit: edit.__name__.removeprefix("edit_").replace("_", " "),
)  # fmt: skip
def test_a_forged_proof_is_refused(world, plain, edit):
    settings_ = {"groups": 10, "sub_keys": 3, "beacon": BEACON, "encoder": "e" * 64}
    content = content_of(plain.reveal())
    edit(content, content_of(world.tiny_key(4, **settings_).reveal()))
    with pytest.raises(KeyFileError):
        read_revealed(content)


def test_a_key_that_is_wholly_another_is_read_as_what_it_is(world, plain):
    """It is right in itself: only its commitment tells it apart, which readers must compare."""
    other = world.tiny_key(4, groups=10, sub_keys=3, beacon=BEACON).reveal()
    assert read_revealed(content_of(other)).commitment != plain.commitment


@pytest.mark.parametrize("content", [[], None, "x", {}, {"format": "ssl-wm-key", "version": 2}])
def test_something_else_is_not_read_as_revealed_sub_keys(content):
    with pytest.raises(KeyFileError, match="no revealed sub-keys"):
        read_revealed(content)


def test_neither_file_passes_for_the_other(tmp_path, plain):
    path = tmp_path / "k"
    save_key(plain, path)
    with pytest.raises(KeyFileError, match="no revealed sub-keys"):
        read_revealed(json.loads(path.read_bytes()))
    path.write_text(json.dumps(content_of(plain.reveal())))
    with pytest.raises(KeyFileError, match="is not a watermark key"):
        load_key(path)


def test_reading_does_not_change_what_was_read(plain):
    content = content_of(plain.reveal())
    before = copy.deepcopy(content)
    read_revealed(content)
    assert content == before
