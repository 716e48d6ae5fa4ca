"""kNN as a reader: the label that a query's nearest neighbours in a labelled bank vote for."""

from __future__ import annotations

from torch import Tensor

from ssl_wm.encoders.nearest import nearest, vote


def knn_predict(
    queries: Tensor, bank: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.1
) -> Tensor:
    """Return the label (Q,) with the largest vote among the k nearest neighbours.

    Args:
        queries: (Q, D).
        bank: (N, D).
        labels: (N,) int64 labels of the bank.
        k: neighbours; all N where the bank has fewer.
        temperature: of the vote (``encoders.nearest.vote``).
    """
    cosines, indices = nearest(queries, bank, k=min(k, len(bank)))
    return vote(cosines, labels[indices], temperature=temperature)
