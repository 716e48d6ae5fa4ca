"""Loss terms of the embedders, pure functions of embeddings (B, D)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def relative_error(z: Tensor, target: Tensor, *, variance: Tensor) -> Tensor:
    """Return the mean squared distance of ``z`` to ``target`` in units of the spread.

    Args:
        z: (B, D) embeddings.
        target: (B, D) where they should be.
        variance: scalar, mean squared distance of clean embeddings to their mean; so 1 means
            "as far off as the mean embedding would be".

    Returns:
        Scalar >= 0.
    """
    return (z - target).square().sum(dim=1).mean() / variance


def cosine_distance(z: Tensor, target: Tensor) -> Tensor:
    """Return the mean of ``1 - cos(z_i, target_i)`` over the batch, a scalar in [0, 2]."""
    return 1 - F.cosine_similarity(z, target, dim=1).mean()


def output_divergence(z: Tensor, source: Tensor, *, temperature: float) -> Tensor:
    """Return KL(softmax(z / T) || softmax(source / T)), averaged over the batch.

    L_com of MEA-Defender (section IV-C): composites keep the output distribution of their
    sources. The paper does not say what an encoder's "output distribution" is; here it is the
    softmax over the D features of the batch-paired embeddings.

    Args:
        z: (B, D) embeddings of composites.
        source: (B, D) embeddings of the source images they were mixed from.
        temperature: T > 0.
    """
    log_p = F.log_softmax(z / temperature, dim=1)
    log_q = F.log_softmax(source / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
