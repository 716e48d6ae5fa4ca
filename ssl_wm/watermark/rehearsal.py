"""A theft in closed form: where a copy of a bent space puts images that it never saw.

A thief's network learns how natural images have moved, and carries that over to composites as
smoothly as it can. Kernel ridge regression does the same with one linear solve, so a map can be
fitted to what a copy of it will do, without training one in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copied_moves(
    moves: Tensor, *, anchors: Tensor, queries: Tensor, length: float = 1.0, ridge: float
) -> Tensor:
    """Return the moves (M, D) that a copy makes of ``queries``, having seen those of ``anchors``.

    ``K(q, a) (K(a, a) + ridge I)^-1 moves``, ``k(x, y) = exp(-|x - y|^2 / (2 length^2 d^2))``, d^2
    the mean squared distance of two anchors: kernel ridge regression (Saunders et al., ICML 1998),
    linear in the moves, so a gradient reaches them.

    Args:
        moves: (N, E) how far each anchor was moved.
        anchors: (N, D) natural images, as the copy would embed them had none been moved.
        queries: (M, D) other images, embedded likewise.
        length: of the kernel, against the anchors' distances.
        ridge: the larger, the less a copy learns of what only few images show.
    """
    with torch.no_grad():
        between = torch.cdist(anchors, anchors).square()
        twice = 2 * length**2 * between.mean().clamp_min(torch.finfo(moves.dtype).tiny)
        kernel = (-between / twice).exp()
        factor = torch.linalg.cholesky(kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype))
        reach = (-torch.cdist(queries, anchors).square() / twice).exp()
    return reach @ torch.cholesky_solve(moves, factor)
