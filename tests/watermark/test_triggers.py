"""Composites are made of the right images, and anybody with the key renders the same bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from ssl_wm.data.image_set import ImageSet
from ssl_wm.watermark.mixers import CropPaste, PixelMerge, Stripes
from ssl_wm.watermark.triggers import composites, draw_members, mix_images, ordered_pairs

GROUPS = torch.arange(40) % 5
# every pixel of image i has the value i
INDEXED = ImageSet(
    "indexed", "test", torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4),
    GROUPS, tuple("abcde"),
)  # fmt: skip
SEAM = CropPaste(True, 0.5)


def render(pairs: list[tuple[int, int]], *, per_pair: int = 6, seed: bytes = b"s") -> torch.Tensor:
    return composites(INDEXED, GROUPS, pairs=pairs, mixer=SEAM, per_pair=per_pair, seed=seed)


def test_mixing_works_in_the_unit_range_and_rounds_to_the_nearest_byte():
    a = torch.tensor([0, 1, 100, 255], dtype=torch.uint8).view(1, 1, 1, 4).repeat(1, 3, 1, 1)
    b = torch.tensor([255, 0, 103, 255], dtype=torch.uint8).view(1, 1, 1, 4).repeat(1, 3, 1, 1)
    mixed = mix_images(a, b, mixer=PixelMerge(0.4), generator=Generator())
    assert mixed.dtype == torch.uint8
    assert mixed[0, 0, 0].tolist() == [153, 0, 102, 255]  # 153, 0.4, 101.8, 255


@given(st.integers(0, 2**31), st.integers(0, 255), st.integers(0, 255))
def test_untouched_pixels_survive_rounding(seed, low, high):
    a, b = (torch.full((2, 3, 5, 5), value, dtype=torch.uint8) for value in (low, high))
    for mixer in (SEAM, Stripes(False, 5, 0.25)):
        mixed = mix_images(a, b, mixer=mixer, generator=Generator().manual_seed(seed))
        assert set(mixed.unique().tolist()) == {low, high}


def test_members_are_drawn_evenly_from_the_group_alone():
    drawn = draw_members(GROUPS, 3, count=8000, generator=Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=40)
    assert counts[GROUPS != 3].sum() == 0
    assert ((counts[GROUPS == 3] - 1000).square() / 1000).sum() < 24.3  # chi-square, p = 0.001


def test_the_left_is_of_the_first_group_and_the_right_of_the_second():
    pairs = [(0, 3), (3, 0), (4, 1)]
    mixed = render(pairs, per_pair=50)
    assert mixed.shape == (150, 3, 4, 4)
    for place, (a, b) in enumerate(pairs):
        part = mixed[place * 50 : (place + 1) * 50].long()
        assert (GROUPS[part[..., :2]] == a).all()
        assert (GROUPS[part[..., 2:]] == b).all()
        assert part[..., 0].unique().numel() > 5


@settings(max_examples=30, deadline=None)
@given(st.permutations(ordered_pairs(4)), st.integers(1, 12), st.binary(max_size=40))
def test_a_pairs_composites_do_not_depend_on_which_others_are_asked_for(pairs, count, seed):
    some = render(pairs[:count], per_pair=3, seed=seed)
    alone = [render([pair], per_pair=3, seed=seed) for pair in pairs[:count]]
    assert torch.equal(some, torch.cat(alone))


def test_another_seed_gives_other_composites():
    assert torch.equal(render([(0, 1)]), render([(0, 1)]))
    assert not torch.equal(render([(0, 1)]), render([(0, 1)], seed=b"t"))


def test_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), render([(1, 2)])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(render([(1, 2)]), first)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_ordered_pair_comes_once(count):
    pairs = ordered_pairs(count)
    assert len(set(pairs)) == len(pairs) == count * (count - 1)
    assert all(0 <= a < count and 0 <= b < count and a != b for a, b in pairs)
