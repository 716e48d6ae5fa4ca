"""Settings of older runs are written as they were, so that these can be resumed."""

from __future__ import annotations

import pytest

from ssl_wm.config import KeyConfig
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.later import WithLater
from ssl_wm.removal.given import RemovalConfig
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.settings import ReadConfig, VerifyConfig

CHANGED = {
    FitConfig: {"compile": "graphs", "accumulate": 2},
    ReadConfig: {"natural_only": True, "space": "evened", "centring": "fitted"},
    VerifyConfig: {"counted": 10},
    KeyConfig: {"spare": 2},
    StealConfig: {"selection": "k-centre", "repeats": 3, "keep": "best", "denoise": True},
    RemovalConfig: {"distil": FitConfig(epochs=3), "distil_arch": "convnet-xs"},
}


@pytest.mark.parametrize("kind", CHANGED, ids=lambda kind: kind.__name__)
def test_a_later_setting_is_written_only_where_it_is_not_what_older_versions_did(
    kind: type[WithLater],
):
    older = kind(**kind.LATER)
    assert not set(older.model_dump()) & set(kind.LATER)
    assert kind.as_written(older.model_dump()) == older
    for name, value in CHANGED[kind].items():
        told = older.model_copy(update={name: value})
        assert set(told.model_dump()) & set(kind.LATER) == {name}
        assert kind.as_written(told.model_dump()) == told


def test_what_was_written_before_the_evened_space_was_the_default_stays_plain():
    older = {"alpha": 0.01, "read": {"per_pair": 64, "precision": "float32"}}
    assert VerifyConfig.as_written(older).read.space == "plain"
    assert VerifyConfig.model_validate(older).read.space == "evened"
    assert VerifyConfig().model_dump()["read"]["space"] == "evened"


@pytest.mark.parametrize("kind", CHANGED, ids=lambda kind: kind.__name__)
def test_a_later_setting_has_a_name_that_the_class_knows(kind: type[WithLater]):
    assert set(kind.LATER) <= set(kind.model_fields)
    assert set(kind.LATER) >= set(CHANGED[kind])
