"""Neural Cleanse on a probe, and SSL-Cleanse on clusters: one group needs too small a trigger."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.detection.anomaly import mad_index
from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.inversion import Inverted, invert
from ssl_wm.detection.triggers import Patch
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.space import directions
from ssl_wm.errors import DataError
from ssl_wm.rng import derive_seed
from ssl_wm.verification.probe import Probe, fit_probe

SUSPICIOUS = 2.0
"""The published threshold on an anomaly index."""


class TowardsClass:
    """Images with trigger k should be class k of a linear probe: cross-entropy."""

    def __init__(self, probe: Probe, device: torch.device) -> None:
        self.weight = probe.weight.float().to(device)
        self.bias = probe.bias.float().to(device)

    def __call__(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy (k,) and the share (k,) that the probe puts into class k."""
        logits = z @ self.weight.T + self.bias
        wanted = which.view(-1, 1).expand(logits.shape[:2])
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return loss.view_as(wanted).mean(dim=1), (logits.argmax(dim=2) == wanted).float().mean(1)


class TowardsCentre:
    """Images with trigger k should lie at centre k: one minus the cosine, in a centred space."""

    def __init__(self, centre: Tensor, centres: Tensor, device: torch.device) -> None:
        self.centre = centre.float().to(device)
        self.centres = centres.float().to(device)

    def __call__(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean distance (k,) and the share (k,) whose nearest centre is k."""
        cosines = F.normalize(z - self.centre, dim=2) @ self.centres.T
        wanted = which.view(-1, 1).expand(cosines.shape[:2])
        loss = 1 - cosines.gather(2, wanted.unsqueeze(2)).squeeze(2)
        return loss.mean(dim=1), (cosines.argmax(dim=2) == wanted).float().mean(dim=1)


def neural_cleanse(encoder: Encoder, given: Given) -> Detection:
    """Return the anomaly index of the class that needs the smallest trigger.

    For each class of a linear probe on frozen embeddings, the smallest mask and pattern that
    make natural images read as it (Wang et al., IEEE S&P 2019, equation 3). The score is the
    largest ``mad_index`` of the masks' sizes.

    Raises:
        DataError: there are fewer than three classes, or too few images.
        EncoderError: no gradient flows to the images.
    """
    count = given.group_count()
    probe = fit_probe(embed(encoder, given.fit.pixels), given.fit.groups)
    found = invert(
        encoder, pixels=given.fit.pixels, aim=TowardsClass(probe, encoder.mean.device),
        count=count, seed=derive_seed(given.seed, "neural-cleanse"),
        config=given.config.inversion,
    )  # fmt: skip
    return smallest(found)


def ssl_cleanse(encoder: Encoder, given: Given) -> Detection:
    """Return the anomaly index of the cluster that needs the smallest trigger.

    The embeddings of natural images are clustered by k-means, and for each cluster the smallest
    mask and pattern are sought that bring embeddings to its centre (Zheng et al., ECCV 2024).
    Needs no labels. Groups are clusters, numbered as k-means numbers them.

    Raises:
        DataError: there are fewer images than clusters.
        EncoderError: no gradient flows to the images.
    """
    centre, centres = clusters(
        embed(encoder, given.fit.pixels), count=given.config.clusters, seed=given.seed
    )
    found = invert(
        encoder, pixels=given.fit.pixels,
        aim=TowardsCentre(centre, centres, encoder.mean.device), count=len(centres),
        seed=derive_seed(given.seed, "ssl-cleanse"), config=given.config.inversion,
    )  # fmt: skip
    return smallest(found)


def clusters(z: Tensor, *, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) of embeddings and ``count`` unit cluster centres (count, D) around it.

    k-means (scikit-learn, k-means++, 4 starts) on the directions from the mean.

    Args:
        z: (N, D) embeddings of natural images.
        count: number of clusters.
        seed: of the starts.

    Raises:
        DataError: there are fewer than two images a cluster.
    """
    from sklearn.cluster import KMeans

    if len(z) < 2 * count:
        raise DataError(
            f"{count} clusters need at least {2 * count} images in a half of the sample; there "
            f"are {len(z)}. Give more images, or ask for fewer clusters"
        )
    centre = z.double().mean(dim=0)
    rows = directions(z, centre=centre)
    means = KMeans(count, n_init=4, random_state=derive_seed(seed, "clusters") % 2**32).fit(
        rows.numpy()
    )
    return centre, F.normalize(torch.from_numpy(means.cluster_centers_), dim=1, eps=1e-100)


def cluster_labels(encoder: Encoder, pixels: Tensor, *, count: int, seed: int = 0) -> Tensor:
    """Return the cluster (N,) of each image, for detectors that need groups and have no labels.

    Args:
        encoder: whose embeddings are clustered. One and the same encoder for the suspect and
            all null encoders keeps the conformal p valid.
        pixels: (N, 3, H, W) natural images.
        count: number of clusters.
        seed: of k-means.

    Raises:
        DataError: there are fewer than two images a cluster.
    """
    z = embed(encoder, pixels)
    centre, centres = clusters(z, count=count, seed=seed)
    return (directions(z, centre=centre) @ centres.T).argmax(dim=1)


def smallest(found: Inverted) -> Detection:
    """Return the detection that the sizes of the triggers of all groups give.

    Args:
        found: one trigger per group, in the groups' order.
    """
    index = mad_index(found.sizes)
    order = index.argsort(descending=True, stable=True).tolist()
    triggers: tuple[Patch, ...] = tuple(found.patch(group, group=group) for group in order)
    flagged = tuple(group for group in order if float(index[group]) > SUSPICIOUS)
    details = {
        "sizes": found.sizes.tolist(),
        "index": index.tolist(),
        "found": found.found.tolist(),
        "success": found.success.tolist(),
    }
    return Detection(float(index[order[0]]), order[0], flagged, triggers, details)
