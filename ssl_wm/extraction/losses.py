"""Losses that fit a surrogate to answers, pure functions of embeddings (B, D).

``z`` are the surrogate's embeddings, ``answers`` the victim's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.errors import EncoderError


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


def hybrid(z: Tensor, answers: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Return ``alpha * mse / v + (1 - alpha) * mean_i 1 - cos(z_i, f_i)``.

    ``v`` is the mean over coordinates of the answers' variance in the batch, so that the first
    term is the mean squared error of embeddings standardised by one common number: 1 where the
    surrogate answers everything with the mean, whatever the victim's scale. The mix of both is
    that of the winning report of a public stealing contest (TML 2025, assignment 2), whose mean
    squared error was raw. 1e-6 of the mean square is added to v: equal answers have no variance.
    """
    _check(z, answers)
    spread = answers.var(dim=0, unbiased=False).mean()
    spread = spread + 1e-6 * answers.square().mean() + 1e-12
    return alpha * mse(z, answers) / spread + (1 - alpha) * cosine(z, answers)


def hinton_kd(z: Tensor, answers: Tensor, *, temperature: float = 7.0) -> Tensor:
    """Return ``T^2 mean_i KL(softmax(f_i / T) || softmax(z_i / T))``.

    Hinton et al., 2015, with the coordinates taken for logits; T = 7 is MEA-Defender's. T^2
    keeps the gradient's size for any T. A constant added to all coordinates is not seen.
    """
    _check(z, answers)
    student = F.log_softmax(z / temperature, dim=1)
    teacher = F.log_softmax(answers / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def hinton_relational(z: Tensor, answers: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return ``mean_i KL(p_i || q_i)``, p and q the victim's and the surrogate's neighbours.

    ``p_i = softmax_{j != i}(cos(f_i, f_j) / t)`` and q_i likewise of z (relational distillation,
    Park et al., CVPR 2019, with a divergence in place of their Huber loss). The widths may
    differ, and rotating or permuting either space changes nothing: the surrogate learns who is
    near whom, not the victim's axes.

    Raises:
        EncoderError: the batches differ, or hold fewer than three images.
    """
    _check(z, answers, widths=False, least=3)
    return F.kl_div(
        _neighbours(z, temperature), _neighbours(answers, temperature),
        reduction="batchmean", log_target=True,
    )  # fmt: skip


def _neighbours(z: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities (B, B - 1) of each row's neighbours."""
    z = F.normalize(z, dim=1)
    with torch.autocast(z.device.type, enabled=False):
        near = z @ z.T / temperature
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return F.log_softmax(near[others].view(len(z), -1), dim=1)


def rda(
    z: Tensor, prototypes: Tensor, *, temperature: float = 0.07, epsilon: float = 1e-4
) -> Tensor:
    """Return ``L_dis + L_align`` of RDA (Wu et al., ECCV 2024, as in the released code).

    Args:
        z: (B, D) the surrogate's embeddings of a view.
        prototypes: (B, D) mean of the victim's unit embeddings of m views, ``p_i``.
        temperature: of ``L_dis``, which is ``cont_steal`` with p for f.
        epsilon: added to both sides of the fraction in ``L_align = mean_i -log[(cos(z_i, p_i)
            + 1 + eps) / (||z_i / |z_i| - p_i||^2 + eps)]``. Without it the loss of a perfect
            copy of a unit prototype is minus infinity.
    """
    _check(z, prototypes)
    gap = (F.normalize(z, dim=1) - prototypes).square().sum(dim=1)
    near = F.cosine_similarity(z, prototypes, dim=1) + 1
    # Rounding can make 1 + cos slightly negative.
    align = (gap + epsilon).log() - (near.clamp_min(0) + epsilon).log()
    return cont_steal(z, prototypes, temperature=temperature) + align.mean()


def infonce(z: Tensor, answers: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Return InfoNCE over the 2 B rows of both encoders (Dziedzic et al., ICML 2022).

    ``-log exp(s(a, a') / t) / sum_{b != a} exp(s(a, b) / t)`` averaged over the rows a of
    ``[z; f]``, a' the other encoder's row of the same image, s the cosine (the NT-Xent of
    SimCLR): unlike ``cont_steal``, the positive is in the sum, the victim's rows are anchors
    too, and pairs of two of them are among the negatives.
    """
    _check(z, answers)
    rows = F.normalize(torch.cat([z, answers]), dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        near = rows @ rows.T / temperature
    near = near.masked_fill(_same_row(len(rows), near.device), float("-inf"))
    partner = torch.arange(len(rows), device=near.device).roll(len(z))
    return F.cross_entropy(near, partner)


def soft_nn(z: Tensor, answers: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return the soft nearest neighbour loss (Dziedzic et al., ICML 2022; Frosst et al., 2019).

    ``-(1 / 2B) sum_a log[exp(-d(a, a') / T) / sum_{b != a} exp(-d(a, b) / T)]`` over the rows
    of ``[z; f]``, d the squared distance on the raw scale. Here T is ``temperature`` times the
    mean squared distance between two answers of the batch: with the paper's fixed T = 100 the
    surrogate learns to answer on that scale instead of the victim's.
    """
    _check(z, answers)
    rows = torch.cat([z, answers])
    with torch.autocast(rows.device.type, enabled=False):
        squares = rows.square().sum(dim=1)
        gaps = (squares.unsqueeze(1) + squares - 2 * rows @ rows.T).clamp_min(0)
        spread = 2 * answers.var(dim=0).sum() + 1e-6 * answers.square().sum(dim=1).mean() + 1e-12
    near = -gaps / (temperature * spread)
    near = near.masked_fill(_same_row(len(rows), near.device), float("-inf"))
    return F.cross_entropy(near, torch.arange(len(rows), device=near.device).roll(len(z)))


def barlow(z: Tensor, answers: Tensor, *, weight: float = 0.0051) -> Tensor:
    """Return ``sum_i (C_ii - 1)^2 + w sum_{i != j} C_ij^2`` (Zbontar et al., ICML 2021, eq. 1).

    C (D, D) is the cross-correlation, over the batch, of the surrogate's and the victim's
    coordinates; 1e-6 is added to their variances. Scale and offset of a coordinate are not seen.
    """
    _check(z, answers, least=2)
    with torch.autocast(z.device.type, enabled=False):
        correlation = _standardised(z).T @ _standardised(answers) / len(z)
    on = correlation.diagonal()
    off = correlation.square().sum() - on.square().sum()
    return (on - 1).square().sum() + weight * off


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-6).sqrt()


def _same_row(count: int, device: torch.device) -> Tensor:
    return torch.eye(count, dtype=torch.bool, device=device)


def _check(z: Tensor, answers: Tensor, *, widths: bool = True, least: int = 1) -> None:
    """Refuse embeddings that do not belong together.

    Raises:
        EncoderError: other images, another width, or too few images in the batch.
    """
    same = z.shape == answers.shape if widths else len(z) == len(answers)
    if z.ndim != 2 or answers.ndim != 2 or not same:
        raise EncoderError(
            f"this loss compares the surrogate's (B, D) embeddings with as many answers"
            f"{' of the same width' if widths else ''}; got {tuple(z.shape)} and "
            f"{tuple(answers.shape)}: give the surrogate a projection ('arch+D')"
        )
    if len(z) < least:
        raise EncoderError(f"this loss needs batches of at least {least} images; got {len(z)}")
