"""The thief's own guesses at how a composite is made of two images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_wm.errors import choose
from ssl_wm.removal.composites import mix


def _halves(y: Tensor, x: Tensor) -> Tensor:
    return (x < 0.5) & (y < 1)


def _stacked(y: Tensor, x: Tensor) -> Tensor:
    return (y < 0.5) & (x < 1)


def _columns(y: Tensor, x: Tensor) -> Tensor:
    return ((5 * x).long() % 2 == 0) & (y < 1)


def _rows(y: Tensor, x: Tensor) -> Tensor:
    return ((5 * y).long() % 2 == 0) & (x < 1)


def _window(y: Tensor, x: Tensor) -> Tensor:
    return ((y - 0.5).abs() < 0.35) & ((x - 0.5).abs() < 0.35)


def _even(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (y < 1) * (x < 1)


GUESSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "left-right": _halves,
    "top-bottom": _stacked,
    "columns": _columns,
    "rows": _rows,
    "window": _window,
    "blend": _even,
}
"""What the first image keeps at (y, x), shares of the sides in (0, 1): two halves beside or above
each other, five stripes, a central window of half the area, the pixel average."""


def mixer_mask(name: str, *, size: tuple[int, int]) -> Tensor:
    """Return what the first image keeps, (1, H, W) in [0, 1].

    Args:
        name: of a guess.
        size: (H, W) in pixels.

    Raises:
        ConfigError: there is no such guess.
    """
    guess = GUESSES[choose(name, GUESSES, what="mixer")]
    y, x = ((torch.arange(side) + 0.5) / side for side in size)
    return guess(y.view(-1, 1), x.view(1, -1)).float().unsqueeze(0)


def composites(first: Tensor, second: Tensor, *, mixer: str) -> Tensor:
    """Return composites (B, 3, H, W), float in [0, 1], by the guess ``mixer``.

    Args:
        first: (B, 3, H, W) floats in [0, 1].
        second: the same.
        mixer: name of a guess.
    """
    height, width = first.shape[-2:]
    return mix(first, second, masks=mixer_mask(mixer, size=(height, width)).to(first.device))
