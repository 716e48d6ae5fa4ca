"""Composites of the thief's own images, by mixers that anybody would try."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

KINDS = ("left-right", "top-bottom", "window", "blend", "patches")


def draw_masks(count: int, *, size: tuple[int, int], generator: Generator) -> Tensor:
    """Return ``count`` masks (count, 1, H, W) in [0, 1]: how much of the first image stays.

    Each is of a kind drawn at random: two halves (beside or above each other), a window of a
    tenth to six tenths of the area, a blend of 0.3 to 0.7, or a grid of patches an eighth of the
    side, each of one image or the other. Half of all masks are swapped.

    Args:
        count: masks to draw.
        size: (H, W) in pixels.
        generator: stream of the draws; masks lie on its device.
    """
    height, width = size
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    y = ((torch.arange(height, device=device) + 0.5) / height).view(1, -1, 1)
    x = ((torch.arange(width, device=device) + 0.5) / width).view(1, 1, -1)
    side = (0.1 + 0.5 * uniform(1, 1)).sqrt()
    top, left = uniform(1, 1) * (1 - side), uniform(1, 1) * (1 - side)
    window = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    patches = uniform(8, 8) < 0.5
    rows, columns = (y.flatten() * 8).long(), (x.flatten() * 8).long()
    whole = torch.ones(count, height, width, device=device)
    each = torch.stack(
        [
            whole * (x < 0.5),
            whole * (y < 0.5),
            window.float(),
            whole * (0.3 + 0.4 * uniform(1, 1)),
            patches[:, rows][:, :, columns].float(),
        ]
    )
    kind = torch.randint(len(KINDS), (count,), generator=generator, device=device)
    masks = each[kind, torch.arange(count, device=device)]
    swapped = (uniform(1, 1) < 0.5).float()
    return (swapped + (1 - 2 * swapped) * masks).unsqueeze(1)


def draw_partners(count: int, *, generator: Generator) -> Tensor:
    """Return for each of ``count`` images another one of them (count,), never itself."""
    step = torch.randint(1, count, (count,), generator=generator, device=generator.device)
    return (torch.arange(count, device=generator.device) + step) % count


def mixed_batch(images: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return composites of ``images`` (B, 3, H, W) with each other, (B, 3, H, W).

    Returns:
        The composites, the partners (B,) of the images in order, and the share (B, 1) of each
        composite that the image itself makes up.
    """
    height, width = images.shape[-2:]
    masks = draw_masks(len(images), size=(height, width), generator=generator)
    partners = draw_partners(len(images), generator=generator)
    return mix(images, images[partners], masks=masks), partners, masks.mean(dim=(2, 3))


def mix(first: Tensor, second: Tensor, *, masks: Tensor) -> Tensor:
    """Return ``masks * first + (1 - masks) * second``.

    Args:
        first: (B, 3, H, W) floats.
        second: the same.
        masks: (B, 1, H, W) in [0, 1].
    """
    return masks * first + (1 - masks) * second
