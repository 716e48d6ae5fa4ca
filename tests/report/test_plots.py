# ruff: noqa: RUF001 (a dash stands for what is not known)
from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import torch

from ssl_wm.errors import DataError, VerificationError
from ssl_wm.report import CarrierPlot, FeatureMap, Gallery, NullPlot
from ssl_wm.report.drawing import label, svg_bytes
from ssl_wm.report.plots import bars_figure, gallery_figure, maps_figure
from ssl_wm.report.rank_plots import carriers_figure, null_figure

HOSTILE = ["$\\frac{", "a $x$ b", "<script>&\"'", "猫 \x00\x1b[31m\udcff", "_" * 300, "", "\\$^{}"]


def images(n: int = 3, size: int = 4, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=source, dtype=torch.uint8)


def gallery(n: int = 3, others: int = 2, word: str = "cat", size: int = 4) -> Gallery:
    more = {f"{word} {k}": images(n, size, 3 + k) for k in range(others)}
    a, b, c = (images(n, size, seed) for seed in range(3))
    return Gallery(a, b, c, more, mixer=word, group_a=word, group_b=word, target=word)


def feature_map(n: int = 4) -> FeatureMap:
    kinds = ("source A", "source B", "target", "composite", "other")
    points = torch.randn(n * len(kinds), 2, generator=torch.Generator().manual_seed(n))
    return FeatureMap(points, kinds * n)


def null_plot(n: int = 50, statistic: float = 4.0) -> NullPlot:
    null = torch.randn(n, generator=torch.Generator().manual_seed(n))
    return NullPlot(null, statistic, 1 / (n + 1))


def carrier_plot(n: int = 20, own: int = 3) -> CarrierPlot:
    values = torch.randn(n, generator=torch.Generator().manual_seed(n)).square()
    return CarrierPlot(values, values[:own], 0.2)


def result(names: list[str], sub_keys: int = 1) -> dict:
    reader = {"wsr": 0.7, "wsr_interval": [0.6, 0.8], "wfpr": 0.1, "wfpr_interval": [0.0, 0.2]}
    part = {"readers": {"linear": reader}}
    verdict = {"decision": "detected", "wsr": 0.7, "wfpr": 0.1, "sub_keys": [part] * sub_keys}
    return {
        "utility": {name: {"linear": 0.9, "knn": 0.8} for name in names},
        "verdicts": dict.fromkeys(names, verdict),
    }


FIGURES = {
    "gallery": lambda name="cat": gallery_figure(gallery(word=name)),
    "maps": lambda name="clean": maps_figure({name: feature_map()}),
    "bars": lambda name="clean": bars_figure(result([name, "stolen"])),
    "null": lambda name="clean": null_figure({name: null_plot()}),
    "carriers": lambda name="clean": carriers_figure({name: carrier_plot()}),
}


def words(figure) -> set[str]:
    """All text that the figure shows, read back from its SVG."""
    root = ElementTree.fromstring(svg_bytes(figure))
    return {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.parametrize("kind", FIGURES)
def test_the_same_data_gives_the_same_bytes_without_a_date(kind):
    first = svg_bytes(FIGURES[kind]())
    assert svg_bytes(FIGURES[kind]()) == first
    assert b"dc:date" not in first


@pytest.mark.parametrize("kind", FIGURES)
def test_the_readers_matplotlib_settings_neither_change_the_figure_nor_are_changed(kind):
    expected = svg_bytes(FIGURES[kind]())
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black", "savefig.dpi": 20}):
        before = {key: matplotlib.rcParams[key] for key in ("font.size", "svg.hashsalt")}
        backend = dict.__getitem__(matplotlib.rcParams, "backend")
        assert svg_bytes(FIGURES[kind]()) == expected
        assert {key: matplotlib.rcParams[key] for key in before} == before
        assert dict.__getitem__(matplotlib.rcParams, "backend") == backend


@pytest.mark.parametrize("kind", FIGURES)
def test_no_figure_needs_pyplot(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert svg_bytes(FIGURES[kind]())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: bars_figure(result(HOSTILE)),
        lambda: maps_figure(dict.fromkeys(HOSTILE, feature_map(1))),
        lambda: null_figure(dict.fromkeys(HOSTILE, null_plot(3))),
        lambda: gallery_figure(gallery(word="$\\frac{<&猫\x1b\udcff" + "_" * 99)),
    ],
)
def test_hostile_names_give_whole_xml_and_no_warning(draw):
    shown = words(draw())
    assert all(len(text) < 70 and text.isprintable() for text in shown)


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_refers_to_nothing_outside_itself(kind):
    for node in ElementTree.fromstring(svg_bytes(FIGURES[kind]())).iter():
        for key, value in node.attrib.items():
            if key.endswith("href"):
                assert value.startswith(("#", "data:"))


