"""Linear probe: multinomial logistic regression on frozen embeddings.

The objective is scikit-learn's (``LogisticRegression``), the optimiser PyTorch's L-BFGS. What is
ours is the coordinates in which it works: those in which the curvature at the start is the
identity, where ten to thirty steps do what takes hundreds in the features' own.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_wm.errors import VerificationError

TOLERANCE = 1e-4
CURVATURE_ROWS = 8192  # enough for the curvature's shape; the objective sees every row
MOST_STEPS = 2000
HISTORY = 10


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


def fit_probe(
    z: Tensor, labels: Tensor, *, strength: float = 1.0, tolerance: float = TOLERANCE
) -> Probe:
    """Return a probe fitted to embeddings ``z`` (N, D) and ``labels`` (N,).

    Features are standardised; the L2 penalty is scikit-learn's with C = ``strength``.

    Args:
        z: (N, D) embeddings, finite.
        labels: (N,) integers.
        strength: the larger, the weaker the penalty.
        tolerance: where to stop, on the gradient in units of the curvature: at 1e-4 the
            objective (mean log loss) is within about 1e-6 of its least value.

    Raises:
        VerificationError: there are fewer than two classes, or the fit does not converge.
    """
    classes, targets = _classes(labels)
    standard, mean, std = standardised(z)
    # scikit-learn penalises the difference of two classes' weights, not both of them.
    penalty = (2.0 if len(classes) == 2 else 1.0) / (strength * len(z))
    weight, bias = _minimise(standard, targets, len(classes), penalty, tolerance)
    weight = weight / std
    return Probe(weight, bias - weight @ mean, classes)


def fit_sealed_probe(z: Tensor, labels: Tensor) -> Probe:
    """Return the probe that verdicts read with: scikit-learn's own solver, stopped at 1e-3.

    It is slower and stops earlier than ``fit_probe``, and the rates of sealed evidence were read
    with it. A bundle is recomputed to the last image, so this solver stays what it is.

    Args:
        z: (N, D) embeddings, finite.
        labels: (N,) integers.

    Raises:
        VerificationError: there are fewer than two classes, or the fit does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _classes(labels)
    mean, std = z.double().mean(dim=0), z.double().std(dim=0, correction=0)
    std = torch.where(std > 1e-8 * (std.max() + 1e-30), std, torch.inf)
    standard = ((z.double() - mean) / std).numpy()
    model = LogisticRegression(C=1.0, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(standard, labels.numpy())
        except ConvergenceWarning as error:
            raise VerificationError(
                "the linear probe did not converge in 2000 iterations; are the embeddings "
                "finite and of sane scale?"
            ) from error
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # two classes have one row there
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / std
    return Probe(weight, bias - weight @ mean, torch.as_tensor(model.classes_))


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes (C,) and each label's place among them (N,)."""
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise VerificationError(
            f"a linear probe needs at least two classes; the labels hold {len(classes)}"
        )
    return classes, targets


def standardised(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``z`` (N, D) with mean 0 and deviation 1, float32; the mean, the deviation (D,).

    A feature that is constant, up to rounding, becomes 0; its deviation is infinite.
    """
    mean = z.mean(dim=0, dtype=torch.float64)
    centred = z - mean.to(z.dtype)
    std = centred.square().mean(dim=0, dtype=torch.float64).sqrt()
    std = torch.where(std > 1e-8 * (std.max() + 1e-30), std, torch.inf)
    return (centred / std.to(z.dtype)).float(), mean, std


def log_loss(
    x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, *, penalty: float
) -> tuple[float, Tensor, Tensor]:
    """Return the objective and its gradient for ``weight`` and ``bias``.

    ``-mean_i log softmax(W x_i + b)[y_i] + penalty / 2 |W|^2``, scikit-learn's divided by C N,
    with penalty = 1 / (C N).

    Args:
        x: (N, D) float32 features.
        targets: (N,) classes in [0, C).
        weight: (C, D) float64; likewise ``bias`` (C,).
        bias: see weight.
        penalty: of the weights; the bias is free.
    """
    logits = torch.addmm(bias.float(), x, weight.float().T)
    log_p = logits.log_softmax(dim=1)
    chosen = log_p.gather(1, targets.unsqueeze(1))
    residual = log_p.exp_()
    residual.scatter_add_(1, targets.unsqueeze(1), torch.full_like(chosen, -1.0))
    slope = (residual.T @ x).double() / len(x) + penalty * weight
    value = -float(chosen.double().mean()) + 0.5 * penalty * float(weight.square().sum())
    return value, slope, residual.mean(dim=0, dtype=torch.float64)


def _minimise(
    x: Tensor, targets: Tensor, classes: int, penalty: float, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) where the objective is least."""
    to_weight, to_bias = _coordinates(x, classes, penalty)
    point = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64)
    point.grad = torch.zeros_like(point)

    def unpack() -> tuple[Tensor, Tensor]:
        return point[:, :-1] @ to_weight, point[:, -1] * to_bias

    def objective() -> float:
        value, slope, bias_slope = log_loss(x, targets, *unpack(), penalty=penalty)
        point.grad = torch.cat([slope @ to_weight.T, (bias_slope * to_bias).unsqueeze(1)], dim=1)
        return value

    search = torch.optim.LBFGS(
        [point], max_iter=MOST_STEPS, max_eval=2 * MOST_STEPS, history_size=HISTORY,
        tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip
    search.step(objective)
    objective()
    slope = float(point.grad.abs().max())
    if not slope <= 10 * tolerance:  # a search that float32 stops just short of it is fine
        raise VerificationError(
            f"the linear probe did not converge in {MOST_STEPS} steps (its gradient is "
            f"{slope:.3g}, asked for {tolerance:.3g}); are the embeddings finite and of sane scale?"
        )
    return unpack()


def _coordinates(x: Tensor, classes: int, penalty: float) -> tuple[Tensor, float]:
    """Return P (D, D) and s with W = V P and b = s v, in which the curvature starts as 1.

    The objective's curvature at W = 0 is ``h X'X / N + penalty`` for each class, h = (C - 1) / C^2
    being the variance of a class's indicator. P is the inverse of its Cholesky factor.
    """
    some = x[:: -(-len(x) // CURVATURE_ROWS)]
    spread = (classes - 1) / classes**2
    curvature = spread * (some.T @ some).double() / len(some)
    curvature.diagonal().add_(penalty + 1e-6 * spread)
    factor = torch.linalg.cholesky(curvature)
    identity = torch.eye(len(factor), dtype=torch.float64)
    return torch.linalg.solve_triangular(factor, identity, upper=False), spread**-0.5
