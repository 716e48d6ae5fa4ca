"""Multiple-gradient descent: the point of least norm in the convex hull of gradients.

``min ||sum_i alpha_i g_i||^2`` with ``alpha_i >= 0, sum alpha_i = 1`` (Desideri, 2012; Sener
and Koltun, NeurIPS 2018, eq. 4), solved over all faces of the simplex: exact for the two or
three losses used here, with no iteration to tune.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from ssl_wm.errors import TrainingError


def least_norm_weights(gradients: Sequence[Tensor]) -> Tensor:
    """Return the weights (n,) of the least-norm convex combination of ``gradients``.

    Args:
        gradients: n tensors of one shape (flattened or not).

    Raises:
        TrainingError: a gradient holds NaN or infinity.

    >>> least_norm_weights([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]).tolist()
    [0.5, 0.5]
    >>> least_norm_weights([torch.tensor([1.0]), torch.tensor([3.0])]).tolist()
    [1.0, 0.0]
    """
    stacked = torch.stack([gradient.flatten().double() for gradient in gradients])
    gram = stacked @ stacked.T
    if not bool(torch.isfinite(gram).all()):
        raise TrainingError(
            "the gradients that MGDA weighs are not all finite; lower learning_rate or use "
            "precision 32-true"
        )
    count = len(gradients)
    best, best_norm = torch.zeros(count, dtype=torch.float64), torch.inf
    for size in range(1, count + 1):
        for face in combinations(range(count), size):
            weights = _face_minimum(gram, face)
            if weights is None:
                continue
            norm = float(weights @ gram @ weights)
            if norm < best_norm * (1 - 1e-9):
                best, best_norm = weights, norm
    return best.float()


def _face_minimum(gram: Tensor, face: tuple[int, ...]) -> Tensor | None:
    """Return the stationary point inside a face of the simplex, or None if it lies outside."""
    index = list(face)
    size = len(index)
    part = gram[index][:, index]
    scale = part.diagonal().max()  # large or small gradients must not drown the ones
    system = torch.zeros(size + 1, size + 1, dtype=gram.dtype)
    system[:size, :size] = part / scale if scale > 0 else part
    system[:size, size] = 1
    system[size, :size] = 1
    right = torch.zeros(size + 1, dtype=gram.dtype)
    right[size] = 1
    solution = torch.linalg.lstsq(system, right, driver="gelsd").solution[:size]
    if (solution < -1e-9).any() or not torch.isclose(solution.sum(), torch.ones(()).double()):
        return None
    weights = torch.zeros(len(gram), dtype=gram.dtype)
    weights[index] = solution.clamp(min=0)
    return weights / weights.sum()
