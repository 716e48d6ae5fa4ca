"""DECREE: a small trigger that makes all embeddings one point. Needs no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.inversion import invert
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.rng import derive_seed

SUSPICIOUS = 0.9
"""One minus the published threshold on PL1, 0.1."""


def pairwise_cosine(z: Tensor) -> Tensor:
    """Return the mean cosine between different rows of each set, (k,).

    ``(|sum u|^2 - B) / (B (B - 1))`` for unit rows u.

    Args:
        z: (k, B, D), B at least 2.
    """
    count = z.shape[1]
    total = F.normalize(z, dim=2).sum(dim=1).square().sum(dim=1)
    mean: Tensor = (total - count) / (count * (count - 1))
    return mean


class Together:
    """Images with a trigger should all have one embedding: minus the mean pairwise cosine."""

    def __init__(self, *, centre: Tensor, cosine: float) -> None:
        self.centre = centre
        self.cosine = cosine

    def __call__(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return minus the cosine (k,), and 1 where it is at least the wanted one."""
        cosines = pairwise_cosine(z - self.centre)
        return -cosines, (cosines >= self.cosine).float()


def decree(encoder: Encoder, given: Given) -> Detection:
    """Return one minus the normalised size of the smallest trigger that collapses embeddings.

    Minimises ``-mean cos(f(x_i + t), f(x_j + t)) + weight * |mask|`` (Feng et al., CVPR 2023),
    from several random starts. PL1 is the mask's L1 norm over the largest there can be, so the
    score lies in [0, 1], and 0 means that no trigger was found.

    Raises:
        EncoderError: no gradient flows to the images.
    """
    config, device = given.config.collapse, encoder.mean.device
    pixels = given.fit.pixels
    z = embed(encoder, pixels)
    middle = z.mean(dim=0)
    centre = middle if config.centred else torch.zeros_like(middle)
    found = invert(
        encoder, pixels=pixels, aim=Together(centre=centre.to(device), cosine=config.cosine),
        count=config.starts, seed=derive_seed(given.seed, "decree"),
        config=given.config.inversion, alike=False,
    )  # fmt: skip
    order = found.sizes.argsort(stable=True).tolist()
    details = {
        "pl1": found.sizes.tolist(),
        "found": found.found.tolist(),
        "natural_cosine": float(pairwise_cosine((z - centre).unsqueeze(0))),
    }
    triggers = tuple(found.patch(place, group=None) for place in order)
    return Detection(1 - float(found.sizes.min()), triggers=triggers, details=details)
