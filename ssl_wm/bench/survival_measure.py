"""What is read from one encoder of the survival benchmark."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssl_wm.bench.agreement import Reading, per_image, read_labels
from ssl_wm.data.image_set import Images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.precision import Precision
from ssl_wm.verification.verdict import Verdict
from ssl_wm.watermark.open_key import OpenKey


def read_encoder(encoder: Encoder, images: Images, *, k: int, precision: Precision) -> Reading:
    """Return the encoder's embeddings of the test images and what its readers say of them.

    Args:
        encoder: any.
        images: the readers are fitted to the training images.
        k: neighbours of the kNN reader.
        precision: of the forward pass.
    """
    z, z_test = (embed(encoder, part, precision=precision) for part in (images.train, images.test))
    return read_labels(z, images.train.labels, z_test, k=k)


def utility_of(reading: Reading, labels: Tensor) -> dict[str, float]:
    """Return the accuracies of both readers, as shares, given the true labels (M,)."""
    said = {"linear": reading.linear, "knn": reading.knn}
    return {name: float((answer == labels).double().mean()) for name, answer in said.items()}


def nearness(copy: Reading, *, victim: Reading, labels: Tensor) -> dict[str, float]:
    """Return fidelity (mean cosine to the victim) and kNN agreement, as ``per_image`` has them."""
    found = per_image(copy, victim=victim, labels=labels)
    return {name: float(found[name].mean()) for name in ("fidelity", "agreement")}


def compatibility(marked: Tensor, clean: Tensor, *, targets: Tensor) -> dict[str, float | None]:
    """Return the mean cosine of marked to clean embeddings of the same images, not centred.

    Args:
        marked: (M, D).
        clean: (M, D).
        targets: (M,) whether an image is in a target group.

    Returns:
        ``all``, ``outside`` the target groups and ``inside`` them; None where there is no image.
    """
    cosines = F.cosine_similarity(marked.double(), clean.double(), dim=1)
    parts = {"all": cosines, "outside": cosines[~targets], "inside": cosines[targets]}
    return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}


def in_targets(key: OpenKey) -> Tensor:
    """Return for each test image (M,) whether it is in the target group of a sub-key."""
    inside = key.groups.test < 0
    for sub in key.sub_keys:
        inside |= key.groups.test == sub.target
    return inside


def kept_of(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict without the facts that all cells of a run share."""
    return {name: value for name, value in verdict.to_dict().items() if name != "facts"}