def test_a_dollar_sign_is_a_dollar_sign():
    assert "a $x$ b" in words(bars_figure(result(["a $x$ b"])))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("猫", "□"), ("a\tb", "a b"), ("x" * 99, "x" * 25 + "…"), ("$", "\\$")],
)
def test_label(text, shown):
    assert label(text) == shown


def test_gallery_draws_the_pixels_unchanged_in_their_places():
    shown = gallery(n=2, others=0)
    (axes,) = gallery_figure(shown).axes
    mosaic = np.asarray(axes.images[0].get_array())
    size, step = 4, 6
    rows = (shown.sources_a, shown.sources_b, shown.composites)
    assert mosaic.shape == (3 * step - 2, 2 * step - 2, 3)
    for row, group in enumerate(rows):
        for column, image in enumerate(group):
            part = mosaic[row * step : row * step + size, column * step : column * step + size]
            np.testing.assert_array_equal(part, image.permute(1, 2, 0).numpy())
    assert (mosaic[size:step] == 255).all()


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("others", [0, 1, 3, 9])
def test_gallery_of_any_size_stays_inside_the_figure(n, others):
    figure = gallery_figure(gallery(n=n, others=others, size=2))
    assert len(figure.axes) == 1 + (others > 0)
    for axes in figure.axes:
        x0, y0, x1, y1 = axes.get_position().extents
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1


def test_a_non_square_gallery_is_drawn():
    a = torch.zeros(2, 3, 4, 9, dtype=torch.uint8)
    assert svg_bytes(gallery_figure(Gallery(a, a, a, {}, "m", "a", "b", "t")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sources_a": images(2)},
        {"sources_b": images().float()},
        {"others": {"x\n": images(size=5)}},
        {"composites": images()[:, :1]},
        {"composites": images(0)},
        {"composites": images()[0]},
    ],
)
def test_a_gallery_of_unlike_tensors_is_refused_in_one_line(wrong):
    parts = {name: images() for name in ("sources_a", "sources_b", "composites")} | {"others": {}}
    with pytest.raises(DataError, match="expected") as caught:
        Gallery(**(parts | wrong), mixer="m", group_a="a", group_b="b", target="t")
    assert "\n" not in str(caught.value)


def test_maps_show_every_finite_point_of_every_kind_once():
    figure = maps_figure({"clean": feature_map(7)})
    drawn = [len(points.get_offsets()) for points in figure.axes[0].collections]
    assert drawn == [7] * 5


def test_maps_say_how_many_points_have_no_place():
    points = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [1.0, float("inf")]])
    figure = maps_figure({"x": FeatureMap(points, ("other", "other", "target"))})
    assert "2 points have no finite place" in words(figure)


def test_maps_legend_names_only_the_kinds_that_are_there():
    figure = maps_figure({"x": FeatureMap(torch.zeros(2, 2), ("other", "composite"))})
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["composite", "other"]


@pytest.mark.parametrize("n", [1, 3, 4, 5])
@pytest.mark.parametrize(
    ("draw", "part"),
    [(maps_figure, feature_map(1)), (null_figure, null_plot(5)), (carriers_figure, carrier_plot())],
)
def test_any_number_of_panels_is_drawn_and_named(draw, part, n):
    names = [f"encoder {k}" for k in range(n)]
    axes = draw(dict.fromkeys(names, part)).axes
    assert [one.get_title(loc="left") for one in axes if one.axison] == names


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(3, 2), ("other",)),
        (torch.zeros(1, 3), ("other",)),
        (torch.zeros(1, 2), ("?",)),
    ],
)
def test_a_feature_map_that_does_not_fit_is_refused(wrong):
    with pytest.raises(DataError, match="feature map"):
        FeatureMap(*wrong)


def test_null_histogram_counts_every_decoy_and_marks_those_that_fit_as_well():
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
    figure = null_figure({"x": NullPlot(values, 1.0, 0.5)})
    everyone, beyond = figure.axes[0].containers
    assert sum(bar.get_height() for bar in everyone) == 6
    assert sum(bar.get_height() for bar in beyond) == 3
    (line,) = [line for line in figure.axes[0].lines if line.get_xdata()[0] == 1.0]
    assert line.get_visible()
    assert "p = 0.5" in words(figure)


