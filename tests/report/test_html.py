# ruff: noqa: RUF001 (a dash stands for what is not known)
from __future__ import annotations

import base64
import re

import pytest
import torch
from html_page import Page

from ssl_wm import report
from ssl_wm.errors import VerificationError
from ssl_wm.report import (
    FeatureMap,
    Gallery,
    NullPlot,
    ReportData,
    render_html,
    result_table,
    verdict_sentence,
    verdict_table,
)

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&\udcff\x00'


def data(word: str | None = None, **changes) -> ReportData:
    """A small whole report; ``word`` takes the place of every name in it."""

    def name(usual: str) -> str:
        return usual if word is None else f"{usual}{word}"

    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    reader = {"wsr": 0.713, "wsr_interval": [0.68, 0.75], "wfpr": 0.034, "wfpr_interval": [0, 0.05]}
    part = {"margin": 0.48, "statistic": 6.9, "p_value": 0.0008, "rank": 3, "decoys": 3600}
    verdict = {"alpha": 0.01, "wsr": 0.713, "wfpr": 0.034, "reason": name("combined")}
    verdict["sub_keys"] = [part | {"readers": {name("linear"): reader}}]
    verdicts = {
        name("watermarked"): verdict | {"decision": "detected", "p_value": 1 / 3601},
        name("stolen"): verdict | {"decision": "detected", "p_value": 0.0008},
        name("independent"): verdict | {"decision": "not_detected", "p_value": 0.412},
    }
    utility = {name("clean"): {"linear": 0.921, "knn": 0.953}, name("stolen"): {"linear": 0.907}}
    points = FeatureMap(torch.eye(2), ("source A", "composite"))
    null = NullPlot(torch.linspace(-1, 1, 9), 3.0, 0.1)
    parts = {
        "title": name("a demo"),
        "result": {"utility": utility, "verdicts": verdicts},
        "gallery": Gallery(
            pixels, pixels, pixels, {name("stripes"): pixels},
            name("left | right"), name("cat"), name("dog"), name("bird"),
        ),
        "maps": {name("clean"): points},
        "nulls": {name("stolen"): null},
        "settings": {"seed": 0, name("versions"): {name("torch"): name("2")}},
    }  # fmt: skip
    return ReportData(**(parts | changes))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(data()))


SECTIONS = ["verdicts", "story", "results", "composites", "maps", "null", "terms", "settings"]


def test_the_sections_stand_in_the_order_of_the_story(page):
    assert page.ids == SECTIONS


def test_the_page_loads_nothing():
    html = render_html(data())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bhref\b", html)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "base",
        "form",
    }
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 4
    for source in sources:
        head, content = source.split(",")
        assert head == "data:image/svg+xml;base64"
        image = base64.b64decode(content, validate=True)
        assert image.rstrip().endswith(b"</svg>")
        assert b"<script" not in image


def test_the_browser_is_told_to_load_nothing(page):
    (policy,) = [
        attrs["content"]
        for _, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_image_is_described_in_words(page):
    assert all(len(attrs["alt"]) > 20 for tag, attrs in page.tags if tag == "img")


def test_the_verdicts_come_first_and_in_words(page):
    assert page.words.index("Fewer than 1 in 1,000") < page.words.index("What was done")
    for part in (
        "The owner's mark is in watermarked and stolen. It is not found in independent.",
        "stolen Detected Fewer than 1 in 1,000 random keys fit this encoder as well as the",
        "independent Not detected About 42 in 100 random keys",
        "p-value (limit 0.01) 0.0008 WSR 71.3 % WFPR 3.4 %",
    ):
        assert part in page.words


def test_the_story_quotes_the_results(page):
    assert "A linear probe on it reaches 92.1 %." in page.words
    assert "The copy reaches 90.7 %." in page.words
    assert "with 3,600 random decoy keys" in page.words


def test_the_tables_hold_the_numbers(page):
    assert "clean 92.1 95.3 – – – –" in page.words
    assert "stolen 90.7 – detected 0.0008 71.3 3.4" in page.words
    assert "stolen 1 0.48 – 6.9 0.0008 3 3,600 71.3 [68.0, 75.0] 3.4 [0.0, 5.0]" in page.words


def test_the_terms_give_the_limit_as_odds(page):
    assert "here 0.01, or 1 in 100." in page.words


def test_the_same_data_gives_the_same_page():
    assert render_html(data()) == render_html(data())


def test_hostile_names_stay_text():
    html = render_html(data(HOSTILE))
    page = Page(html)
    assert {tag for tag, _ in page.tags if tag in ("script", "svg")} == set()
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.ids == SECTIONS
    assert html.count("&lt;script&gt;") >= 15
    assert html.encode()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"gallery": None}, ["composites"]),
        ({"maps": {}}, ["maps"]),
        ({"nulls": {}}, ["null"]),
        ({"settings": {}}, ["settings"]),
        ({"settings": {"empty": {}}}, ["settings"]),
        ({"result": {}}, ["verdicts", "story", "results"]),
        ({"result": {"utility": {"x": {}}, "verdicts": None}}, ["verdicts", "story"]),
    ],
)
def test_a_missing_part_leaves_out_its_section_alone(changes, gone):
    small = {"gallery": None, "maps": {}, "nulls": {}} | changes
    dropped = {"gallery": "composites", "maps": "maps", "nulls": "null"}
    gone = {*gone, *(section for key, section in dropped.items() if not small[key])}
    assert Page(render_html(data(**small))).ids == [s for s in SECTIONS if s not in gone]


