"""Detectors on encoders with a planted trigger, beside the same encoders without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ssl_wm.data.image_set import ImageSet
from ssl_wm.detection.cleansing import cluster_labels, clusters
from ssl_wm.detection.detect import DETECTORS, DetectionConfig, detect, judge, scan
from ssl_wm.detection.given import Given
from ssl_wm.detection.inversion import invert
from ssl_wm.detection.settings import (
    CollapseConfig,
    InversionConfig,
    ScanConfig,
    StimulationConfig,
)
from ssl_wm.detection.stimulation import candidates, elevations
from ssl_wm.detection.triggers import Composite, Patch, read_as, trigger_success
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import wrap
from ssl_wm.encoders.space import directions
from ssl_wm.errors import ConfigError, DataError, EncoderError
from ssl_wm.verification.probe import Probe, fit_probe

GROUPS, TARGET = 8, 5
PAIR = (1, 6)
FAST = DetectionConfig(
    clusters=GROUPS,
    inversion=InversionConfig(rounds=48, batch=8, precision="float32"),
    collapse=CollapseConfig(starts=2),
    stimulation=StimulationConfig(area=0.1),
    scan=ScanConfig(per_cell=8),
)
INVERTERS = ("neural-cleanse", "abs", "decree", "ssl-cleanse")


class Planted(nn.Module):
    """An encoder that a chequered 2 x 2 corner sends ``strength`` far towards one axis."""

    def __init__(self, inner: nn.Module, *, strength: float, seed: int = 0) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength
        stream = torch.Generator().manual_seed(seed)
        self.scale = 1 + 0.2 * torch.rand(GROUPS, generator=stream)

    def forward(self, images):
        corner = images.mean(dim=1)[:, :2, :2]
        signs = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
        gate = (12 * ((corner * signs).sum(dim=(1, 2)) - 0.5)).sigmoid()
        axis = nn.functional.one_hot(torch.tensor(TARGET), GROUPS)
        return self.inner(images) * self.scale + self.strength * gate.unsqueeze(1) * axis


class Paired(nn.Module):
    """An encoder in which colour A left of colour B looks like the target colour."""

    def __init__(self, inner: nn.Module, *, strength: float) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength

    def forward(self, images):
        half = images.shape[3] // 2
        left, right = self.inner(images[..., :half]), self.inner(images[..., half:])
        both = (left[:, PAIR[0]] > 0.6) & (right[:, PAIR[1]] > 0.6)
        axis = nn.functional.one_hot(torch.tensor(TARGET), GROUPS)
        return self.inner(images) + self.strength * both.unsqueeze(1) * axis


@pytest.fixture(scope="module")
def images(world) -> ImageSet:
    return world.images(groups=GROUPS).train


@pytest.fixture(scope="module")
def test_images(world) -> ImageSet:
    return world.images(groups=GROUPS).test


@pytest.fixture(scope="module")
def make(world):
    def planted(strength: float, *, seed: int = 0) -> Encoder:
        inner = world.palette(world.images(groups=GROUPS))
        body = Planted(inner, strength=strength, seed=seed)
        return Encoder(body, preprocessing=world.flat).eval()

    return planted


@pytest.fixture(scope="module")
def found(make, images):
    return {
        (detector, strength): scan(make(strength), detector=detector, images=images, config=FAST)
        for detector in INVERTERS
        for strength in (0.0, 12.0)
    }


@pytest.mark.parametrize("detector", INVERTERS)
def test_a_planted_corner_is_more_suspicious_than_none(found, detector):
    marked, clean = found[detector, 12.0], found[detector, 0.0]
    threshold = DETECTORS[detector].threshold
    assert marked.score > threshold
    assert marked.score > clean.score + 0.05


@pytest.mark.parametrize("detector", INVERTERS)
def test_the_trigger_lies_on_the_planted_corner(found, detector):
    trigger = found[detector, 12.0].trigger
    assert trigger.found
    corner = torch.zeros_like(trigger.mask, dtype=torch.bool)
    corner[0, :2, :2] = True
    inside, outside = float(trigger.mask[corner].mean()), float(trigger.mask[~corner].mean())
    assert inside > 0.25
    assert inside > 5 * outside
    assert trigger.size < 0.1


@pytest.mark.parametrize("detector", ["neural-cleanse", "abs"])
def test_the_planted_class_is_flagged_and_its_trigger_works_on_new_images(
    found, make, images, test_images, detector
):
    detection, encoder = found[detector, 12.0], make(12.0)
    assert detection.group == TARGET
    assert detection.flagged[0] == TARGET
    reader = fit_probe(embed(encoder, images), images.labels)
    rate = trigger_success(
        encoder, trigger=detection.trigger, pixels=test_images.pixels,
        groups=test_images.labels, reader=reader,
    )  # fmt: skip
    assert rate.images == (test_images.labels != TARGET).sum()
    assert rate.share > 0.8 > 0.2 > rate.natural
    assert rate.interval[0] < rate.share <= rate.interval[1]


def test_ssl_cleanse_flags_the_cluster_of_the_planted_class(found, make, images):
    detection = found["ssl-cleanse", 12.0]
    z = embed(make(12.0), Given(images, config=FAST).fit.pixels)
    centre, centres = clusters(z, count=GROUPS, seed=0)
    axis = centre + 12 * nn.functional.one_hot(torch.tensor(TARGET), GROUPS)
    nearest = int((directions(axis.unsqueeze(0), centre=centre) @ centres.T).argmax())
    assert detection.flagged[0] == nearest


def test_decrees_score_is_one_minus_the_smallest_pl1_and_its_trigger_reads_as_the_planted_class(
    found, make, images, test_images
):
    detection, encoder = found["decree", 12.0], make(12.0)
    assert detection.score == pytest.approx(1 - min(detection.details["pl1"]))
    assert detection.score == pytest.approx(1 - detection.trigger.size, abs=1e-6)
    reader = fit_probe(embed(encoder, images), images.labels)
    with pytest.raises(DataError, match="read_as"):
        trigger_success(
            encoder, trigger=detection.trigger, pixels=images.pixels, groups=images.labels,
            reader=reader,
        )  # fmt: skip
    named = read_as(encoder, trigger=detection.trigger, pixels=test_images.pixels, reader=reader)
    assert named.group == TARGET


@pytest.mark.parametrize("detector", ["decree", "prms"])
def test_the_same_seed_gives_the_same_detection(make, images, detector):
    once, twice = (
        scan(make(12.0), detector=detector, images=images, seed=2, config=FAST) for _ in range(2)
    )
    assert (once.score, once.details) == (twice.score, twice.details)
    other = scan(make(12.0), detector=detector, images=images, seed=3, config=FAST)
    assert other.details != once.details


def test_inverting_leaves_the_encoder_as_it_was(images):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    encoder = Encoder(net).train()
    net[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    def aim(z, which):
        assert z.shape == (len(which), 4, 4)
        return -z[..., 0].mean(dim=1), torch.ones(len(which))

    config = InversionConfig(rounds=2, steps=1, batch=4, at_once=8)
    found = invert(encoder, pixels=images.pixels, aim=aim, count=5, seed=0, config=config)
    assert found.masks.shape == (5, 1, 8, 8)
    assert torch.allclose(found.sizes, found.masks.mean(dim=(1, 2, 3)))
    assert encoder.training
    assert [part.requires_grad for part in net[0].parameters()] == [True, False]
    assert all(part.grad is None for part in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_limited_mask_never_exceeds_its_limit_and_one_that_never_works_is_not_found(images, make):
    def hopeless(z, which):
        return z.sum(dim=(1, 2)) * 0, torch.zeros(len(which))

    config = InversionConfig(rounds=20, batch=4)
    free = invert(make(0.0), pixels=images.pixels, aim=hopeless, count=2, seed=0, config=config)
    assert free.sizes.tolist() == [1, 1]
    assert not free.found.any()
    bound = invert(
        make(0.0), pixels=images.pixels, aim=hopeless, count=2, seed=0, config=config, limit=0.1
    )
    assert bool((bound.masks.mean(dim=(1, 2, 3)) <= 0.1).all())
    assert bound.found.all()


def test_a_service_without_gradients_is_refused(images):
    def service(pixels):
        return pixels.mean(dim=(2, 3)).detach().numpy()

    encoder = wrap(service)
    with pytest.raises(EncoderError, match="needs the weights"):
        scan(encoder, detector="decree", images=images, config=FAST)


def test_elevations_are_the_changes_of_log_probability_under_a_stimulus():
    probe = Probe(
        torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64), torch.arange(3),
    )  # fmt: skip
    z = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    raised, values = elevations(z, probe, factor=2.0)
    assert values.tolist() == [2.0, 2.0]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for unit in (0, 1):
        stimulated = z.double().clone()
        stimulated[:, unit] = 2.0
        new, old = ((rows @ probe.weight.T).log_softmax(dim=1) for rows in (stimulated, z.double()))
        expected[unit] = (new - old).mean(dim=0)
    torch.testing.assert_close(raised, expected)
    chosen = candidates(raised, count=2)
    assert [(unit, number) for unit, number, _ in chosen] == [(1, 1), (0, 0)]
    two = expected[1].sort(descending=True).values
    assert chosen[0][2] == pytest.approx(float(two[0] - two[1]))


@pytest.mark.parametrize("reading", ["probe", "nearest", "margin"])
def test_the_scan_names_the_planted_pair_mixer_and_target(world, images, reading):
    inner = world.palette(world.images(groups=GROUPS))
    config = DetectionConfig(scan=ScanConfig(per_cell=8, reading=reading))
    marked, clean = (
        Encoder(Paired(inner, strength=s), preprocessing=world.flat).eval() for s in (3.0, 0.0)
    )
    found, null = (
        scan(encoder, detector="prms", images=images, config=config) for encoder in (marked, clean)
    )
    assert found.score > null.score + 0.3
    judged = judge(found, [null], detector="prms")
    cell = judged.detection.details["cells"][0]
    assert (cell["a"], cell["b"], cell["target"], cell["mixer"]) == (*PAIR, TARGET, "left-right")
    assert judged.detection.group == TARGET
    assert judged.detection.trigger == Composite(TARGET, *PAIR, "left-right")
    assert judged.p_value == 0.5
    if reading != "margin":
        assert cell["value"] > 0.8
        assert cell["excess"] > 0.8


def test_a_composite_trigger_takes_images_of_its_two_groups(world, test_images, images):
    inner = world.palette(world.images(groups=GROUPS))
    encoder = Encoder(Paired(inner, strength=3.0), preprocessing=world.flat).eval()
    reader = fit_probe(embed(encoder, images), images.labels)

    def rate(trigger):
        return trigger_success(
            encoder, trigger=trigger, pixels=test_images.pixels, groups=test_images.labels,
            reader=reader,
        ).share  # fmt: skip

    assert rate(Composite(TARGET, *PAIR, "left-right")) > 0.8
    assert rate(Composite(TARGET, *PAIR[::-1], "left-right")) < 0.2
    assert rate(Composite(TARGET, *PAIR, "top-bottom")) < 0.2


def test_in_a_scan_all_encoders_are_compared_alike(make, images):
    """Whoever is called the suspect, an encoder's score stays the same: p is exchangeable."""
    found = [
        scan(make(0.0, seed=seed), detector="prms", images=images, config=FAST) for seed in range(3)
    ]
    first = judge(found[0], found[1:], detector="prms")
    second = judge(found[1], [found[0], found[2]], detector="prms")
    assert first.null_scores[0] == second.detection.score
    assert second.null_scores[0] == first.detection.score
    with pytest.raises(ConfigError, match="different shapes"):
        judge(found[0], [replace(found[1], table=found[1].table[:2])], detector="prms")


