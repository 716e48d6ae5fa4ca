"""Utility of an encoder: how well simple readers do a task on its frozen embeddings."""

from __future__ import annotations

from torch import Tensor

from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe


def utility(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, k: int = 20
) -> dict[str, float]:
    """Return the test accuracy, as shares in [0, 1], of a linear probe and of kNN.

    Args:
        train: (N, D) embeddings.
        train_labels: (N,) int64.
        test: (M, D) embeddings.
        test_labels: (M,) int64.
        k: neighbours.
    """
    linear = fit_probe(train, train_labels).predict(test)
    nearest = knn_predict(test, train, train_labels, k=k)
    return {
        "linear": float((linear == test_labels).double().mean()),
        "knn": float((nearest == test_labels).double().mean()),
    }
