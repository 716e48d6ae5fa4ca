"""What a suspect knows of carriers, against scikit-learn, scipy and all draws there are."""

from __future__ import annotations

import copy
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.encoders.space import leading_axes
from ssl_wm.errors import VerificationError
from ssl_wm.report.shown import carrier_plot, null_plot
from ssl_wm.verification.answers import ask
from ssl_wm.verification.carried import (
    Base,
    both,
    carried_p_value,
    carried_ranks,
    carried_shares,
    carried_statistics,
    least_p_value,
    rank_sum_tail,
)
from ssl_wm.verification.questions import REFERENCE
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import base_of, clean_base, verify
from ssl_wm.watermark.bend_settings import BendSpaceConfig
from ssl_wm.watermark.bend_space import BendSpace
from ssl_wm.watermark.carriers import (
    EACH,
    Carriers,
    axes_of,
    axis_pairs,
    carrier_values,
    own_carriers,
)

READ = {"per_pair": 8, "recipes": 0, "reference": 20, "trigger_count": 24, "neighbours": 5}
CONFIG = VerifyConfig(read=ReadConfig(**READ), draws=999)


def space(rows=600, width=7, seed=0):
    draw = np.random.default_rng(seed)
    z = torch.from_numpy(draw.normal(size=(rows, width)) * np.linspace(3, 1, width))
    return Base(z, carrier_values(z, leading_axes(z, count=5)))


def suspect_of(base, *, places=(1, 4), strength=0.5, seed=1):
    """Return answers that carry some carriers, behind a mixing matrix and with noise."""
    draw = torch.Generator().manual_seed(seed)
    layer = Carriers(
        leading_axes(base.z, count=5), places, base.z, strength=strength, generator=draw
    )
    noise = torch.randn(base.z.shape, generator=draw, dtype=torch.float64)
    mixing = torch.randn(7, 7, generator=draw, dtype=torch.float64)
    return (base.z + layer(base.z) + 0.3 * noise) @ mixing


def test_a_share_is_the_partial_r2_of_least_squares():
    from sklearn.linear_model import LinearRegression

    base = space()
    z = suspect_of(base)
    values = base.carriers.numpy()
    alone = LinearRegression().fit(base.z, values).predict(base.z)
    joint = np.concatenate([base.z.numpy(), z.numpy()], axis=1)
    together = LinearRegression().fit(joint, values).predict(joint)
    left = ((values - alone) ** 2).sum(axis=0)
    expected = 1 - ((values - together) ** 2).sum(axis=0) / left
    assert np.allclose(carried_shares(z, base), expected, atol=1e-6)


def test_the_carriers_that_were_added_are_known_best():
    base = space()
    shares = carried_shares(suspect_of(base), base)
    assert set(shares.topk(2).indices.tolist()) == {1, 4}


def test_the_clean_encoder_and_its_rotations_know_nothing_further():
    base = space()
    turned = base.z.float() @ torch.linalg.qr(torch.randn(7, 7))[0]
    for z in (base.z, base.z.float(), turned):
        assert carried_shares(z, base).abs().max() == 0


@settings(max_examples=25)
@given(
    st.integers(0, 2**31), st.floats(1e-12, 1e12), st.floats(-100, 100),
    st.sampled_from(["rotation", "permutation", "mixing"]),
)  # fmt: skip
def test_no_rotation_permutation_scaling_or_shift_changes_a_share(seed, scale, shift, kind):
    base = space()
    z = suspect_of(base)
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(7, 7, generator=draw, dtype=torch.float64))[0]
    if kind == "permutation":
        matrix = torch.eye(7, dtype=torch.float64)[torch.randperm(7, generator=draw)]
    elif kind == "mixing":
        stretch = torch.rand(7, generator=draw, dtype=torch.float64) + 0.5
        matrix = matrix * stretch
    other = scale * (z @ matrix + shift)
    assert torch.allclose(carried_shares(z, base), carried_shares(other, base), atol=1e-5)


def test_what_all_networks_know_is_taken_off():
    draw = np.random.default_rng(0)
    easy, other, suspect = (draw.uniform(size=30) for _ in range(3))
    given = np.stack([np.ones(30), easy, other], axis=1)
    expected = suspect - given @ np.linalg.lstsq(given, suspect, rcond=None)[0]
    nulls = [torch.from_numpy(easy), torch.zeros(30, dtype=torch.float64), torch.from_numpy(other)]
    assert np.allclose(carried_statistics(torch.from_numpy(suspect), nulls), expected, atol=1e-12)


def test_the_rank_sum_has_its_exact_null():
    count, tail = 7, rank_sum_tail(2, each=EACH, count=7)
    draws = list(combinations(range(1, count + 1), EACH))
    sums = np.array([sum(one) + sum(other) for one, other in product(draws, draws)])
    for least in range(len(tail)):
        assert tail[least] == pytest.approx((sums >= least).mean(), abs=1e-12)
    assert least_p_value([[1, 2, 3], [1, 2, 3]], count=7) == pytest.approx(tail[sums.max()])


def test_the_least_p_is_that_of_the_best_places_there_are_for_carriers_that_sub_keys_share():
    own = [[0, 1, 2], [2, 3, 4]]
    places = permutations(range(3, 8))  # five carriers on the five best places of seven
    sums = [sum(each) + each[2] for each in places]
    tail = rank_sum_tail(2, each=EACH, count=7)
    assert least_p_value(own, count=7) == pytest.approx(tail[max(sums)])


