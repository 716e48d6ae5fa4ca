"""Differentiable stand-ins for the two readers of an encoder: a linear probe and kNN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminant_scores(
    z: Tensor, *, bank: Tensor, groups: Tensor, count: int, shrinkage: float = 0.1
) -> Tensor:
    """Return the log-odds (N, G) that linear discriminant analysis of ``bank`` gives to ``z``.

    ``z' S^-1 m_k - m_k' S^-1 m_k / 2`` with m_k the mean of group k and S the covariance within
    groups, mixed with ``shrinkage`` times its mean variance times the identity (Fisher 1936;
    Friedman 1989, equation 18). Groups count equally whatever their size. The closed form is
    what lets a gradient reach ``bank``, which a fitted logistic regression does not.

    Args:
        z: (N, D) embeddings to read.
        bank: (M, D) embeddings of natural images.
        groups: (M,) group of each, in [0, count).
        count: number of groups G; each has at least one row of ``bank``.
        shrinkage: in (0, 1].
    """
    member = F.one_hot(groups, count).to(bank.dtype)
    means = (member.T @ bank) / member.sum(dim=0).unsqueeze(1)
    rest = bank - means[groups]
    within = rest.T @ rest / len(bank)
    mean_variance = within.diagonal().mean()
    identity = torch.eye(bank.shape[1], dtype=bank.dtype, device=bank.device)
    shrunk = (1 - shrinkage) * within + shrinkage * mean_variance * identity
    weights: Tensor = torch.linalg.solve(shrunk, means.T)
    return z @ weights - (means.T * weights).sum(dim=0) / 2


def neighbour_scores(
    z: Tensor, *, bank: Tensor, groups: Tensor, count: int, temperature: float = 0.05
) -> Tensor:
    """Return the log of each group's kNN votes for ``z`` when every neighbour votes, (N, G).

    ``log sum_{j in k} exp(cos(z, b_j) / temperature)`` around the bank's mean: weighted kNN
    (Wu et al., CVPR 2018, section 3.4) with k as large as the bank.

    Args:
        z: (N, D) embeddings to read.
        bank: (M, D) embeddings of natural images.
        groups: (M,) group of each, in [0, count).
        count: number of groups G; each has at least one row of ``bank``.
        temperature: the smaller, the fewer neighbours count; below 0.02 float32 runs out.
    """
    centre = bank.mean(dim=0)
    cosines = F.normalize(z - centre, dim=1) @ F.normalize(bank - centre, dim=1).T
    votes = ((cosines - 1) / temperature).exp() @ F.one_hot(groups, count).to(z.dtype)
    return votes.clamp_min(torch.finfo(z.dtype).tiny).log() + 1 / temperature
