"""How near a copy is to its victim and how useful it is, image by image, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.statistics import bootstrap_mean, clopper_pearson

MEASURES = ("fidelity", "agreement", "linear", "knn")
BOOTSTRAP = "bootstrap over test images"
EXACT = "exact over test images"
SEEDS = "t over seeds"
RULE = (
    "marked where the 95 % interval of the paired difference to plain cosine (same budget, "
    "surrogate, pool and seeds) lies below 0: t over seeds, with one seed a paired bootstrap over "
    "test images"
)


@dataclass(frozen=True)
class Reading:
    """One encoder on the test images.

    Attributes:
        z: (M, D) embeddings.
        linear: (M,) labels by a linear probe on the train images.
        knn: (M,) labels by their kNN vote.
    """

    z: Tensor
    linear: Tensor
    knn: Tensor


def read_labels(train: Tensor, labels: Tensor, test: Tensor, *, k: int) -> Reading:
    """Return what the readers say of ``test`` (M, D) after ``train`` (N, D) and its labels (N,).

    Raises:
        VerificationError: there are fewer than two classes, or the probe does not converge.
    """
    linear = fit_probe(train, labels).predict(test)
    return Reading(test, linear, knn_predict(test, train, labels, k=k))


def per_image(copy: Reading, *, victim: Reading, labels: Tensor) -> dict[str, Tensor]:
    """Return the measures of each test image, each (M,) float64, by the names in ``MEASURES``.

    ``fidelity``: cosine of both encoders' embeddings; ``agreement``: 1 where both spaces' kNN
    say the same label, right or wrong; ``linear`` and ``knn``: 1 where the copy's reader is
    right.

    Args:
        copy: the surrogate's reading.
        victim: of the same images, with embeddings of the same width.
        labels: (M,) true ones.
    """
    said = {
        "agreement": copy.knn == victim.knn,
        "linear": copy.linear == labels,
        "knn": copy.knn == labels,
    }
    return {
        "fidelity": F.cosine_similarity(copy.z.double(), victim.z.double(), dim=1),
        **{name: hits.double() for name, hits in said.items()},
    }


def t_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of independent ``values`` (two or more), by Student's t."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    half = t.ppf((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return float(array.mean() - half), float(array.mean() + half)


def estimate(name: str, seeds: Sequence[Tensor]) -> dict[str, Any]:
    """Return the value of a measure with its 95 % interval and how that was taken.

    Args:
        name: in ``MEASURES``.
        seeds: one (M,) of each seed, as ``per_image`` gives it. The interval of several is
            Student's t over their means; that of one is over test images, exact (Clopper and
            Pearson) for shares and a percentile bootstrap for the cosine, and knows nothing of
            how another training run would come out.
    """
    means = [float(values.mean()) for values in seeds]
    if len(seeds) > 1:
        interval, how = t_interval(means), SEEDS
    elif name == "fidelity":
        interval, how = bootstrap_mean(seeds[0]), BOOTSTRAP
    else:
        interval, how = clopper_pearson(int(seeds[0].sum()), len(seeds[0])), EXACT
    return {
        "value": float(np.mean(means)), "interval": list(interval), "how": how, "seeds": means,
    }  # fmt: skip


def compare(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, Any]:
    """Return the paired difference of two cells, mine minus theirs, with its 95 % interval.

    ``below`` says whether the whole interval is below 0.

    Args:
        mine: one (M,) of each seed.
        theirs: those of the same seeds and test images, in the same order.
    """
    gaps = [(a - b).double() for a, b in zip(mine, theirs, strict=True)]
    means = [float(gap.mean()) for gap in gaps]
    if len(gaps) > 1:
        interval, how = t_interval(means), f"paired {SEEDS}"
    else:
        interval, how = bootstrap_mean(gaps[0]), f"paired {BOOTSTRAP}"
    return {
        "difference": float(np.mean(means)), "interval": list(interval), "how": how,
        "below": interval[1] < 0,
    }  # fmt: skip


def stacked(per_seed: Sequence[dict[str, Tensor]], name: str) -> list[Tensor]:
    """Return the measure ``name`` of each seed, float64."""
    return [torch.as_tensor(values[name]).double() for values in per_seed]
