"""Telling composite queries from natural ones: outliers (LOF), seams and lost contrast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_wm.detection.anomaly import roc
from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.triggers import in_floats
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import DataError
from ssl_wm.removal.composites import mixed_batch
from ssl_wm.rng import torch_stream

Statistic = Callable[[Tensor], Tensor]
BLOCK = 512


def lof(encoder: Encoder, given: Given) -> Detection:
    """Return how well LOF tells queries from natural ones, by embeddings or pixels.

    scikit-learn's ``LocalOutlierFactor`` with ``novelty=True``, fitted on one half of the natural
    images (Breunig et al., SIGMOD 2000). The score is the ROC area of queries against natural
    images of the other half.

    Raises:
        DataError: there are too few natural images or queries.
    """
    from sklearn.neighbors import LocalOutlierFactor

    config = given.config.outliers
    if len(given.fit) <= config.neighbours:
        raise DataError(
            f"LOF with {config.neighbours} neighbours needs more natural images than that in a "
            f"half of the sample; there are {len(given.fit)}. Give more images"
        )

    def rows(pixels: Tensor) -> Tensor:
        if config.look_at == "embeddings":
            return embed(encoder, pixels)
        return in_floats(pixels).flatten(1)

    model = LocalOutlierFactor(n_neighbors=config.neighbours, novelty=True)
    model.fit(rows(given.fit.pixels).double().numpy())

    def strangeness(pixels: Tensor) -> Tensor:
        return torch.from_numpy(-model.score_samples(rows(pixels).double().numpy()))

    natural, queries = natural_and_queries(given)
    found = _judged(given, {"lof": strangeness}, natural, queries)
    found.details["above_1.5"] = {
        "queries": float((strangeness(queries) > 1.5).double().mean()),
        "natural": float((strangeness(natural) > 1.5).double().mean()),
    }
    return found


def seams(encoder: Encoder, given: Given) -> Detection:
    """Return how well seams and lost contrast tell queries from natural ones, by pixels alone.

    Each query gets ``seam_strength`` and ``lost_contrast``, both in robust deviations of natural
    images, and the larger one counts. The score is the ROC area against natural images. The
    encoder is not asked.

    Raises:
        DataError: there are too few natural images or queries.
    """
    single = {"seam": seam_strength, "contrast": lost_contrast}
    standard = {name: _standard(given.fit.pixels, each) for name, each in single.items()}

    def larger(pixels: Tensor) -> Tensor:
        return torch.stack([each(pixels) for each in standard.values()]).amax(dim=0)

    natural, queries = natural_and_queries(given)
    return _judged(given, {"larger": larger, **standard}, natural, queries)


def seam_strength(pixels: Tensor) -> Tensor:
    """Return how far the sharpest straight line of each image stands out, (N,).

    With g the mean over channels of abs(x[p + 1] - x[p]) across a row or column boundary, the
    strength of a boundary is the mean along it of ``g - max(g before, g after)``: an edge of the
    scene is seldom one pixel wide and straight from border to border, a seam is. The strongest
    row or column boundary counts. Own statistic.

    Args:
        pixels: (N, 3, H, W), uint8 or float in [0, 1]; H and W at least 4.
    """
    return torch.cat([_sharpest(part) for part in pixels.split(BLOCK)])


def _sharpest(pixels: Tensor) -> Tensor:
    images, found = in_floats(pixels), []
    for across in (2, 3):
        steps = images.diff(dim=across).abs().mean(dim=1).movedim(across - 1, 2)
        inner = steps[:, :, 1:-1]
        excess = inner - torch.maximum(steps[:, :, :-2], steps[:, :, 2:])
        found.append(excess.mean(dim=1).amax(dim=1))
    return torch.maximum(found[0], found[1])


def lost_contrast(pixels: Tensor) -> Tensor:
    """Return minus the range of each image's values, (N,): blends have a smaller one.

    The range is that from the 2nd to the 98th percentile of all values. Own statistic.

    Args:
        pixels: (N, 3, H, W), uint8 or float in [0, 1].
    """
    levels = torch.tensor([0.02, 0.98])
    parts = [in_floats(part).flatten(1).quantile(levels, dim=1) for part in pixels.split(BLOCK)]
    both = torch.cat(parts, dim=1)
    return both[0] - both[1]


def natural_and_queries(given: Given) -> tuple[Tensor, Tensor]:
    """Return the natural images (N, 3, H, W) that queries are compared with, and the queries.

    Without queries, composites of these natural images by random mixers of the thief's own.

    Raises:
        DataError: there are fewer than four natural images or no queries.
    """
    natural = given.held.pixels
    if len(natural) < 4 or (given.queries is not None and not len(given.queries)):
        asked = "its own" if given.queries is None else len(given.queries)
        raise DataError(
            "queries are compared with at least 4 held-out natural images; got "
            f"{len(natural)} images and {asked} queries. Give more of what is missing"
        )
    if given.queries is not None:
        return natural, given.queries
    stream = torch_stream(given.seed, "queries")
    return natural, mixed_batch(in_floats(natural), generator=stream)[0]


def _judged(
    given: Given, statistics: dict[str, Statistic], natural: Tensor, queries: Tensor
) -> Detection:
    """Return the detection that the first statistic gives, with the ROC area of each.

    A query is refused if its conformal p among the first half of the natural images is at most
    the rate of false alarms; the second half shows the rate that this gives.
    """
    from scipy.stats import mannwhitneyu

    areas = {}
    for name, statistic in statistics.items():
        found = roc(statistic(queries).tolist(), statistic(natural).tolist())
        areas[name] = {"area": found.area, "interval": list(found.interval)}
    main, first = next(iter(statistics)), next(iter(statistics.values()))
    scores, strange = first(natural), first(queries)
    order = torch.randperm(len(scores), generator=torch_stream(given.seed, "calibration"))
    known, fresh = scores[order[::2]], scores[order[1::2]]
    rate = given.config.outliers.false_alarms
    details = {
        "areas": areas,
        "false_alarms": rate,
        "refused_queries": float((conformal_each(strange, known) <= rate).double().mean()),
        "refused_natural": float((conformal_each(fresh, known) <= rate).double().mean()),
        "least_p_of_a_query": 1 / (1 + len(known)),
        "p_queries_are_natural": float(
            mannwhitneyu(strange.numpy(), scores.numpy(), alternative="greater").pvalue
        ),
        "queries": len(queries),
    }
    return Detection(float(areas[main]["area"]), details=details)  # type: ignore[arg-type]


def conformal_each(scores: Tensor, known: Tensor) -> Tensor:
    """Return ``(1 + #{known that are at least the score}) / (1 + n)`` of each score, (Q,).

    >>> conformal_each(torch.tensor([0.5, 3.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.5]
    """
    ordered = known.double().sort().values
    below = torch.searchsorted(ordered, scores.double())
    return (1 + len(known) - below).double() / (1 + len(known))


def _standard(natural: Tensor, statistic: Statistic) -> Statistic:
    """Return ``statistic`` in robust deviations of ``natural`` images from their median."""
    values = statistic(natural).double()
    middle = values.quantile(0.5)
    spread = 1.4826 * (values - middle).abs().quantile(0.5)
    return lambda pixels: (statistic(pixels).double() - middle) / spread.clamp(min=1e-9)
