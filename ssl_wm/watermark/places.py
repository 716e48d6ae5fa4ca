"""Carriers of the places: like ``carriers.py``, but made of what lies inside the clean encoder.

A carrier is the mean over all places of the image of a smooth product of two leading principal
coordinates of what the middle layer takes there, less what is linear in the clean answers. Means
over the places do not tell it, so a copy has the product before it averages, and hands it on: it
stays in the copy when the last layers are left out or trained anew.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Carrying
from ssl_wm.encoders.names import with_carriers
from ssl_wm.encoders.places import Places, place_products, places_in
from ssl_wm.encoders.space import ROWS_A_DIRECTION, product_units
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.carriers import AXES, axis_pairs, own_carriers, public_sample

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.watermark.key import WatermarkKey

LEAST = 0.1
"""Least share of a carrier's deviation, beyond what the answers tell, that is scaled up to 1."""


def carrier_places(encoder: Encoder, images: ImageSet) -> Places:
    """Return the places of the clean encoder, from a public sample of the training images.

    Raises:
        EncoderError: it has no layers that could be told apart, as a function has none.
    """
    return places_in(encoder, public_sample(images), count=AXES)


def place_values(encoder: Encoder, images: ImageSet | Tensor, places: Places) -> Tensor:
    """Return every carrier of ``images`` by the clean encoder, (N, P) float32."""
    return embed(place_products(encoder, places), images)


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
    if not strength:
        return clean
    places, some = carrier_places(clean, images), public_sample(images)
    drawn = own_carriers(key, count=len(axis_pairs(places.axes)))
    own = [place for sub in drawn for place in sub]
    if not own:
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
    first, bias = product_units(places.axes, own)
    with torch.no_grad():
        head.first.weight.copy_(first)
        head.first.bias.copy_(bias)
        head.known.weight.copy_(slope)
        head.known.bias.copy_(offset)
        head.along.weight.copy_(along)
    arch = clean.arch if clean.arch == "custom" else with_carriers(clean.arch, len(own))
    return Encoder(head, arch=arch, preprocessing=clean.preprocessing).eval()


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
