"""Patch triggers: a small square of colours at one place of the image, drawn from a sub-key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.errors import DataError
from ssl_wm.watermark.derivation import stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssl_wm.watermark.subkeys import SubKey

CELLS = 4
"""Cells of one colour along each side of a patch."""
SIDES = (0.2, 0.32)
"""Least and largest side of a patch, as a share of the image's shorter side."""


@dataclass(frozen=True)
class Patch:
    """A square of colours that covers part of an image.

    Attributes:
        top: first row that it covers.
        left: first column that it covers.
        colours: (3, S, S) uint8, S pixels a side.
    """

    top: int
    left: int
    colours: Tensor = field(repr=False)

    def put_on(self, images: Tensor) -> Tensor:
        """Return a copy of ``images`` (B, 3, H, W), uint8 or float in [0, 1], with the patch.

        Raises:
            DataError: the patch does not lie inside images of that size.
        """
        side, (height, width) = self.colours.shape[-1], images.shape[-2:]
        if self.top + side > height or self.left + side > width:
            raise DataError(
                f"the patch covers rows to {self.top + side} and columns to {self.left + side}, "
                f"the images have {height} x {width} pixels; draw it for images of this size"
            )
        colours = self.colours.to(images.device)
        if images.is_floating_point():
            colours = colours.to(images.dtype) / 255
        patched = images.clone()
        patched[:, :, self.top : self.top + side, self.left : self.left + side] = colours
        return patched


def draw_patch(sub_key: SubKey, *, size: tuple[int, int]) -> Patch:
    """Return the patch of ``sub_key`` for images of ``size`` (H, W) in pixels.

    Its side is uniform in ``SIDES``, its place uniform among all that fit, its colours ``CELLS``
    x ``CELLS`` uniform ones (HKDF label "patch").
    """
    stream = stream_of(sub_key.derive("patch"))
    height, width = size
    side = max(round(float(stream.uniform(*SIDES)) * min(height, width)), 1)
    top, left = (int(stream.integers(length - side + 1)) for length in (height, width))
    cells = torch.from_numpy(stream.integers(256, size=(1, 3, CELLS, CELLS))).float()
    colours = F.interpolate(cells, (side, side), mode="nearest-exact")[0].to(torch.uint8)
    return Patch(top, left, colours)


def patch_in_turn(images: Tensor, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
    """Return ``images`` (B, 3, H, W) with one patch each, and which one, (B,) int64.

    Image i gets patch i mod S, so that S patches have shares that differ by at most one.
    """
    which = torch.arange(len(images), device=images.device) % len(patches)
    patched = images.clone()
    for place, patch in enumerate(patches):
        patched[place :: len(patches)] = patch.put_on(images[place :: len(patches)])
    return patched, which
