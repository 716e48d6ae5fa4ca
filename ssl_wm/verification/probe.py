"""Linear probe: multinomial logistic regression on frozen embeddings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_wm.errors import VerificationError


@dataclass(frozen=True)
class Probe:
    """A fitted probe: ``argmax(weight @ z + bias)``.

    Attributes:
        weight: (C, D), with the standardisation folded in.
        bias: (C,).
        classes: (C,) int64, the label of each row.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def predict(self, z: Tensor) -> Tensor:
        """Return the predicted label (N,) of embeddings ``z`` (N, D)."""
        return self.classes[(z.double() @ self.weight.T + self.bias).argmax(dim=1)]


def fit_probe(z: Tensor, labels: Tensor, *, strength: float = 1.0) -> Probe:
    """Return a probe fitted to embeddings ``z`` (N, D) and ``labels`` (N,).

    Features are standardised; the L2 penalty is scikit-learn's with C = ``strength``
    (``LogisticRegression``, lbfgs, tolerance 1e-3).

    Raises:
        VerificationError: there are fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = labels.unique()
    if len(classes) < 2:
        raise VerificationError(
            f"a linear probe needs at least two classes; the labels hold {len(classes)}"
        )
    mean, std = z.double().mean(dim=0), z.double().std(dim=0, correction=0)
    std = torch.where(std > 1e-8 * (std.max() + 1e-30), std, torch.inf)
    standard = ((z.double() - mean) / std).numpy()
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(standard, labels.numpy())
        except ConvergenceWarning as error:
            raise VerificationError(
                "the linear probe did not converge in 2000 iterations; are the embeddings "
                "finite and of sane scale?"
            ) from error
    weight, bias = _as_softmax(model.coef_, model.intercept_)
    weight = weight / std
    return Probe(weight, bias - weight @ mean, torch.as_tensor(model.classes_))


def _as_softmax(coefficients: np.ndarray, intercept: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return one row per class, also for two classes, where scikit-learn keeps one row."""
    weight, bias = torch.from_numpy(coefficients), torch.from_numpy(intercept)
    if len(weight) == 1:
        return torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    return weight, bias