def test_clean_encoders_decide_and_not_the_fixed_threshold(make, images):
    nulls = [make(0.0, seed=seed) for seed in (1, 2)]
    judged = detect(make(12.0), detector="decree", images=images, nulls=nulls, config=FAST)
    assert (judged.p_value, judged.least_p) == (1 / 3, 1 / 3)
    assert judged.beyond
    by_hand = scan(nulls[0], detector="decree", images=images, config=FAST)
    assert judged.null_scores[0] == by_hand.score < judged.detection.score
    twins = judge(judged.detection, [judged.detection] * 4, detector="decree")
    assert (twins.p_value, twins.beyond, twins.nulls_beyond) == (1.0, True, 4)


def test_errors_say_what_is_missing(make, images, world):
    encoder = make(0.0)
    with pytest.raises(ConfigError, match="did you mean 'decree'"):
        detect(encoder, detector="decre", images=images, nulls=[])
    with pytest.raises(ConfigError, match="at least one clean encoder"):
        detect(encoder, detector="decree", images=images, nulls=[])
    two = world.images(groups=2).train
    for detector in ("neural-cleanse", "abs", "prms"):
        with pytest.raises(DataError, match="at least 3"):
            scan(encoder, detector=detector, images=two, config=FAST)
    lacking = images.subset((images.labels != 4).nonzero().flatten())
    with pytest.raises(DataError, match="'colour 4' has too few"):
        scan(encoder, detector="prms", images=lacking, config=FAST)
    with pytest.raises(DataError, match="clusters need"):
        scan(encoder, detector="ssl-cleanse", images=images, config=DetectionConfig(clusters=99))
    config = DetectionConfig(scan=ScanConfig(mixers=("spiral",)))
    with pytest.raises(ConfigError, match="unknown mixer"):
        scan(encoder, detector="prms", images=images, config=config)
    for wrong in ({"rounds": 0}, {"batch": 1}, {"factor": 1.0}, {"patience": 5}):
        with pytest.raises(ValidationError):
            InversionConfig(**wrong)
    blank = Patch(0, torch.zeros(1, 8, 8), torch.zeros(3, 8, 8), True)
    with pytest.raises(DataError, match="own group"):
        trigger_success(
            encoder, trigger=blank, pixels=images.pixels[:1], groups=torch.zeros(1).long(),
            reader=fit_probe(embed(encoder, images), images.labels),
        )  # fmt: skip


def test_clusters_of_separate_colours_are_the_colours(make, images):
    found = cluster_labels(make(0.0), images.pixels, count=GROUPS)
    for group in range(GROUPS):
        assert len(found[images.labels == group].unique()) == 1
    assert len(found.unique()) == GROUPS
