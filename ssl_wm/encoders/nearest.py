"""The nearest embeddings by cosine, exact, and the weighted vote on them.

FAISS searches in float32. On a processor that multiplies bfloat16 matrices in hardware, large
searches go through ``shortlist``, to the same neighbours up to float32's rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.shortlist import Shortlist
from ssl_wm.errors import DataError
from ssl_wm.precision import fast_bfloat16

BLOCK = 4096
TILE = 65_536  # rows of the bank that are rounded and searched together
LARGE = (256, 4096)  # queries and rows from which a shortlist pays


def nearest(
    queries: Tensor, bank: Tensor, *, k: int, approximate: bool = False
) -> tuple[Tensor, Tensor]:
    """Return cosines and indices, each (Q, k), of the nearest rows of ``bank`` by cosine.

    Args:
        queries: (Q, D).
        bank: (N, D).
        k: neighbours; at most N.
        approximate: look only into the sixteenth of the bank's cells (k-means, 4 sqrt(N) of them)
            that lie nearest to a query; for millions of rows. A neighbour may be missed.

    Raises:
        DataError: the bank has fewer than k rows.
    """
    if k > len(bank):
        raise DataError(f"k = {k} neighbours asked for, the bank has {len(bank)} rows")
    if approximate:
        return _by_cells(queries, bank, k=k)
    large = len(queries) >= LARGE[0] and len(bank) >= LARGE[1]
    if large and fast_bfloat16():
        return _by_shortlist(queries, bank, k=k)
    return _by_faiss(queries, bank, k=k)


def _by_faiss(queries: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    rows = _unit(bank).contiguous().numpy()
    similarities, indices = [], []
    for block in _unit(queries).split(BLOCK):
        found = faiss.knn(block.contiguous().numpy(), rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        similarities.append(torch.from_numpy(found[0]))
        indices.append(torch.from_numpy(found[1]))
    return torch.cat(similarities), torch.cat(indices)


def _by_cells(queries: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    rows, asked = _unit(bank).numpy(), _unit(queries)
    cells = max(1, min(round(4 * len(rows) ** 0.5), len(rows) // 39))
    width = rows.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    index.nprobe = max(8, cells // 16)
    cosines, places = (torch.from_numpy(found) for found in index.search(asked.numpy(), k))
    short = (places < 0).any(dim=1)  # its cells hold fewer than k rows
    if bool(short.any()):
        cosines[short], places[short] = _by_faiss(asked[short], bank, k=k)
    return cosines, places


def _by_shortlist(queries: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    shortlist = Shortlist(_unit(queries), k=k)
    for tile in bank.split(TILE):
        shortlist.add(_unit(tile))
    return shortlist.cosines, shortlist.indices


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length 1, float32, whatever their scale; a block is copied at a time."""
    result = torch.empty(rows.shape, dtype=torch.float32)
    for part, out in zip(rows.split(BLOCK), result.split(BLOCK), strict=True):
        part = part.float()
        F.normalize(part / part.abs().amax(dim=1, keepdim=True).clamp(min=1e-38), dim=1, out=out)
    return result


def vote(cosines: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the label (Q,) with the largest vote among a query's neighbours.

    A neighbour votes with ``exp(cosine / temperature)`` (Wu et al., CVPR 2018, section 3.4).

    Args:
        cosines: (Q, k), falling.
        labels: (Q, k) int64, of the neighbours.
        temperature: of the vote.

    >>> vote(torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[4, 1, 1]]))
    tensor([4])
    """
    votes = torch.zeros(len(cosines), int(labels.max()) + 1, dtype=torch.float64)
    weights = ((cosines.double() - cosines.double()[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
