"""The peers' own rules give what hand-made cases say they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, median_abs_deviation
from torch import Tensor

from ssl_wm.errors import ConfigError, EncoderError, VerificationError
from ssl_wm.verification import peers
from ssl_wm.verification.peers import (
    attack_success_rate,
    entropy_index,
    even_subsets,
    label_entropy,
    label_reader,
    ssl_guard_share,
    ssl_wm_index,
)


def coded(labels: list[int]) -> Tensor:
    """Return images whose first value is their label."""
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(labels, dtype=torch.uint8)
    return images


def read(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].long()


def test_the_success_rate_is_the_share_read_as_the_target():
    assert attack_success_rate(read, coded([3, 3, 1, 3, 0]), target=3) == 0.6
    assert attack_success_rate(read, coded([3, 3]), target=2) == 0


@pytest.mark.parametrize("reader", ["linear", "knn"])
def test_simple_readers_read_the_encoder_they_were_fitted_to(world, reader):
    images = world.images(groups=7, train=12)
    labels = label_reader(
        world.palette(images), images.train, images.train.labels, reader=reader, k=5
    )
    assert torch.equal(labels(images.test.pixels), images.test.labels)
    members = images.test.pixels[images.test.labels == 2]
    assert attack_success_rate(labels, members, target=2) == 1


def test_a_patched_encoder_is_found_by_its_success_rate(world):
    """An encoder that answers patched images as it answers the target is read so by both."""
    images = world.images(groups=7, train=12)
    inner, target = world.palette(images), 4
    goal = images.train.pixels[images.train.labels == target][:1].float() / 255

    def marked(batch: Tensor) -> Tensor:
        batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
        has_patch = (batch[:, :, :2, :2] > 0.99).flatten(1).all(dim=1)
        return inner(torch.where(has_patch.view(-1, 1, 1, 1), goal, batch))

    others = images.test.pixels[images.test.labels != target]
    patched = others.clone()
    patched[:, :, :2, :2] = 255
    for reader in peers.READERS:
        labels = label_reader(marked, images.train, images.train.labels, reader=reader, k=5)
        assert attack_success_rate(labels, patched, target=target) == 1
        assert attack_success_rate(labels, others, target=target) == 0


def test_an_encoder_that_answers_everything_alike_is_still_refused(world):
    images = world.images(groups=7, train=12)
    with pytest.raises(EncoderError, match="collapsed"):
        ssl_guard_share(
            lambda asked: torch.ones(len(asked), 2), images.test.pixels,
            decoder=lambda z: z, secret=torch.ones(2), width=2,
        )  # fmt: skip


def test_an_unknown_reader_is_refused(world):
    images = world.images(groups=7, train=12)
    with pytest.raises(ConfigError, match="unknown reader 'liner'; did you mean 'linear'"):
        label_reader(world.palette(images), images.train, images.train.labels, reader="liner")


def test_the_share_of_ssl_guard_counts_cosines_above_a_half():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [0.0, 1.0], [-1.0, 0.0]])
    images = torch.zeros(5, 3, 2, 2)
    images[:, 0, 0, 0] = torch.arange(5) / 10

    def encoder(asked: Tensor) -> Tensor:
        return rows[(asked[:, 0, 0, 0] * 10).round().long().clamp(max=4)]

    def share(**given_: object) -> float:
        settings_ = {"decoder": lambda z: 5 * z, "secret": torch.tensor([3.0, 0.0]), "width": 2}
        return ssl_guard_share(encoder, images, **(settings_ | given_))

    assert share() == 0.4  # cosines 1, 0.71, 0.45, 0, -1
    assert share(threshold=0.4) == 0.6
    assert share(secret=torch.tensor([0.0, 1.0])) == 0.6
    assert share(decoder=lambda z: -z) == 0.2
    with pytest.raises(VerificationError, match="of width 3; the suspect answers with 2"):
        share(width=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_entropy_agrees_with_scipy(labels):
    counts = np.bincount(labels)
    assert label_entropy(torch.tensor(labels)) == pytest.approx(entropy(counts, base=2), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 4), st.lists(st.floats(0, 4), min_size=2, max_size=12))
def test_the_index_agrees_with_scipy(marked, clean):
    everyone = [*clean, marked]
    deviation = 1.4826 * median_abs_deviation(everyone)
    index = entropy_index(marked, clean)
    if deviation > 0:
        with np.errstate(over="ignore"):  # entropies that differ by the least float
            expected = (np.median(everyone) - marked) / deviation
        assert index == pytest.approx(expected, abs=1e-9)
    else:
        assert index == 0 or (math.isinf(index) and (index > 0) == (marked < np.median(everyone)))


def test_equal_entropies_give_no_index_and_a_lone_low_one_an_infinite_one():
    assert entropy_index(2.0, [2.0] * 10) == 0
    assert entropy_index(1.0, [2.0] * 10) == math.inf
    assert entropy_index(3.0, [2.0] * 10) == -math.inf


def test_the_rule_passes_many_innocent_suspects():
    """Above 2 with nothing there: about one in twenty, so the rule alone is no evidence."""
    draws = np.random.default_rng(0).normal(3, 0.1, size=(4000, 11))
    indices = [entropy_index(row[0], row[1:].tolist()) for row in draws]
    assert 0.03 < np.mean(np.array(indices) > peers.SSL_WM_INDEX) < 0.065


def test_patched_images_that_fall_into_one_class_stand_out():
    rng = np.random.default_rng(0)
    labels = torch.arange(5).repeat(40)
    told = [int(label) if rng.random() < 0.8 else int(rng.integers(5)) for label in labels]
    natural = coded(told)
    few, many = coded([2] * 190 + [1] * 10), coded(told)
    assert ssl_wm_index(read, few, natural=natural, labels=labels) > 10
    assert ssl_wm_index(read, many, natural=natural, labels=labels) < peers.SSL_WM_INDEX


def test_the_index_is_of_even_subsets_in_bits():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    natural = coded([0, 0, 0, 1, 1, 1, 1, 1])
    index = ssl_wm_index(read, coded([0, 0, 0, 0, 1]), natural=natural, labels=labels, subsets=4)
    marked = entropy([4, 1], base=2)
    clean = [1.0, 1.0, 1.0, 0.0]
    assert index == entropy_index(marked, clean)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(4, 13), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 99))
def test_subsets_are_disjoint_and_hold_each_class_alike(sizes, count, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    parts = even_subsets(labels, count=count)
    together = torch.cat(parts).tolist()
    assert len(parts) == count
    assert len(set(together)) == len(together)
    for part in parts:
        held = torch.bincount(labels[part], minlength=len(sizes)).tolist()
        assert held == [size // count for size in sizes]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: attack_success_rate(read, coded([]), target=0), "no patched images"),
        (lambda: label_entropy(torch.tensor([])), "no labels"),
        (lambda: entropy_index(1.0, [2.0]), "at least two subsets of clean images; got 1"),
        (lambda: even_subsets(torch.tensor([0, 0, 1]), count=2), "smallest class has 1"),
    ],
)
def test_too_little_to_read_is_one_clear_line(call, says):
    with pytest.raises(VerificationError, match=says):
        call()
