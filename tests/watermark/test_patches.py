"""A patch is what the sub-key says, covers what it says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_wm.errors import DataError
from ssl_wm.watermark.patches import CELLS, SIDES, Patch, draw_patch, patch_in_turn


def sub_key(world, number: int = 0):
    return world.tiny_key(number).sub_keys[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 70), st.integers(8, 70))
def test_a_patch_lies_inside_the_image_and_has_the_promised_size(world, number, height, width):
    patch = draw_patch(sub_key(world, number), size=(height, width))
    side = patch.colours.shape[-1]
    assert patch.colours.shape == (3, side, side)
    assert patch.colours.dtype == torch.uint8
    assert round(SIDES[0] * min(height, width)) <= side <= round(SIDES[1] * min(height, width))
    assert 0 <= patch.top <= height - side
    assert 0 <= patch.left <= width - side


def test_place_size_and_colours_follow_from_the_key_alone(world):
    drawn = [draw_patch(sub_key(world, number), size=(64, 64)) for number in range(60)]
    again = draw_patch(sub_key(world, 0), size=(64, 64))
    assert (again.top, again.left) == (drawn[0].top, drawn[0].left)
    assert torch.equal(again.colours, drawn[0].colours)
    for values in (
        {patch.top for patch in drawn},
        {patch.left for patch in drawn},
        {patch.colours.shape[-1] for patch in drawn},
    ):
        assert len(values) > 5
    assert len({bytes(patch.colours.numpy()) for patch in drawn}) == 60
    assert max(patch.top + patch.colours.shape[-1] for patch in drawn) > 56
    assert min(patch.top for patch in drawn) < 8


def test_colours_are_a_grid_of_cells_at_any_size(world):
    cells = CELLS * CELLS
    for side in (32, 224):
        patch = draw_patch(sub_key(world, 3), size=(side, side))
        columns = patch.colours.permute(1, 2, 0).reshape(-1, 3)
        assert len(columns.unique(dim=0)) == cells
    small = draw_patch(sub_key(world, 3), size=(32, 32)).colours.flatten(1).unique(dim=1)
    assert torch.equal(small, patch.colours.flatten(1).unique(dim=1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_only_the_covered_pixels_change_and_both_kinds_of_images_agree(dtype):
    images = torch.randint(256, (5, 3, 9, 7), generator=torch.Generator().manual_seed(0))
    colours = torch.arange(12).view(3, 2, 2).to(torch.uint8) * 20
    expected = images.numpy().copy()
    expected[:, :, 6:8, 1:3] = colours.numpy()
    given_ = images.to(torch.uint8) if dtype == torch.uint8 else images.float() / 255
    kept = given_.clone()
    patched = Patch(6, 1, colours).put_on(given_)
    assert torch.equal(given_, kept)
    scale = 1 if dtype == torch.uint8 else 255
    np.testing.assert_allclose(patched.double().numpy() * scale, expected, atol=1e-4)


def test_a_patch_for_larger_images_is_refused():
    patch = Patch(3, 3, torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"rows to 7 .* 6 x 8 pixels"):
        patch.put_on(torch.zeros(1, 3, 6, 8))


def test_images_get_the_patches_in_turn():
    patches = [Patch(0, 0, torch.full((3, 2, 2), 10 * n, dtype=torch.uint8)) for n in (1, 2, 3)]
    images = torch.zeros(7, 3, 4, 4, dtype=torch.uint8)
    patched, which = patch_in_turn(images, patches)
    assert which.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert patched[:, 0, 0, 0].tolist() == [10, 20, 30, 10, 20, 30, 10]
    assert not images.any()
