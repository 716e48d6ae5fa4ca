"""Every epoch visits each image once, in an order that no number of processes changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.data.order import Place, batch_indices, epoch_order, whole_batches


@given(st.integers(0, 200), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_is_a_permutation_of_all_images(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


@given(st.integers(1, 200), st.integers(2, 64), st.integers(0, 5))
def test_no_image_comes_twice_in_an_epoch_and_only_the_rest_of_a_division_is_left_out(
    count, batch_size, epoch
):
    steps = whole_batches(count, batch_size=batch_size)
    seen = [
        index
        for step in range(steps)
        for index in batch_indices(
            count, Place(epoch, step), seed=3, batch_size=batch_size
        ).tolist()
    ]
    assert len(set(seen)) == len(seen)
    assert len(seen) == (count - count % batch_size if count >= batch_size else count)


@given(st.integers(24, 150), st.just(24), st.sampled_from([1, 2, 3, 4, 8]))
def test_any_number_of_processes_shares_out_the_same_global_batches(count, batch_size, world):
    for step in range(whole_batches(count, batch_size=batch_size)):
        whole, *shares = (
            batch_indices(count, place, seed=5, batch_size=batch_size)
            for place in [Place(2, step), *(Place(2, step, rank, world) for rank in range(world))]
        )
        assert torch.equal(torch.cat(shares), whole)
        assert {len(share) for share in shares} == {batch_size // world}


def test_the_order_changes_with_the_epoch_and_the_seed_only():
    one = epoch_order(100, seed=0, epoch=0)
    torch.manual_seed(1)
    assert torch.equal(one, epoch_order(100, seed=0, epoch=0))
    assert not torch.equal(one, epoch_order(100, seed=0, epoch=1))
    assert not torch.equal(one, epoch_order(100, seed=1, epoch=0))


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(8, 4, 2), (9, 4, 2), (3, 4, 1), (4, 4, 1), (1, 2, 1)]
)
def test_a_short_set_of_images_still_gives_one_batch(count, batch_size, steps):
    assert whole_batches(count, batch_size=batch_size) == steps
    assert len(batch_indices(count, Place(), seed=0, batch_size=batch_size)) == min(
        count, batch_size
    )