@pytest.mark.parametrize("statistic", [-1e6, 0.0, 1e6])
def test_the_key_is_always_inside_the_axis(statistic):
    low, high = null_figure({"x": null_plot(9, statistic)}).axes[0].get_xlim()
    assert low < statistic < high


@pytest.mark.parametrize(
    ("null", "statistic", "p"),
    [
        (torch.zeros(0), 1.0, 1.0),
        (torch.ones(5), 1.0, None),
        (torch.full((3,), float("nan")), float("nan"), float("nan")),
        (torch.zeros(4), None, 0.2),
    ],
)
def test_degenerate_nulls_are_drawn_without_nan(null, statistic, p):
    shown = words(null_figure({"x": NullPlot(null, statistic, p)}))
    assert not [text for text in shown if "nan" in text.lower() or "None" in text]


def test_every_carrier_is_counted_and_each_of_the_owners_has_a_stroke_at_its_place():
    plot = CarrierPlot(torch.tensor([0.0, 0.01, 0.1, 0.2, 0.4]), torch.tensor([0.2, 0.4]), 0.01)
    (axes,) = carriers_figure({"x": plot}).axes
    everyone, own = axes.containers
    assert sum(bar.get_height() for bar in everyone) == 5
    assert [bar.get_x() < 20 < bar.get_x() + bar.get_width() for bar in own].count(True) == 1
    assert sum(bar.get_height() for bar in own) == 2
    (strokes,) = axes.collections
    assert [one[0][0] for one in strokes.get_segments()] == pytest.approx([20.0, 40.0])


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(6), torch.full((6,), float("nan"))])
def test_carriers_of_which_nothing_is_known_are_drawn_without_nan(values):
    shown = words(carriers_figure({"x": CarrierPlot(values, values[:2], 1.0)}))
    assert not [text for text in shown if "nan" in text.lower()]


def test_bars_are_in_per_cent_and_whiskers_are_the_intervals():
    left, right = bars_figure(result(["stolen"])).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([90, 80])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([70, 10])
    spans = [list(line.get_xdata()) for line in right.lines if len(line.get_xdata()) == 2]
    assert spans == [pytest.approx([60, 80]), pytest.approx([0, 20])]


def test_bars_and_whiskers_are_by_the_same_reader():
    told = result(["stolen"])
    verdict = told["verdicts"]["stolen"] | {"reader": "knn", "wsr": 0.9}
    knn = {"wsr": 0.9, "wsr_interval": [0.85, 0.95], "wfpr": 0.1, "wfpr_interval": [0.05, 0.15]}
    verdict["sub_keys"] = [{"readers": verdict["sub_keys"][0]["readers"] | {"knn": knn}}]
    _, right = bars_figure({"verdicts": {"stolen": verdict}}).axes
    spans = [list(line.get_xdata()) for line in right.lines if len(line.get_xdata()) == 2]
    assert spans == [pytest.approx([85, 95]), pytest.approx([5, 15])]


@pytest.mark.parametrize("sub_keys", [0, 1, 3, 12])
def test_every_sub_key_has_its_own_whisker(sub_keys):
    _, right = bars_figure(result(["stolen"], sub_keys)).axes
    lines = [line for line in right.lines if len(line.get_xdata()) == 2]
    assert len(lines) == 2 * sub_keys
    assert len({float(line.get_ydata()[0]) for line in lines}) == 2 * sub_keys


def test_missing_values_are_dashes_not_nan():
    sub_keys = [{}, {"readers": None}, {"readers": {"knn": {"wsr": 0.1, "wsr_interval": None}}}]
    data = {
        "utility": {"clean": {"linear": None}, "only utility": None},
        "verdicts": {"x": {"decision": "detected", "wsr": float("nan"), "sub_keys": sub_keys}},
    }
    shown = words(bars_figure(data))
    assert "–" in shown
    assert {"clean", "only utility", "x"} <= shown
    assert not [text for text in shown if "nan" in text.lower() or "None" in text]


def test_many_encoders_make_a_taller_figure():
    few, many = (bars_figure(result([str(k) for k in range(n)])) for n in (2, 30))
    assert many.get_figheight() > 5 * few.get_figheight()


@pytest.mark.parametrize("draw", [bars_figure, maps_figure, null_figure, carriers_figure])
def test_a_figure_of_nothing_is_refused(draw):
    with pytest.raises(VerificationError, match="at least one encoder"):
        draw({})