def test_one_sub_keys_p_is_that_of_the_wilcoxon_rank_sum_test():
    from scipy.stats import mannwhitneyu

    ranks = np.array([[3, 8, 11]])
    rest = [rank for rank in range(1, 13) if rank not in ranks]
    theirs = mannwhitneyu(ranks[0], rest, alternative="greater", method="exact").pvalue
    assert carried_p_value(ranks, count=12) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_over_all_draws_p_is_at_most_alpha(ties):
    draw = np.random.default_rng(3)
    values = draw.integers(0, 3, 8) if ties else draw.normal(size=8)
    statistics = torch.from_numpy(np.asarray(values, dtype=float))
    own = list(combinations(range(8), EACH))
    p = np.array([
        carried_p_value(carried_ranks(statistics, [one, other]), count=8)
        for one, other in product(own, own)
    ])  # fmt: skip
    for alpha in (0.001, 0.01, 0.05, 0.1, 0.3, 0.7):
        assert (p <= alpha + 1e-12).mean() <= alpha + 1e-12


def test_two_p_values_combine_as_fisher_says():
    from scipy.stats import combine_pvalues

    for one, other in ((0.2, 0.03), (1e-9, 0.9), (0.5, 1.0)):
        assert both(one, other) == pytest.approx(combine_pvalues([one, other]).pvalue)


# --- in a verdict --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(world, images, clean):
    bound = {"carriers": EACH, "encoder": encoder_digest(clean)}
    return world.key(images, number=4, sub_keys=2, **bound)


@pytest.fixture(scope="module")
def carrying(clean, images, two):
    """Return the clean encoder with the carriers of the key and no other mark."""
    embedder = BendSpace(clean, images.train, two, config=BendSpaceConfig(steps=0, pool=8))
    return embedder.marked()


def test_an_encoder_with_the_carriers_alone_is_detected_by_them(clean, carrying, images, two):
    verdict = verify(carrying, key=two, images=images, nulls=[clean], config=CONFIG)
    tests = {test.name: test for test in verdict.tests}
    assert tests["C"].p_value < 1e-3
    assert verdict.decision == "detected"
    assert verdict.p_value == pytest.approx(both(tests["A1"].p_value, tests["C"].p_value))
    count = len(axis_pairs(axes_of(clean, images.train)))
    ranks = np.array([sub.carriers for sub in verdict.sub_keys])
    assert carried_p_value(ranks, count=count) == tests["C"].p_value


def test_what_is_drawn_of_a_verdict_is_what_each_test_ranked(clean, carrying, images, two):
    verdict = verify(carrying, key=two, images=images, nulls=[clean], config=CONFIG)
    tests = {test.name: test for test in verdict.tests}
    assert null_plot(verdict).p_value == tests["A1"].p_value
    plot = carrier_plot(verdict)
    base = clean_base([clean], two, images, config=CONFIG)
    shares = carried_shares(ask(carrying, two, images, config=CONFIG.read)(REFERENCE), base)
    known = carried_statistics(shares, [])
    assert plot.p_value == tests["C"].p_value
    assert torch.allclose(plot.values, known, atol=1e-9)
    own = [place for places in own_carriers(two, count=len(known)) for place in places]
    assert torch.allclose(plot.own.sort().values, known[own].sort().values, atol=1e-9)
    assert plot.own.min() > plot.values.median()


def test_an_encoder_without_them_is_not(clean, images, two):
    other = copy.deepcopy(clean)
    draw = torch.Generator().manual_seed(0)
    noisy = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=draw)
    other.backbone.matrix.copy_(noisy)
    verdict = verify(other, key=two, images=images, nulls=[clean], config=CONFIG)
    assert verdict.decision == "not_detected"


def test_natural_images_alone_suffice(clean, carrying, images, two):
    config = CONFIG.model_copy(update={"read": ReadConfig(**READ, natural_only=True)})
    verdict = verify(carrying, key=two, images=images, nulls=[clean], config=config)
    assert [test.name for test in verdict.tests] == ["A1", "C", "B"]
    assert verdict.tests[1].p_value < 1e-3


def test_labels_rest_on_composites_alone(clean, carrying, images, two):
    config = CONFIG.model_copy(update={"access": "labels"})
    assert clean_base([clean], two, images, config=config) is None
    verdict = verify(carrying, key=two, images=images, nulls=[clean], config=config)
    assert "C" not in {test.name for test in verdict.tests}
    assert verdict.p_value == verdict.tests[0].p_value


def test_a_key_without_carriers_marks_none_and_reads_none(world, images, clean):
    key = world.key(images, number=4, sub_keys=2)
    embedder = BendSpace(clean, images.train, key, config=BendSpaceConfig(steps=0, pool=8))
    assert embedder.bend.carriers is None
    verdict = verify(embedder.marked(), key=key, images=images, nulls=[clean], config=CONFIG)
    assert "C" not in {test.name for test in verdict.tests}
    assert carrier_plot(verdict) is None
    assert "carriers" not in key.terms.content


def test_carriers_are_read_against_the_encoder_that_the_key_commits_to(world, images, clean):
    other = Encoder(copy.deepcopy(clean.backbone), preprocessing=clean.preprocessing).eval()
    other.backbone.scale.fill_(2.0)

    key = world.key(images, sub_keys=2, carriers=EACH, encoder=encoder_digest(clean))
    base = clean_base([other, clean], key, images, config=CONFIG)
    assert base is not None
    expected = base_of(clean, key, images, config=CONFIG.read)
    assert torch.equal(base.z, expected.z)
    assert torch.equal(base.carriers, expected.carriers)
    with pytest.raises(VerificationError, match="no null encoder is that one"):
        verify(other, key=key, images=images, nulls=[other], config=CONFIG)


def test_all_sub_keys_together_are_one_independent_draw_each(two):
    key = two
    one, other = own_carriers(key, count=190)
    assert len(one) == len(other) == EACH
    assert one != other
