"""Exact nearest neighbours from a bfloat16 shortlist, for processors that multiply it fast.

All cosines are computed in bfloat16, whose error has a bound that is known for every pair. What
could be among the k nearest within that bound is a short list for each query; the cosines of
these rows are computed again in float32, and the k nearest of them are the k nearest of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 2.0**-8  # bfloat16: largest relative error of one rounding
CHUNK = 64  # columns that one maximum stands for: c, c + W, c + 2 W, ... of W * CHUNK columns
QUERIES = 256  # rows of queries worked on together
CROWD = 512  # rows of a shortlist above which all cosines are computed in float32


class Shortlist:
    """The k nearest rows so far of every query, over banks that come tile by tile.

    Args:
        queries: (Q, D) unit rows, float32.
        k: neighbours.
    """

    def __init__(self, queries: Tensor, *, k: int) -> None:
        self.queries, self.k, self.seen = queries, k, 0
        self.rounded = queries.bfloat16()
        self.errors = _distance(queries, self.rounded)
        self.cosines = torch.full((len(queries), k), -torch.inf)
        self.indices = torch.full((len(queries), k), -1)

    def add(self, tile: Tensor) -> None:
        """Take the next rows of the bank, (T, D) unit rows, float32, into account."""
        rounded = tile.bfloat16()
        columns = rounded.T.contiguous()
        error = float(_distance(tile, rounded).max())
        space = torch.empty(QUERIES, len(tile), dtype=torch.bfloat16)
        for start in range(0, len(self.queries), QUERIES):
            rows = slice(start, start + QUERIES)
            queries = self.rounded[rows]
            rough = torch.mm(queries, columns, out=space[: len(queries)])
            self._add(rows, tile, rough, error)
        self.seen += len(tile)

    def _add(self, rows: slice, tile: Tensor, rough: Tensor, tile_error: float) -> None:
        queries, cosines, indices = self.queries[rows], self.cosines[rows], self.indices[rows]
        bound = error_bound(self.errors[rows], tile_error, width=tile.shape[1])
        least = cosines[:, -1] - bound
        peaks = _chunk_peaks(rough)
        if peaks.shape[1] >= self.k:  # k chunks hold k different rows
            least = torch.maximum(least, peaks.topk(self.k, dim=1).values[:, -1] - 2 * bound)
        row, column = _at_least(rough, peaks, least)
        if len(row) > CROWD * len(queries):
            exact = queries @ tile.T
            found = torch.arange(len(tile)).expand_as(exact)
        else:
            exact, found = _exact(queries, tile, row, column)
        together = torch.cat([cosines, exact], dim=1)
        places = torch.cat([indices, found + self.seen], dim=1)
        best = together.topk(self.k, dim=1)
        self.cosines[rows] = best.values
        self.indices[rows] = places.gather(1, best.indices)


def error_bound(query_error: Tensor, tile_error: float, *, width: int) -> Tensor:
    """Return how far a bfloat16 cosine of unit rows can be from the exact one, (Q,).

    With q' and b' the rounded rows, ``|q b - q' b'| <= |q - q'| |b| + |q'| |b - b'|`` (Cauchy and
    Schwarz); to it come the rounding of the result and of ``width`` float32 additions.

    Args:
        query_error: (Q,) distance of each query to its rounded self.
        tile_error: the largest such distance of the bank's rows.
        width: D.
    """
    return query_error + (1 + query_error) * tile_error + ROUNDING + (width + 16) * 2.0**-22


def _distance(rows: Tensor, rounded: Tensor) -> Tensor:
    distance: Tensor = (rows - rounded.float()).norm(dim=1)
    return distance


def _chunk_peaks(rough: Tensor) -> Tensor:
    """Return the largest of every chunk of columns, (Q, W + R) float32.

    W chunks of ``CHUNK`` columns each, then the R < ``CHUNK`` columns that are left, one by one.
    """
    width = rough.shape[1] // CHUNK
    whole, rest = rough.split([width * CHUNK, rough.shape[1] - width * CHUNK], dim=1)
    parts = [whole.unflatten(1, (CHUNK, width)).amax(dim=1)] if width else []
    return torch.cat([*parts, rest], dim=1).float()


def _at_least(rough: Tensor, peaks: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column (n,), by rows, of the entries that are at least ``least`` (Q,)."""
    width = rough.shape[1] // CHUNK
    row, chunk = (peaks >= least.unsqueeze(1)).nonzero(as_tuple=True)
    columns = chunk.unsqueeze(1) + width * torch.arange(CHUNK)
    left = chunk >= width
    columns[left] = (chunk[left] + width * (CHUNK - 1)).unsqueeze(1)
    values = rough[row.unsqueeze(1), columns].float()
    fits = values >= least[row].unsqueeze(1)
    fits[left, 1:] = False  # a chunk of one column
    chosen, place = fits.nonzero(as_tuple=True)
    return row[chosen], columns[chosen, place]


def _exact(queries: Tensor, tile: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 cosines (Q, m) of the listed pairs, -inf where a row ends, and columns."""
    counts = torch.bincount(row, minlength=len(queries))
    most = int(counts.max()) if len(row) else 0
    place = torch.arange(len(row)) - (counts.cumsum(dim=0) - counts)[row]
    found = torch.zeros(len(queries), most, dtype=torch.int64)
    found[row, place] = column
    exact = torch.bmm(tile[found], queries.unsqueeze(2)).squeeze(2)
    exact.masked_fill_(torch.arange(most) >= counts.unsqueeze(1), -torch.inf)
    return exact, found
