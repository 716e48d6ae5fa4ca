"""Defences of an embedding API, as functions of tensors (N, D).

Rounding, noise and top-k are those that StolenEncoder (CCS 2022) and RDA (ECCV 2024) are tested
against; the coverage-dependent noise is B4B's (NeurIPS 2023), and so is the idea of a map for each
account.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def round_off(rows: Tensor, *, decimals: int) -> Tensor:
    """Return ``rows`` (N, D) rounded to ``decimals`` digits after the point, halves to even.

    >>> round_off(torch.tensor([[0.126, -0.374]]), decimals=1).tolist()
    [[0.10000000149011612, -0.4000000059604645]]
    """
    return torch.round(rows.double(), decimals=decimals).to(rows.dtype)


def add_noise(rows: Tensor, *, sigma: float | Tensor, generator: torch.Generator) -> Tensor:
    """Return ``rows`` (N, D) plus Gaussian noise of deviation ``sigma``, a number or (N,)."""
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    scale = sigma.to(rows.dtype).unsqueeze(1) if isinstance(sigma, Tensor) else sigma
    return rows + scale * noise


def keep_largest(rows: Tensor, *, k: int) -> Tensor:
    """Return ``rows`` (N, D) with all but the ``k`` largest coordinates by absolute value at 0.

    Exactly k coordinates stay also where values are equal; a k of D or more keeps all.

    >>> keep_largest(torch.tensor([[3.0, -5.0, 1.0]]), k=1).tolist()
    [[0.0, -5.0, 0.0]]
    """
    chosen = rows.abs().topk(min(k, rows.shape[1]), dim=1).indices
    return torch.zeros_like(rows).scatter(1, chosen, rows.gather(1, chosen))


def unit_length(rows: Tensor) -> Tensor:
    """Return ``rows`` (N, D) divided by their Euclidean length; a zero row stays zero."""
    return F.normalize(rows, dim=1)


def random_rotation(width: int, *, generator: torch.Generator) -> Tensor:
    """Return an orthogonal matrix (width, width), float32, uniform by Haar measure.

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri, "How to
    generate random matrices from the classical compact groups", 2007).
    """
    gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation.float()


def hash_planes(width: int, *, bits: int, generator: torch.Generator) -> Tensor:
    """Return the normals (width, bits), float32, of random hyperplanes through the origin."""
    return torch.randn(width, bits, generator=generator)


def hash_buckets(rows: Tensor, *, planes: Tensor) -> Tensor:
    """Return the bucket (N,), int64 in [0, 2**bits), of each row: on which sides it lies.

    >>> hash_buckets(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), planes=torch.eye(2)).tolist()
    [1, 3]
    """
    sides = (rows @ planes) > 0
    return (sides.long() << torch.arange(planes.shape[1])).sum(dim=1)


def coverage_after(buckets: Tensor, *, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of buckets touched after each of ``buckets`` (N,), and who is seen now.

    Args:
        buckets: bucket of each embedding, in the order of the queries.
        seen: (2**bits,) bool, the buckets that were touched before; it is not changed.

    Returns:
        Shares (N,) float64, and the new ``seen``. Asking in one call or in many gives the same.
    """
    now = seen.clone()
    shares = torch.empty(len(buckets), dtype=torch.float64)
    count = int(now.sum())
    for row, bucket in enumerate(buckets.tolist()):
        if not now[bucket]:
            now[bucket] = True
            count += 1
        shares[row] = count / len(now)
    return shares, now


def b4b_sigma(shares: Tensor, *, lam: float, alpha: float, beta: float) -> Tensor:
    """Return the noise deviation (N,) at coverage ``shares`` (N,).

    sigma(E) = lambda (exp(ln(alpha / lambda) E / beta) - 1): 0 at E = 0, alpha - lambda at
    E = beta, growing exponentially in between and beyond (B4B).

    >>> b4b_sigma(torch.tensor([0.0, 0.8]), lam=1e-6, alpha=1.0, beta=0.8)[0].item()
    0.0
    """
    return lam * torch.expm1(math.log(alpha / lam) * shares / beta)
