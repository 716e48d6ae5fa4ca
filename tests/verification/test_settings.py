"""Settings within bounds, or a refusal that names the field."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from ssl_wm.verification.settings import ReadConfig, VerifyConfig


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *[("alpha", value) for value in (0, -0.1, 1, 1.5, math.nan, math.inf, "small")],
        *[("look", value) for value in (0, -1, 1.5, "last")],
        *[("draws", value) for value in (98, 0, -1, 99.5)],
        *[("access", value) for value in ("label", "logits", "", None)],
        *[("max_queries", value) for value in (0, -5, 1.5)],
        *[("read", value) for value in ({"per_pair": 7}, {"other": 1}, None, 3)],
        ("alfa", 0.1),
    ],
    ids=str,
)
def test_a_judgement_out_of_bounds_is_refused(field, bad):
    with pytest.raises(ValidationError) as caught:
        VerifyConfig(**{field: bad})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("per_pair", 7), ("recipes", -1), ("reference", 7), ("trigger_count", 7),
        ("neighbours", 0), ("precision", "float16"), ("per_pair", 8.5), ("perpair", 9),
    ],
)  # fmt: skip
def test_too_little_to_read_is_refused(field, bad):
    with pytest.raises(ValidationError) as caught:
        ReadConfig(**{field: bad})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_the_bounds_themselves_are_allowed():
    read = ReadConfig(per_pair=8, recipes=0, reference=8, trigger_count=8, neighbours=1)
    config = VerifyConfig(
        alpha=1e-9, look=1, draws=99, access="labels", max_queries=1, read=read.model_dump()
    )
    assert config.read == read
    assert VerifyConfig(alpha=0.999).look is VerifyConfig().max_queries is None


def test_settings_cannot_change_after_they_were_checked():
    for config in (VerifyConfig(), ReadConfig()):
        with pytest.raises(ValidationError, match="frozen"):
            config.alpha = 2  # type: ignore[union-attr]
        assert type(config).model_validate_json(config.model_dump_json()) == config
