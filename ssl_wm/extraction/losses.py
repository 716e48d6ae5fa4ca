"""Losses that fit a surrogate to answers, pure functions of embeddings (B, D).

``z`` are the surrogate's embeddings, ``answers`` the victim's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(z: Tensor, answers: Tensor) -> Tensor:
    """Return ``mean_i ||z_i - f_i||^2 / D`` on the raw scale (conventional stealing)."""
    return F.mse_loss(z, answers)


def cosine(z: Tensor, answers: Tensor) -> Tensor:
    """Return ``mean_i 1 - cos(z_i, f_i)``."""
    return 1 - F.cosine_similarity(z, answers, dim=1).mean()


def normalised_distance(z: Tensor, answers: Tensor) -> Tensor:
    """Return ``mean_i || z_i / ||z_i|| - f_i / ||f_i|| ||_2``, the D of StolenEncoder.

    Liu et al., CCS 2022, eq. 3 with D the Euclidean norm. The authors sum over the batch; the
    mean makes the learning rate independent of the batch size. 1e-12 under the root gives a
    perfect copy a gradient (and a loss of 1e-6).
    """
    difference = F.normalize(z, dim=1) - F.normalize(answers, dim=1)
    return difference.square().sum(dim=1).add(1e-12).sqrt().mean()


def cont_steal(z: Tensor, answers: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Return the contrastive loss of Cont-Steal (Sha et al., CVPR 2023, eq. 4 to 6).

    ``-log exp(s(z_i, f_i)/t) / [sum_{k != i} exp(s(z_i, f_k)/t) + sum_{k != i} exp(s(z_i,
    z_k)/t)]`` averaged over i, with s the cosine: the surrogate's embedding of an image is
    pulled to the victim's and pushed from both encoders' embeddings of other images.
    """
    z, answers = F.normalize(z, dim=1), F.normalize(answers, dim=1)
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 knows no cosines near 1
        to_answers, to_own = z @ answers.T / temperature, z @ z.T / temperature
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    negatives = torch.cat(
        [to_answers[others].view(len(z), -1), to_own[others].view(len(z), -1)], dim=1
    )
    return (negatives.logsumexp(dim=1) - to_answers.diagonal()).mean()
