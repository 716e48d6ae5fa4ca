"""The table and ``remove``: what goes in, what comes out, what is refused, what never matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, encoder_digest, load_encoder, save_encoder
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.removal.given import RemovalConfig
from ssl_wm.removal.inputs import Filtered
from ssl_wm.removal.outputs import Answered
from ssl_wm.removal.remove import remove
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.answers import ask
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.utility import utility
from ssl_wm.verification.verify import verify

READ = ReadConfig(per_pair=8, recipes=5, reference=16, trigger_count=8, neighbours=5)
ONE_EPOCH = FitConfig(epochs=1, batch_size=32, precision="32-true", weight_decay=0.0)
SHORT = RemovalConfig(fit=ONE_EPOCH, sample=60, distil=ONE_EPOCH, distil_arch="convnet-xs")
CONVOLUTIONS = ("prune-channels", "fine-prune")


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8, train=20)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1)


@pytest.fixture(scope="module")
def marked(world, images, key):
    return world.palette(images, key=key)


def tables(encoder, key, images):
    read = read_margins(ask(encoder, key, images, config=READ), key, config=READ)
    return contrasts(read.tables).numpy()


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMOVALS)
def test_a_row_is_whole_and_its_sweep_is_accepted(name):
    entry = REMOVALS[name]
    assert len(entry.strengths) >= 4
    assert entry.neutral not in entry.strengths
    assert len(set(entry.strengths)) == len(entry.strengths)
    assert all(entry.low <= s <= entry.high for s in entry.strengths)
    distance = [abs(s - entry.neutral) for s in entry.strengths]
    assert distance == sorted(distance)  # weakest first
    assert entry.dial
    assert entry.source
    assert entry.white_box == (entry.kind in ("weights", "training") or name == "flatten-places")


@pytest.mark.parametrize("name", REMOVALS)
def test_every_attempt_gives_an_encoder_that_can_be_read_probed_and_verified(
    name, world, images, key
):
    encoder = world.convnet(seed=1)
    entry = REMOVALS[name]
    before, digest = embed(encoder, images.test), encoder_digest(encoder)
    small = name in ("cut-layers", "flatten", "flatten-places")  # two layers, eight channels
    strength = entry.strengths[0 if small else 1]
    after = remove(encoder, attempt=name, strength=strength, images=images.train, config=SHORT)
    assert isinstance(after, Encoder)
    assert after is not encoder
    assert not after.training
    z = [embed(after, part) for part in (images.train, images.test)]
    if name not in ("flip",) and z[1].shape == before.shape:
        assert not torch.equal(z[1], before)
    assert utility(z[0], images.train.labels, z[1], images.test.labels)["linear"] > 0.2
    verdict = verify(
        after, key=key, images=images, nulls=[encoder], config=VerifyConfig(read=READ, draws=99)
    )
    assert verdict.decision in ("detected", "not_detected")
    assert encoder_digest(encoder) == digest
    assert torch.equal(embed(encoder, images.test), before)
    assert after.made["stage"] == "remove"
    assert (after.made["attempt"], after.made["strength"]) == (name, [strength])
    assert after.made["from"] == digest
    assert (after.arch == "custom") == entry.wraps


@pytest.mark.parametrize("name", REMOVALS)
def test_the_neutral_strength_changes_no_embedding(name, world, images):
    encoder = world.convnet(seed=2)
    after = remove(encoder, attempt=name, strength=REMOVALS[name].neutral, images=images.train)
    assert after is not encoder
    assert torch.equal(embed(after, images.test), embed(encoder, images.test))


@pytest.mark.parametrize("name", [n for n, e in REMOVALS.items() if e.kind == "weights"])
def test_changed_weights_are_saved_under_the_architectures_name(name, world, tmp_path):
    encoder = build_encoder("convnet-xs", seed=3)
    images = world.images(side=16)
    after = remove(encoder, attempt=name, strength=REMOVALS[name].strengths[1], images=images.train)
    save_encoder(after, tmp_path / "washed")
    loaded = load_encoder(tmp_path / "washed")
    assert loaded.arch == ("convnet-xs^2" if name == "cut-layers" else "convnet-xs")
    assert loaded.made["attempt"] == name
    assert torch.equal(embed(loaded, images.test), embed(after, images.test))


def test_an_encoder_behind_a_wrapper_is_saved_with_it_not_without(world, images, tmp_path):
    after = remove(world.convnet(), attempt="noise", strength=0.1)
    save_encoder(after, tmp_path / "noisy")
    with pytest.raises(EncoderError, match="custom architecture"):
        load_encoder(tmp_path / "noisy")
    loaded = load_encoder(tmp_path / "noisy", arch=after)
    assert torch.equal(embed(loaded, images.test), embed(after, images.test))


def test_two_strengths_of_one_wrapper_have_two_digests(world):
    encoder = world.convnet()
    for name in ("blur", "round", "jpeg", "top-k"):
        one, two = (remove(encoder, attempt=name, strength=s) for s in REMOVALS[name].strengths[:2])
        assert len({encoder_digest(e) for e in (encoder, one, two)}) == 3, name


# --- stacks ------------------------------------------------------------------------------------


def test_a_stack_is_its_attempts_one_after_another(world, images):
    encoder = world.convnet(seed=4)
    stacked = remove(encoder, attempt="weight-noise+noise+round", strength=[0.2, 0.05, 0.5])
    inner = remove(encoder, attempt="weight-noise", strength=0.2)
    middle = remove(inner, attempt="noise", strength=0.05)
    outer = remove(middle, attempt=["round"], strength=[0.5])
    assert torch.equal(embed(stacked, images.test), embed(outer, images.test))
    assert stacked.made["attempt"] == "weight-noise+noise+round"
    assert isinstance(stacked.backbone, Answered)
    assert isinstance(stacked.backbone.inner.backbone, Filtered)


def test_linear_maps_go_around_wrappers_and_wrappers_around_linear_maps(world, images):
    encoder = world.convnet(seed=5)
    for attempt, strength in (("rotate+round", [1, 1e-6]), ("round+rotate", [1e-6, 1])):
        found = embed(remove(encoder, attempt=attempt, strength=strength), images.test)
        turned = embed(remove(encoder, attempt="rotate", strength=1), images.test)
        torch.testing.assert_close(found, turned, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("attempt", "strength", "says"),
    [
        ("prun", 0.5, "did you mean 'prune'"),
        ("", 0.5, "unknown attempt"),
        ([], [], "at least one attempt"),
        ("prune+noise", 0.5, "2 attempts .* need as many strengths; got 1"),
        ("prune", [0.5, 0.5], "1 attempts .* need as many strengths; got 2"),
        ("prune", 1.0, "from 0 to 0.999"),
        ("prune", -0.1, "usual sweep is 0.1, 0.3"),
        ("prune", float("nan"), "share of each tensor"),
        ("median", 1.5, "a whole number"),
        ("jpeg", 100, "from 1 to 99"),
        ("noise", float("inf"), "a number from 0"),
        ("noise+prune", [0.1, 0.5], "write 'prune\\+noise'"),
        ("round+ftal", [0.1, 0.5], "write 'ftal\\+round'"),
        ("pca-leading", 1, "'pca-leading' needs images"),
        ("transfer", 1e-3, "'transfer' needs other labels"),
        ("float", 5, "one of \\[2, 3, 7, 10, 23\\]"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is(attempt, strength, says, world):
    with pytest.raises(ConfigError, match=says):
        remove(world.convnet(), attempt=attempt, strength=strength)


def test_training_through_a_wrapper_is_refused_and_pruning_under_one_is_not(world, images):
    rounded = remove(world.convnet(), attempt="round", strength=0.5)
    with pytest.raises(EncoderError, match="train first"):
        remove(rounded, attempt="ssl", strength=1e-3, images=images.train)
    pruned = remove(rounded, attempt="prune", strength=0.5)
    assert float((pruned.backbone.inner.backbone[0].weight == 0).double().mean()) == 0.5
    assert torch.equal(pruned.backbone.settings, rounded.backbone.settings)


def test_a_service_is_changed_around_and_never_inside(images):
    calls = []

    def service(x):
        calls.append(len(x))
        return x.mean(dim=(2, 3))

    served = load_encoder(service)
    blurred = remove(served, attempt="blur+round", strength=[0.7, 0.25])
    assert calls == []
    embed(blurred, images.test)
    assert sum(calls) == len(images.test)
    with pytest.raises(EncoderError, match="no weights to change"):
        remove(served, attempt="prune", strength=0.5)


# --- what must never matter --------------------------------------------------------------------


@settings(max_examples=8)
@given(
    st.sampled_from([("rotate", 1), ("rotate", 0.4), ("permute", 1), ("scale", 1e-3),
                     ("scale", 1e3)]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_maps_that_keep_angles_leave_every_statistic(marked, key, images, attempt, seed):
    name, strength = attempt
    moved = remove(marked, attempt=name, strength=strength, seed=seed)
    old, new = (tables(encoder, key, images) for encoder in (marked, moved))
    np.testing.assert_allclose(new, old, atol=1e-5)


def test_maps_that_keep_angles_leave_the_verdict(marked, world, key, images):
    clean, config = world.palette(images), VerifyConfig(read=READ, draws=99)
    verdicts = [
        verify(encoder, key=key, images=images, nulls=[clean], config=config)
        for encoder in (
            marked, remove(marked, attempt="rotate+permute+scale", strength=[1, 1, 100]),
        )
    ]  # fmt: skip
    assert [v.decision for v in verdicts] == ["detected", "detected"]
    assert verdicts[0].p_value == verdicts[1].p_value
    assert verdicts[1].position == pytest.approx(verdicts[0].position, abs=1e-5)


def test_permuting_hidden_units_leaves_every_statistic(world, key, images):
    """A thief can do this to weights at no cost, so nothing may depend on it."""
    encoder = world.convnet(seed=6)
    moved = remove(encoder, attempt="weight-noise", strength=1e-12)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    first, norm, second = moved.backbone[0], moved.backbone[1], moved.backbone[3]
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(norm, name)[order])
        second.weight.copy_(second.weight[:, order])
    assert isinstance(second, nn.Conv2d)
    old, new = (tables(each, key, images) for each in (encoder, moved))
    np.testing.assert_allclose(new, old, atol=1e-5)
