"""From encoders and key to what the report draws."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.pictures import plane


@given(st.integers(0, 10_000))
def test_map_of_the_corners_loses_their_distances(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    flat = plane(corners, corners)
    assert torch.allclose(torch.cdist(flat, flat), torch.cdist(corners, corners), atol=1e-6)
    assert torch.allclose(flat[0] + flat[1], torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert flat[2, 1] > 0
