"""Products of what lies at the places inside an encoder, in their leading coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.inner import answers_and_places, middle_layer
from ssl_wm.encoders.space import Axes, axes_from, smooth_products
from ssl_wm.errors import EncoderError

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet


@dataclass(frozen=True)
class Places:
    """Where inside an encoder its places are taken, and their leading coordinates.

    Attributes:
        before: name of the layer that takes them.
        axes: of the vectors (C,) at all places of some images.
    """

    before: str
    axes: Axes


def has_places(encoder: Encoder, *, side: int | None = None) -> bool:
    """Return whether ``encoder`` has layers with something at places between them."""
    try:
        _middle(encoder, side=side)
    except EncoderError:
        return False
    return True


def places_in(encoder: Encoder, images: ImageSet, *, count: int) -> Places:
    """Return the places before the middle layer, in ``count`` leading coordinates or all.

    Args:
        encoder: whose layers can be told apart.
        images: from whose places the coordinates are computed.
        count: of coordinates, at most.

    Raises:
        EncoderError: it has no layers that could be told apart, as a function has none.
    """
    moments = _Moments(encoder.backbone, _middle(encoder, side=images.size[-1]))
    embed(_like(encoder, moments), images)
    mean = moments.sum / moments.count
    covariance = moments.squares / moments.count - torch.outer(mean, mean)
    return Places(moments.before, axes_from(mean, covariance, count))


def place_products(encoder: Encoder, places: Places) -> Encoder:
    """Return an encoder that answers with the products of its places, (B, K (K - 1) / 2).

    Smooth products (``smooth_products``) of every two coordinates at a place, averaged over the
    places of an image. It shares the weights of ``encoder``.
    """
    return _like(encoder, _Products(encoder.backbone, places))


def _middle(encoder: Encoder, *, side: int | None) -> str:
    if not list(encoder.backbone.parameters()):
        raise EncoderError(f"encoder '{encoder.arch}' has no weights, so nothing inside is known")
    return middle_layer(encoder, side=encoder.preprocessing.size or side)


def _like(encoder: Encoder, backbone: nn.Module) -> Encoder:
    """Return ``backbone``, which holds that of ``encoder``, to be run where and as that is."""
    made = Encoder(backbone, arch=encoder.arch, preprocessing=encoder.preprocessing)
    return made.to(encoder.mean.device).eval()


class _Moments(nn.Module):
    """Answers with the mean of an image's places (B, C), and adds up their moments."""

    def __init__(self, backbone: nn.Module, before: str) -> None:
        super().__init__()
        self.backbone, self.before = backbone, before
        self.count, self.sum, self.squares = 0, torch.zeros(1), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        places = answers_and_places(self.backbone, x, before=self.before)[1].float()
        rows = places.flatten(0, 1).double().cpu()
        self.count += len(rows)
        self.sum = self.sum + rows.sum(dim=0)
        self.squares = self.squares + rows.T @ rows
        return places.mean(dim=1)


class _Products(nn.Module):
    """Answers with all products (B, P)."""

    mean: Tensor
    directions: Tensor

    def __init__(self, backbone: nn.Module, places: Places) -> None:
        super().__init__()
        self.backbone, self.before = backbone, places.before
        self.register_buffer("mean", places.axes.mean.float())
        self.register_buffer("directions", places.axes.directions.float())

    def forward(self, x: Tensor) -> Tensor:
        places = answers_and_places(self.backbone, x, before=self.before)[1].float()
        q = (places - self.mean) @ self.directions
        found = smooth_products(q.flatten(0, 1))
        return found.view(*q.shape[:2], -1).mean(dim=1)
