"""What a thief does against a defended service: average, un-map between accounts, denoise.

Pure functions of answers (N, D), in float64 inside, float32 outside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.integrate import quad
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import brentq
from torch import Tensor

from ssl_wm.errors import DataError
from ssl_wm.extraction.queries import TransferSet


@dataclass(frozen=True)
class Averaged:
    """Answers averaged over repeats, (N, D), and the noise that is left in a coordinate."""

    rows: Tensor
    noise: float


def average_repeats(answers: Tensor) -> Averaged:
    """Return the mean of repeated answers (R, N, D) and its standard error in a coordinate.

    Against noise that is drawn anew in each call; r repeats divide it by sqrt(r) and cost r
    times as much. The error is ``sqrt(mean variance between repeats / R)``.

    Raises:
        DataError: fewer than two repeats, or no (R, N, D) tensor.
    """
    if answers.ndim != 3 or len(answers) < 2:
        raise DataError(
            f"repeats are (R, N, D) answers, R at least 2; got shape {tuple(answers.shape)}"
        )
    rows = answers.double()
    noise = float((rows.var(dim=0).mean() / len(rows)).sqrt())
    return Averaged(rows.mean(dim=0).float(), noise)


@dataclass(frozen=True)
class Unmapping:
    """A map from one account's answers to another's: ``y = (x - source) @ matrix + target``.

    Attributes:
        matrix: (D, D) orthogonal, float64.
        source: (D,) mean of the account that is mapped; 0 where nothing is centred.
        target: (D,) mean of the other account.
        residual: share of the target's squared size that the map leaves unexplained on the
            images it was learned from.
        rank: dimensions that these images determine; below D the rest of the map is arbitrary.
    """

    matrix: Tensor
    source: Tensor
    target: Tensor
    residual: float
    rank: int

    def __call__(self, answers: Tensor) -> Tensor:
        """Return ``answers`` (N, D) in the other account's coordinates, float32."""
        return ((answers.double() - self.source) @ self.matrix + self.target).float()


def learn_unmapping(source: Tensor, target: Tensor, *, centred: bool = False) -> Unmapping:
    """Return the orthogonal map between two accounts' answers (N, D) to the same N images.

    Orthogonal Procrustes (Schoenemann, 1966): the Q that minimises ``||X Q - Y||`` is ``U V^T``
    of the singular value decomposition ``X^T Y = U S V^T``. It undoes rotations, permutations
    and sign changes per account.

    Args:
        source: answers of the account to be mapped.
        target: answers of the account to map to.
        centred: whether both means are taken off first, for accounts with an offset too.

    Raises:
        DataError: the answers do not belong together, or are not finite.
    """
    if source.ndim != 2 or source.shape != target.shape or len(source) == 0:
        raise DataError(
            "an un-mapping is learned from two accounts' (N, D) answers to the same images; got "
            f"shapes {tuple(source.shape)} and {tuple(target.shape)}"
        )
    x, y = source.double().numpy(), target.double().numpy()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("an answer is not finite; leave that image out")
    means = (x.mean(axis=0), y.mean(axis=0)) if centred else (np.zeros(x.shape[1]),) * 2
    x, y = x - means[0], y - means[1]
    matrix, _ = orthogonal_procrustes(x, y)
    left = float(((x @ matrix - y) ** 2).sum() / max(float((y**2).sum()), 1e-300))
    return Unmapping(
        torch.from_numpy(matrix), torch.from_numpy(means[0]), torch.from_numpy(means[1]),
        left, int(np.linalg.matrix_rank(x)),
    )  # fmt: skip


