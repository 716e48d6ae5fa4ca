"""Exact nearest neighbours from a bfloat16 shortlist, for processors that multiply it fast.

All cosines are computed in bfloat16, whose error has a bound that is known for every pair. The
rows that look nearest are computed again in float32; the k-th of these is a floor for the true
k-th nearest. Whatever could still reach that floor within the bound is computed again too, and
the k nearest of both are the k nearest of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 2.0**-9  # bfloat16: how far rounding a number of [-1, 1] moves it, at most
CHUNK = 64  # columns that one maximum stands for: c, c + W, c + 2 W, ... of W * CHUNK columns
QUERIES = 256  # rows of queries worked on together
CROWD = 256  # rows of a shortlist above which all cosines are computed in float32

Nearest = tuple[Tensor, Tensor]
"""Cosines and indices of rows of the bank, each (Q, .)."""


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
        queries, known = self.queries[rows], (self.cosines[rows], self.indices[rows])
        bound = error_bound(self.errors[rows], tile_error, width=tile.shape[1])
        peaks = _chunk_peaks(rough)
        best, taken = known, torch.full((len(queries),), torch.inf)
        if peaks.shape[1] >= self.k:  # k chunks hold k different rows
            peak = peaks.topk(self.k, dim=1).values[:, -1]
            least = torch.maximum(peak, known[0][:, -1] - bound)
            likely = _at_least(rough, peaks, least)
            if len(likely[0]) <= CROWD * len(queries):
                best, taken = self._merged(known, queries, tile, likely), least
        possible = _at_least(rough, peaks, best[0][:, -1] - bound)
        if len(possible[0]) <= CROWD * len(queries):
            fresh = rough[possible].float() < taken[possible[0]]
            best = self._merged(best, queries, tile, (possible[0][fresh], possible[1][fresh]))
        else:
            every = torch.arange(len(tile)).expand(len(queries), -1)
            best = _best(known, (queries @ tile.T, every + self.seen), k=self.k)
        self.cosines[rows], self.indices[rows] = best

    def _merged(
        self, known: Nearest, queries: Tensor, tile: Tensor, pairs: tuple[Tensor, Tensor]
    ) -> Nearest:
        exact, found = _exact(queries, tile, *pairs)
        return _best(known, (exact, found + self.seen), k=self.k)


def error_bound(query_error: Tensor, tile_error: float, *, width: int) -> Tensor:
    """Return how far a bfloat16 cosine of unit rows can lie below the exact one, (Q,).

    With q' and b' the rounded rows, ``|q b - q' b'| <= |q - q'| |b| + |q'| |b - b'|`` (Cauchy and
    Schwarz); to it come the rounding of the result and of ``width`` float32 additions. A
    ``q' b'`` above 1 comes out as 1 or more, never below ``q b``. A cosine that comes out too
    large only lengthens a list.

    Args:
        query_error: (Q,) distance of each query to its rounded self.
        tile_error: the largest such distance of the bank's rows.
        width: D.
    """
    return query_error + (1 + query_error) * tile_error + ROUNDING + (width + 16) * 2.0**-22


def _best(known: Nearest, more: Nearest, *, k: int) -> Nearest:
    best = torch.cat([known[0], more[0]], dim=1).topk(k, dim=1)
    return best.values, torch.cat([known[1], more[1]], dim=1).gather(1, best.indices)


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
    exact = torch.full((len(queries), most), -torch.inf)
    exact[row, place] = torch.linalg.vecdot(
        tile.index_select(0, column), queries.index_select(0, row)
    )
    return exact, found
