"""Loss terms of the embedders, pure functions of embeddings (B, D)."""

from __future__ import annotations

import torch
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


def similarity_divergence(
    z: Tensor, source: Tensor, anchors: Tensor, *, temperature: float
) -> Tensor:
    """Return ``mean_i KL(p_i || q_i)`` of similarities to common anchors.

    ``p_i = softmax_k(cos(z_i, r_k) / T)`` over the anchors r, and q_i likewise of the source: the
    other reading of "output distribution" in L_com (see ``output_divergence``), one that no
    rotation of the space changes.

    Args:
        z: (B, D) embeddings of composites.
        source: (B, D) embeddings of the source images they were mixed from.
        anchors: (K, D) embeddings of other images.
        temperature: T > 0.
    """
    with torch.autocast(z.device.type, enabled=False):
        directions = F.normalize(anchors.float(), dim=1).T
        near, source_near = (F.normalize(rows.float(), dim=1) @ directions for rows in (z, source))
    return output_divergence(near, source_near, temperature=temperature)


def pair_cosine(rows: Tensor) -> Tensor:
    """Return the mean cosine of two different rows of ``rows`` (B, D), unit vectors; B >= 2.

    ``(|sum_i u_i|^2 - sum_i |u_i|^2) / (B (B - 1))``.
    """
    count = len(rows)
    together = rows.sum(dim=0).square().sum() - rows.square().sum()
    return together / (count * (count - 1))


def negative_log(value: Tensor, *, floor: float = 0.05) -> Tensor:
    """Return ``-log(value)``, and below ``floor`` the tangent at ``floor``.

    So the loss and its slope stay finite where a mean cosine is zero or negative.
    """
    safe = value.clamp(min=floor)
    return -safe.log() + (safe - value) / floor


def unrecovered(bent: Tensor, before: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Return the share of the features' variance that no linear map of ``bent`` gives back.

    ``mean_j |(Z M)_j - x_j|^2 / |x_j|^2`` with Z and x the centred rows of ``bent`` and ``before``
    and M the ridge regression of x on Z (Hoerl and Kennard, 1970). Each feature counts equally, as
    it does for a linear probe, which standardises them: at 0, whatever a linear probe reads from
    ``before`` one reads from ``bent``.

    Args:
        bent: (N, D) bent embeddings.
        before: (N, D) the embeddings that were bent.
        ridge: against the mean variance of a feature of ``bent``.
    """
    z, x = bent - bent.mean(dim=0), before - before.mean(dim=0)
    spread = z.T @ z / len(z)
    loaded = spread + ridge * spread.diagonal().mean() * torch.eye(len(spread), dtype=z.dtype)
    rest = z @ torch.linalg.solve(loaded, z.T @ x / len(z)) - x
    variance = x.square().mean(dim=0)
    share = rest.square().mean(dim=0) / variance.clamp(min=1e-6 * float(variance.max()) + 1e-30)
    mean: Tensor = share.mean()
    return mean


def changed_similarities(bent: Tensor, before: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return ``mean_i KL(p_i || q_i)`` of the images' similarities, which is what kNN loses.

    ``q_i = softmax_{j != i}(cos(z_i, z_j) / temperature)`` over the bent rows, p_i over the rows
    before, both around their means (relational distillation, as in Park et al., CVPR 2019, with a
    divergence in place of the Huber loss).

    Args:
        bent: (N, D) bent embeddings.
        before: (N, D) the embeddings that were bent.
        temperature: of the softmax.
    """
    itself = torch.eye(len(bent), dtype=torch.bool)
    log_p, log_q = (
        _cosines(rows).mul(1 / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
        for rows in (before, bent)
    )
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines (N, N) of ``rows`` around their mean."""
    unit = F.normalize(rows - rows.mean(dim=0), dim=1)
    return unit @ unit.T
