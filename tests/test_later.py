"""Settings of older runs are written as they were, so that these can be resumed."""

from __future__ import annotations

import pytest

from ssl_wm.extraction.settings import StealConfig
from ssl_wm.later import WithLater
from ssl_wm.removal.given import RemovalConfig
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.settings import ReadConfig

CHANGED = {
    FitConfig: {"compile": "graphs", "accumulate": 2},
    ReadConfig: {"natural_only": True, "space": "evened", "centring": "fitted"},
    StealConfig: {"selection": "k-centre", "repeats": 3, "keep": "best", "denoise": True},
    RemovalConfig: {"distil": FitConfig(epochs=3), "distil_arch": "convnet-xs"},
}


@pytest.mark.parametrize("kind", CHANGED, ids=lambda kind: kind.__name__)
def test_a_later_setting_is_written_only_where_it_changes_something(kind: type[WithLater]):
    assert not set(kind().model_dump()) & set(kind.LATER)
    for name, value in CHANGED[kind].items():
        told = kind(**{name: value})
        assert set(told.model_dump()) & set(kind.LATER) == {name}
        assert kind.model_validate(told.model_dump()) == told


@pytest.mark.parametrize("kind", CHANGED, ids=lambda kind: kind.__name__)
def test_a_later_setting_has_a_name_that_the_class_knows(kind: type[WithLater]):
    assert set(kind.LATER) <= set(kind.model_fields)
    assert set(kind.LATER) >= set(CHANGED[kind])
