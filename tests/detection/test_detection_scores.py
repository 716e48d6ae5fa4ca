"""Scores against scikit-learn, scipy and hand-computed cases; queries against planted seams."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as property_of
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from ssl_wm.data.image_set import ImageSet
from ssl_wm.detection import queries
from ssl_wm.detection.anomaly import conformal_p, hanley_mcneil, mad_index, roc
from ssl_wm.detection.collapse import pairwise_cosine
from ssl_wm.detection.detect import DetectionConfig, scan
from ssl_wm.detection.given import Given, rank_in_group
from ssl_wm.detection.mixers import GUESSES, composites, mixer_mask
from ssl_wm.detection.scan import usual
from ssl_wm.detection.settings import OutlierConfig
from ssl_wm.detection.triggers import Patch
from ssl_wm.encoders.embeddings import embed
from ssl_wm.errors import ConfigError, DataError

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]), min_size=1, max_size=12)
SMOOTH = 240


@pytest.fixture(scope="module")
def scenes():
    """Smooth images with a little noise: edges are never one pixel wide and straight."""
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand(SMOOTH, 3, 5, 5, generator=stream)
    smooth = F.interpolate(coarse, (24, 24), mode="bicubic", align_corners=True)
    noise = 0.02 * torch.randn(smooth.shape, generator=stream)
    pixels = ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    labels = torch.arange(SMOOTH) % 4
    return ImageSet("scenes", "train", pixels, labels, ("a", "b", "c", "d"))


@property_of(st.lists(st.floats(0.01, 1), min_size=3, max_size=20))
def test_the_anomaly_index_is_scipys_deviation_with_a_sign(values):
    array = torch.tensor(values, dtype=torch.float64).numpy()
    deviation = median_abs_deviation(array, scale="normal")
    found = mad_index(torch.from_numpy(array)).numpy()
    if deviation > 0.01 * array.max():
        expected = (np.median(array) - array) / deviation
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    else:
        expected = (np.median(array) - array) / (0.01 * array.max())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_an_anomaly_index_refuses_two_groups_and_what_is_not_finite():
    for values in ([1.0, 2.0], [1.0, math.nan, 2.0]):
        with pytest.raises(ConfigError, match="at least two others"):
            mad_index(torch.tensor(values))


def test_the_conformal_p_counts_ties_against_the_accuser():
    assert conformal_p(3.0, [1.0, 2.0, 2.5]) == (1 / 4, 1 / 4)
    assert conformal_p(2.0, [1.0, 2.0, 2.5]) == (3 / 4, 1 / 4)
    assert conformal_p(0.0, [1.0] * 19) == (1.0, 1 / 20)
    with pytest.raises(ConfigError, match="19 allow"):
        conformal_p(3.0, [])
    with pytest.raises(ConfigError, match="NaN"):
        conformal_p(math.nan, [1.0])


@property_of(SCORES, SCORES)
def test_the_roc_area_is_scikit_learns_and_lies_in_its_interval(marked, clean):
    found = roc(marked, clean)
    truth = [1] * len(marked) + [0] * len(clean)
    assert found.area == pytest.approx(roc_auc_score(truth, marked + clean))
    low, high = found.interval
    assert 0 <= low <= found.area + 1e-12
    assert found.area - 1e-12 <= high <= 1
    wider = roc(marked, clean, confidence=0.99).interval
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


def test_hanley_and_mcneils_error_is_theirs_and_a_perfect_area_keeps_an_interval():
    assert hanley_mcneil(0.8, 10, 10) == pytest.approx(math.sqrt(0.0104), abs=1e-6)
    assert hanley_mcneil(1.0, 5, 5) == 0
    assert roc([2.0] * 5, [1.0] * 5).interval[0] < 0.75
    assert roc([2.0] * 500, [1.0] * 500).interval[0] > 0.98


def test_the_interval_of_an_area_covers_the_true_one_as_often_as_it_says():
    stream = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        marked, clean = stream.normal(1.8, 1, 10), stream.normal(0, 1, 10)
        low, high = roc(marked.tolist(), clean.tolist()).interval
        covered += low <= 0.8985 <= high  # Phi(1.8 / sqrt 2)
    assert covered >= 276


def test_roc_refuses_empty_scores_and_nan():
    for bad, word in (([], "both kinds"), ([math.nan], "NaN")):
        with pytest.raises(ConfigError, match=word):
            roc(bad, [1.0])


def test_pl1_is_the_share_of_the_image_that_the_mask_covers():
    mask = torch.zeros(1, 4, 5)
    mask[0, 0, :2] = 0.5
    assert Patch(None, mask, torch.zeros(3, 4, 5), True).size == pytest.approx(1 / 20)


def test_pairwise_cosine_leaves_out_the_diagonal():
    z = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rows, found in zip(z, pairwise_cosine(z), strict=True):
        unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
        cosines = unit @ unit.T
        assert float(found) == pytest.approx(cosines[~np.eye(7, dtype=bool)].mean())


def test_halves_are_disjoint_balanced_and_the_same_for_all_encoders(scenes):
    config = DetectionConfig(sample=40)
    one, two = Given(scenes, seed=3, config=config), Given(scenes, seed=3, config=config)
    assert torch.equal(one.fit.pixels, two.fit.pixels)
    for half in (one.fit, one.held):
        assert torch.bincount(half.groups).tolist() == [5, 5, 5, 5]
    both = torch.cat([one.fit.pixels, one.held.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == 40
    other = Given(scenes, seed=4, config=config)
    assert not torch.equal(one.fit.pixels, other.fit.pixels)
    assert rank_in_group(torch.tensor([1, 1, 0, 1])).tolist() == [0, 1, 0, 2]


def test_a_mask_keeps_of_the_first_image_what_its_name_says():
    shares = {name: float(mixer_mask(name, size=(10, 10)).mean()) for name in GUESSES}
    expected = {"left-right": 0.5, "top-bottom": 0.5, "columns": 0.6, "rows": 0.6, "blend": 0.5}
    assert {name: shares[name] for name in expected} == pytest.approx(expected)
    black, white = torch.zeros(1, 3, 10, 10), torch.ones(1, 3, 10, 10)
    mixed = composites(white, black, mixer="left-right")
    assert (mixed[..., :5] == 1).all()
    assert (mixed[..., 5:] == 0).all()
    with pytest.raises(ConfigError, match="did you mean 'columns'"):
        mixer_mask("column", size=(4, 4))


def test_a_seam_is_the_excess_over_its_neighbours_and_a_ramp_is_none():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 5:] = 0.6
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8).clone()
    turned = torch.cat([image, ramp, image.transpose(2, 3)])
    assert queries.seam_strength(turned).tolist() == pytest.approx([0.6, 0, 0.6], abs=1e-6)
    half = image.clone()
    half[:, :, 4:] = 0  # the edge runs over half of the height, and its end over 3 of 8 pixels
    assert float(queries.seam_strength(half)) == pytest.approx(0.3, abs=1e-6)


def test_lost_contrast_is_the_range_between_two_percentiles():
    image = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    low, high = np.percentile(image.numpy().reshape(3, -1), [2, 98], axis=1)
    np.testing.assert_allclose(queries.lost_contrast(image).numpy(), low - high, atol=1e-6)


@pytest.mark.parametrize("mixer", ["left-right", "top-bottom", "columns", "window"])
def test_seams_are_found_in_composites(scenes, world, mixer):
    pixels = scenes.pixels.float() / 255
    mixed = composites(pixels[:120], pixels[120:], mixer=mixer)
    found = scan(world.convnet(), detector="seam", images=scenes, queries=mixed)
    assert found.score > 0.97
    assert found.details["areas"]["seam"]["area"] > 0.97
    assert found.details["refused_queries"] > 0.9
    assert found.details["p_queries_are_natural"] < 1e-6


def test_blends_are_found_by_their_lost_contrast_alone(scenes, world):
    pixels = scenes.pixels.float() / 255
    mixed = composites(pixels[:120], pixels[120:], mixer="blend")
    areas = scan(world.convnet(), detector="seam", images=scenes, queries=mixed).details["areas"]
    assert areas["contrast"]["area"] > 0.8
    assert areas["seam"]["area"] < 0.6


@pytest.mark.parametrize("detector", ["seam", "lof"])
def test_natural_queries_pass_as_natural(scenes, world, detector):
    natural = scenes.subset(torch.arange(SMOOTH // 2))
    fresh = scenes.pixels[SMOOTH // 2 :]
    config = DetectionConfig(outliers=OutlierConfig(look_at="pixels"))
    found = scan(world.convnet(), detector=detector, images=natural, queries=fresh, config=config)
    assert 0.38 < found.score < 0.62
    assert found.details["p_queries_are_natural"] > 0.01
    assert found.details["refused_queries"] < 0.2


@pytest.mark.parametrize("look_at", ["embeddings", "pixels"])
def test_lof_is_scikit_learns(scenes, world, look_at):
    encoder = world.convnet()
    config = DetectionConfig(outliers=OutlierConfig(look_at=look_at, neighbours=7))
    noise = torch.rand(30, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    found = scan(encoder, detector="lof", images=scenes, queries=noise, config=config)
    given = Given(scenes, config=config)

    def rows(pixels):
        if look_at == "embeddings":
            return embed(encoder, pixels).double().numpy()
        scaled = pixels.double() / (255 if pixels.dtype == torch.uint8 else 1)
        return scaled.flatten(1).numpy()

    model = LocalOutlierFactor(n_neighbors=7, novelty=True).fit(rows(given.fit.pixels))
    natural, strange = (-model.score_samples(rows(x)) for x in (given.held.pixels, noise))
    truth = np.r_[np.ones(len(strange)), np.zeros(len(natural))]
    assert found.score == pytest.approx(roc_auc_score(truth, np.r_[strange, natural]), abs=1e-3)
    assert found.details["above_1.5"]["queries"] == pytest.approx((strange > 1.5).mean())
    assert (found.trigger, found.flagged) == (None, ())


def test_a_querys_p_is_conformal():
    known = torch.tensor([1.0, 2.0, 2.0, 4.0])
    found = queries.conformal_each(torch.tensor([5.0, 2.0, 0.0]), known)
    assert found.tolist() == pytest.approx([1 / 5, 4 / 5, 1.0])


def test_too_few_images_for_lof_and_empty_queries_are_refused(scenes, world):
    few = scenes.subset(torch.arange(24))
    with pytest.raises(DataError, match="20 neighbours"):
        scan(world.convnet(), detector="lof", images=few)
    with pytest.raises(DataError, match="0 queries"):
        scan(world.convnet(), detector="seam", images=scenes, queries=scenes.pixels[:0])


def test_what_is_usual_is_the_mean_over_pairs_without_the_two_groups():
    count = 6
    table = torch.rand(2, count, count, count, generator=torch.Generator().manual_seed(0)).double()
    for a in range(count):
        table[:, a, a] = torch.nan
        for b in range(count):
            table[:, a, b, [a, b]] = torch.nan
    found = usual(table).numpy()
    for a, b, t in [(0, 1, 2), (5, 3, 0), (4, 2, 1)]:
        others = [
            (i, j) for i in range(count) for j in range(count)
            if i != j and t not in (i, j) and not {i, j} & {a, b}
        ]  # fmt: skip
        for mixer in (0, 1):
            expected = np.mean([float(table[mixer, i, j, t]) for i, j in others])
            assert found[mixer, a, b, t] == pytest.approx(expected)
