"""The calibration's figure shows what was measured, and its files can be read again."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from ssl_wm.calibration.naive import NAIVE
from ssl_wm.calibration.outcome import Calibration
from ssl_wm.errors import OutputError
from ssl_wm.report.calibration import (
    band,
    calibration_figure,
    decisions_csv,
    png,
    svg,
    write_calibration,
)

HOSTILE = ("=cmd()", 'a,"b"\n', "<script>&", "$\\frac{", "猫")


def calibration(
    count: int = 600, *, names: tuple[str, ...] = ("one", "two"), power: float = 1.0
) -> Calibration:
    stream = np.random.default_rng(0)
    return Calibration(
        alpha=0.01, confidence=0.99, names=names, p_values=1 - stream.random(count) ** power,
        encoders=np.arange(count) % len(names), recipes=np.arange(count) % 3,
        naive={name: stream.random(count) < 0.4 for name in NAIVE},
    )  # fmt: skip


def words(drawn: bytes) -> set[str]:
    root = ElementTree.fromstring(drawn)
    return {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}


def test_the_same_calibration_gives_the_same_bytes_without_a_date():
    assert svg(calibration()) == svg(calibration())
    assert png(calibration()) == png(calibration())
    assert b"dc:date" not in svg(calibration())
    assert Image.open(io.BytesIO(png(calibration()))).size[0] == 2160


def test_the_figure_draws_the_empirical_distribution_and_every_rate():
    whole = calibration()
    left, middle, right = calibration_figure(whole).axes
    for axes in (left, middle):
        (steps,) = [line for line in axes.lines if line.get_label() == "p-values"]
        x, share = steps.get_data()
        expected = [(whole.p_values <= value).mean() for value in x]
        np.testing.assert_allclose(share, np.maximum(expected, axes is middle and 0.5 / 600))
        lines = [line for line in axes.lines if set(line.get_xdata()) == {whole.alpha}]
        assert len(lines) == 1
    rates = [whole.rule, *whole.naive_rules.values()]
    dots = [
        float(np.ravel(line.get_xdata())[0]) for line in right.lines if line.get_marker() == "o"
    ]
    spans = [tuple(line.get_xdata()) for line in right.lines if line.get_linewidth() == 2.0]
    assert dots == [rate.rate for rate in rates]
    assert spans == [rate.interval for rate in rates]
    shown = words(svg(whole))
    assert {"600 p-values", "uniform", "99 % band", "alpha = 0.01"} <= shown
    assert {text.partition(":")[0] for text in shown} >= {"this rule", *NAIVE}


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_band_holds_a_uniform_share_with_its_confidence_at_each_point(confidence):
    x = np.array([0.001, 0.01, 0.2, 0.5, 1.0])
    low, high = band(x, total=400, confidence=confidence)
    inside = binom.cdf(np.rint(high * 400), 400, x) - binom.cdf(np.rint(low * 400) - 1, 400, x)
    assert (inside >= confidence).all()
    assert (low <= x).all()
    assert (x <= high).all()


@pytest.mark.parametrize("count", [1, 2, 5_000])
@pytest.mark.parametrize("power", [0.01, 1.0, 30.0])
def test_any_p_values_are_drawn_without_nan(count, power):
    shown = words(svg(calibration(count, power=power)))
    assert not [text for text in shown if "nan" in text.lower()]


def test_p_values_of_one_alone_and_no_naive_rules_are_drawn():
    ones = Calibration(
        alpha=0.05, confidence=0.95, names=("x",), p_values=np.ones(9),
        encoders=np.zeros(9, int), recipes=np.zeros(9, int),
    )  # fmt: skip
    assert "95 % band" in words(svg(ones))


def test_all_decisions_can_be_read_again_whatever_the_names():
    whole = calibration(50, names=HOSTILE)
    rows = list(csv.DictReader(io.StringIO(decisions_csv(whole), newline="")))
    assert [float(row["p_value"]) for row in rows] == whole.p_values.tolist()
    assert [int(row["recipe"]) for row in rows] == whole.recipes.tolist()
    for name in NAIVE:
        assert [row[name] == "1" for row in rows] == whole.naive[name].tolist()
    assert {row["encoder"] for row in rows} == {"'=cmd()", *HOSTILE[1:]}


def test_a_folder_holds_the_result_the_decisions_and_the_pictures(tmp_path):
    whole = calibration()
    paths = write_calibration(whole, tmp_path / "new")
    assert {path.name for path in paths} == {
        "result.json", "decisions.csv", "calibration.svg", "calibration.png",
    }  # fmt: skip
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["rate"] == whole.rule.rate
    assert result["interval"] == list(whole.rule.interval)
    assert (tmp_path / "new" / "calibration.svg").read_bytes() == svg(whole)
    assert len((tmp_path / "new" / "decisions.csv").read_text().splitlines()) == 601


def test_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        write_calibration(calibration(9), tmp_path / "file")