def test_a_report_without_verdicts_says_so():
    html = render_html(ReportData("t", {}, None, {}, {}, {}))
    assert "No encoder was verified in this run." in html


def test_unknown_numbers_are_dashes_everywhere():
    nan = float("nan")
    part = {"margin": nan, "readers": {"linear": {"wsr": nan, "wsr_interval": [nan, None]}}}
    verdict = {"decision": "inconclusive", "p_value": nan, "alpha": None, "wsr": nan, "wfpr": None}
    result = {
        "utility": {"clean": {"linear": nan, "knn": None}},
        "verdicts": {"stolen": verdict | {"reason": None, "sub_keys": [part, {}]}},
    }
    html = render_html(data(result=result, gallery=None, maps={}, nulls={}, settings={"a": nan}))
    words = Page(html).words
    assert not re.search(r"\b(nan|none|inf)\b", words, re.IGNORECASE)
    assert "p-value – WSR – WFPR –" in words
    assert "The evidence on stolen does not decide." in words
    assert "clean – – – – – –" in words


def test_reasons_are_shown_once():
    verdict = {"decision": "inconclusive", "reason": "only four decoys are disjoint"}
    html = render_html(ReportData("t", {"verdicts": {"x": verdict}}, None, {}, {}, {}))
    assert html.count("only four decoys are disjoint") == 1


def test_a_headline_of_many_encoders_counts_them():
    verdicts = {f"copy {k}": {"decision": "detected", "p_value": 0.001} for k in range(5)}
    verdicts["null"] = {"decision": "not_detected", "p_value": 0.5}
    html = render_html(ReportData("t", {"verdicts": verdicts}, None, {}, {}, {}))
    assert "mark is in 5 of 6 encoders. It is not found in 1 of 6 encoders." in Page(html).words


def test_a_headline_without_detection_does_not_speak_of_it():
    verdicts = {"a": {"decision": "not_detected", "p_value": 0.5}}
    html = render_html(ReportData("t", {"verdicts": verdicts}, None, {}, {}, {}))
    assert "The owner's mark is not found in a." in Page(html).words


def test_differing_limits_are_not_given_as_one():
    verdicts = {
        name: {"decision": "not_detected", "p_value": 0.5, "alpha": alpha}
        for name, alpha in (("a", 0.01), ("b", 0.05))
    }
    html = render_html(ReportData("t", {"verdicts": verdicts}, None, {}, {}, {}))
    assert "is held against." in Page(html).words


def test_an_unknown_decision_is_refused():
    with pytest.raises(VerificationError, match="expected one of detected"):
        render_html(ReportData("t", {"verdicts": {"a": {"decision": "?"}}}, None, {}, {}, {}))


def test_the_reports_verbs_are_at_hand_in_one_place():
    assert {render_html, result_table, verdict_sentence, verdict_table} <= {
        getattr(report, name) for name in report.__all__
    }
