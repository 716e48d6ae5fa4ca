"""Wrong names get one line that names the nearest right one."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm import errors
from ssl_wm.errors import ConfigError, SslWmError, choose

NAMES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), unique=True)


def test_every_error_can_be_caught_as_one_kind():
    classes = inspect.getmembers(errors, inspect.isclass)
    kinds = [kind for _, kind in classes if kind.__module__ == errors.__name__]
    assert len(kinds) >= 8
    assert all(issubclass(kind, SslWmError) for kind in kinds)


@given(NAMES, st.data())
def test_a_known_name_is_returned_as_it_is(names, data):
    for name in names:
        assert choose(name, names, what="thing") == name
    stranger = data.draw(st.text().filter(lambda text: text not in names))
    with pytest.raises(ConfigError):
        choose(stranger, names, what="thing")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("move_target", "did you mean 'move-target'?"),
        ("Move-Target", "did you mean 'move-target'?"),
        ("mea", "did you mean 'mea-defender'?"),
    ],
)
def test_a_near_miss_names_the_nearest(name, hint):
    with pytest.raises(ConfigError) as caught:
        choose(name, ["move-target", "mea-defender"], what="method")
    assert f"unknown method '{name}'; {hint} Known: move-target, mea-defender" in str(caught.value)


def test_a_far_miss_suggests_nothing_but_lists_what_is_known():
    with pytest.raises(ConfigError) as caught:
        choose("qqqq", iter(["move-target", "mea-defender"]), what="method")
    assert str(caught.value) == "unknown method 'qqqq'. Known: move-target, mea-defender"
