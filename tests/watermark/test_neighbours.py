"""What a map costs nearest neighbours is counted as kNN itself counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.verification.knn import knn_predict
from ssl_wm.watermark.neighbours import neighbours_lost, neighbours_right


def cloud(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=stream)
    centres = torch.randn(3, 6, generator=stream)
    return centres[labels] + torch.randn(count, 6, generator=stream), labels


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 60), st.integers(1, 25), st.integers(0, 2**32))
def test_an_image_is_right_where_knn_without_it_says_so(count, k, seed):
    z, labels = cloud(count, seed)
    right = neighbours_right(z, labels, k=k)
    for place in range(count):
        rest = torch.arange(count) != place
        told = knn_predict(z[place : place + 1], z[rest], labels[rest], k=min(k, count - 1))
        assert right[place] == (told[0] == labels[place])


def test_an_image_that_equal_images_crowd_out_still_does_not_vote_on_itself():
    z = torch.cat([torch.ones(6, 3), -torch.ones(2, 3)])
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 2, 2])
    right = neighbours_right(z, labels, k=2)
    assert right.tolist() == [False, True, True, True, True, True, True, True]


def test_a_rotation_costs_nothing_and_a_collapse_what_chance_leaves():
    z, labels = cloud(90, 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    assert neighbours_lost(z, z @ turn, labels) == pytest.approx(0, abs=2)
    noise = torch.randn(90, 6, generator=torch.Generator().manual_seed(3))
    lost = neighbours_lost(z, noise, labels)
    before, after = (100 * neighbours_right(x, labels).double().mean() for x in (z, noise))
    assert lost == pytest.approx(float(before - after))
    assert lost > 20
