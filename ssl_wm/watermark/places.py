"""Carriers of the places: like ``carriers.py``, but made of what lies inside the clean encoder.

A carrier is the mean over all places of the image of a smooth product of two leading principal
coordinates of what the middle layer takes there, less what is linear in the clean answers. The
mean over the places is the last thing that an encoder does, and no layer after it can multiply
what lay at one place: a copy has to have the product before, so it stays in the copy when its
last layers are left out or trained anew.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Carrying
from ssl_wm.encoders.inner import answers_and_places, middle_layer
from ssl_wm.encoders.space import pairs_of, smooth_products
from ssl_wm.encoders.zoo import with_carriers
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.carriers import AXES, Axes, axes_from, axis_pairs, own_carriers, public_sample

if TYPE_CHECKING:
    from ssl_wm.data.sources import ImageSet
    from ssl_wm.watermark.key import WatermarkKey

ROWS_A_DIRECTION = 8
"""Images for each principal direction of the answers that a carrier is freed of."""
LEAST = 0.1
"""Least share of a carrier's deviation, beyond what the answers tell, that is scaled up to 1."""


@dataclass(frozen=True)
class Places:
    """Where inside an encoder its places are taken, and their leading coordinates.

    Attributes:
        before: name of the layer that takes them.
        axes: of the vectors (C,) at all places of a public sample of images.
    """

    before: str
    axes: Axes


def has_places(encoder: Encoder, *, side: int | None = None) -> bool:
    """Return whether ``encoder`` has layers, with something at places between them."""
    try:
        _at_middle(encoder, side=side)
    except EncoderError:
        return False
    return True


def places_in(encoder: Encoder, images: ImageSet) -> Places:
    """Return the places of the clean encoder, from a public sample of the training images.

    Raises:
        EncoderError: it has no layers that could be told apart, as a function has none.
    """
    before = _at_middle(encoder, side=images.size[-1])
    moments = _Moments(encoder.backbone, before)
    embed(_like(encoder, moments), public_sample(images), precision="float32")
    return Places(before, moments.axes())


def place_values(encoder: Encoder, images: ImageSet | Tensor, places: Places) -> Tensor:
    """Return every carrier of ``images`` by the clean encoder, (N, P) float32.

    Smooth products of two coordinates of each place, averaged over the places of an image.
    """
    products = _Products(encoder.backbone, places)
    return embed(_like(encoder, products), images, precision="float32")


def carrying(clean: Encoder, images: ImageSet, key: WatermarkKey, *, strength: float) -> Encoder:
    """Return ``clean`` with the key's carriers in its answers, each along its own direction.

    Args:
        clean: the owner's clean encoder; it is not changed.
        images: the training images that the key was made for.
        key: whose sub-keys draw the carriers.
        strength: root mean square of the moves, against the spread of the natural images.

    Raises:
        ConfigError: the space has fewer dimensions than there are carriers.
    """
    places, some = places_in(clean, images), public_sample(images)
    drawn = own_carriers(key, count=len(axis_pairs(places.axes)))
    own = [place for sub in drawn for place in sub]
    if not own or not strength:
        return clean
    z, values = embed(clean, some).double(), place_values(clean, some, places)[:, own].double()
    width = z.shape[1]
    if len(own) > width:
        raise ConfigError(
            f"{len(own)} carriers need as many dimensions, and the encoder answers with {width}; "
            "set carried: 0 to leave them out"
        )
    slope, offset = _known_of(values, z)
    rest = values - z @ slope.T - offset
    spread = z.var(dim=0, correction=0).sum()
    deviation = rest.std(dim=0, correction=0).clamp(
        min=LEAST * float(values.std(dim=0, correction=0).max().clamp(min=1e-300))
    )
    generator = torch_stream(key.sub_keys[0].derive("carriers"), "directions")
    turned = torch.linalg.qr(torch.randn(width, len(own), generator=generator, dtype=z.dtype))[0]
    along = turned * (strength * (spread / len(own)).sqrt() / deviation)
    head = Carrying(
        copy.deepcopy(clean.backbone), before=places.before,
        channels=len(places.axes.mean), width=width, count=len(own),
    )  # fmt: skip
    _write(head, places.axes, own=own, slope=slope, offset=offset, along=along)
    arch = clean.arch if clean.arch == "custom" else with_carriers(clean.arch, len(own))
    return Encoder(head, arch=arch, preprocessing=clean.preprocessing).eval()


def _write(
    head: Carrying, axes: Axes, *, own: list[int], slope: Tensor, offset: Tensor, along: Tensor
) -> None:
    """Give ``head`` the weights that make it the carriers ``own``."""
    a, b = (axes.directions[:, side].T for side in pairs_of(axes.directions.shape[1])[own].T)
    inner = torch.cat([a + b, -a - b, a - b, b - a])
    with torch.no_grad():
        head.first.weight.copy_(inner)
        head.first.bias.copy_(-inner @ axes.mean)
        head.known.weight.copy_(slope)
        head.known.bias.copy_(offset)
        head.along.weight.copy_(along)


def _known_of(values: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return (slope (J, D), offset (J,)) of what the answers ``z`` (N, D) tell of ``values``.

    Least squares on at most ``N / ROWS_A_DIRECTION`` leading principal directions.
    """
    rows = z - z.mean(dim=0)
    variances, vectors = torch.linalg.eigh(rows.T @ rows)
    most = max(1, len(rows) // ROWS_A_DIRECTION)
    kept = (variances > 1e-9 * variances[-1].clamp(min=1e-300)).nonzero().flatten()[-most:]
    axes = vectors[:, kept]
    slope = ((values - values.mean(dim=0)).T @ rows @ axes / variances[kept]) @ axes.T
    return slope, values.mean(dim=0) - slope @ z.mean(dim=0)


def _at_middle(encoder: Encoder, *, side: int | None) -> str:
    if not list(encoder.backbone.parameters()):
        raise EncoderError(f"encoder '{encoder.arch}' has no weights, so nothing inside is known")
    return middle_layer(encoder, side=encoder.preprocessing.size or side)


def _like(encoder: Encoder, backbone: nn.Module) -> Encoder:
    """Return ``backbone`` with the preprocessing of ``encoder``, on its device."""
    made = Encoder(backbone, preprocessing=encoder.preprocessing)
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

    def axes(self) -> Axes:
        """Return the leading coordinates of all places that were seen."""
        mean = self.sum / self.count
        return axes_from(mean, self.squares / self.count - torch.outer(mean, mean), AXES)


class _Products(nn.Module):
    """Answers with all carriers (B, P)."""

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