def merge_accounts(base: TransferSet, other: TransferSet, *, centred: bool = False) -> TransferSet:
    """Return the transfer sets of two accounts as one, in the coordinates of ``base``.

    The images that both accounts asked for teach the map; of these, ``base`` keeps its answers.

    Raises:
        DataError: the sets are of different pools or widths, hold made images, or share fewer
            images than the answers have dimensions that vary.
    """
    if base.pool != other.pool or base.made is not None or other.made is not None:
        raise DataError("only transfer sets of the same pool, without made images, can be merged")
    if base.embeddings.shape[1] != other.embeddings.shape[1]:
        raise DataError(
            f"the accounts answer with {base.embeddings.shape[1]} and {other.embeddings.shape[1]} "
            "numbers an image; they are not the same encoder"
        )
    rows = {index: row for row, index in enumerate(other.indices.tolist())}
    pairs = [(row, rows[i]) for row, i in enumerate(base.indices.tolist()) if i in rows]
    if not pairs:
        raise DataError("the accounts share no image; ask both for some of the same images")
    mine, theirs = (torch.tensor(side) for side in zip(*pairs, strict=True))
    shared = other.embeddings[theirs]
    unmap = learn_unmapping(shared, base.embeddings[mine], centred=centred)
    needed = int(torch.linalg.matrix_rank(other.embeddings.double()))
    if unmap.rank < needed - int(centred):
        raise DataError(
            f"the {len(pairs)} shared images determine {unmap.rank} of {needed} dimensions of the "
            "map between the accounts; ask both for more of the same images"
        )
    new = torch.ones(len(other.indices), dtype=torch.bool)
    new[theirs] = False
    return replace(
        base,
        indices=torch.cat([base.indices, other.indices[new]]),
        embeddings=torch.cat([base.embeddings, unmap(other.embeddings[new])]),
        ledger=base.ledger + other.ledger,
    )


@dataclass(frozen=True)
class Denoised:
    """Denoised answers (N, D), the number of components kept, and the noise in a coordinate."""

    rows: Tensor
    rank: int
    noise: float


def denoise(answers: Tensor, *, noise: float | None = None) -> Denoised:
    """Return ``answers`` (N, D) with independent noise shrunk out of their principal components.

    The singular values y of the centred answers, in units of ``noise * sqrt(n)``, become
    ``sqrt((y^2 - b - 1)^2 - 4 b) / y`` above ``1 + sqrt(b)`` and 0 below, b = m / n, m and n the
    smaller and the larger side (Gavish and Donoho, 2017: the best shrinkage for the
    squared error). Exact for low rank, white noise and large sides; answers that fill all
    dimensions lose little and gain little.

    Args:
        answers: as answered, at least two.
        noise: standard deviation in a coordinate, e.g. of ``average_repeats``. None estimates it
            from the median singular value, which is right when most components are noise.

    Raises:
        DataError: no (N, D) tensor of at least two finite answers, or a negative noise.
    """
    if answers.ndim != 2 or len(answers) < 2 or not bool(torch.isfinite(answers).all()):
        raise DataError(
            f"denoising takes (N, D) finite answers, N at least 2; got shape {tuple(answers.shape)}"
        )
    if noise is not None and not 0 <= noise < float("inf"):
        raise DataError(f"the noise must be 0 or more; got {noise}")
    rows = answers.double()
    mean = rows.mean(dim=0)
    u, values, v = torch.linalg.svd(rows - mean, full_matrices=False)
    # Centring takes one dimension of the images away.
    small, large = sorted((len(rows) - 1, rows.shape[1]))
    ratio = small / large
    if noise is None:
        noise = float(values[:small].median()) / (large * _marchenko_pastur_median(ratio)) ** 0.5
    if noise == 0:
        return Denoised(answers.float(), int((values > 0).sum()), 0.0)
    y = values / (noise * large**0.5)
    kept = y > 1 + ratio**0.5
    shrunk = ((y.square() - ratio - 1).square() - 4 * ratio).clamp_min(0).sqrt() / y.clamp_min(1e-9)
    values = torch.where(kept, shrunk * noise * large**0.5, 0.0)
    return Denoised((u * values @ v + mean).float(), int(kept.sum()), noise)


def _marchenko_pastur_median(ratio: float) -> float:
    """Return the median of the eigenvalues of white noise with sides of this ratio (0, 1]."""
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2

    def density(x: float) -> float:
        return float(np.sqrt(max((high - x) * (x - low), 0)) / (2 * np.pi * ratio * x))

    def excess(x: float) -> float:
        return float(quad(density, low, x, limit=200)[0]) - 0.5

    return float(brentq(excess, low + 1e-9, high))
