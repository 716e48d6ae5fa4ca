"""Carriers of the answers: secret functions of an image that are added to an encoder's answers.

Spread-spectrum watermarking (Cox et al., IEEE TIP 1997) with functions of the image in place of
frequencies. A carrier is a smooth product of two leading principal coordinates of the clean
encoder's space. No linear map of the clean answers gives it, so an encoder that was trained on
other answers has little of it beyond them; a copy had to learn the owner's, and since its last
layer alone cannot make a product, it learned them in the layers before.

Which products exist is public (``carrier_values``), which ones are the owner's follows from the
sub-keys' seeds (``own_carriers``). Carriers that lie deeper are in ``places.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.space import Axes, leading_axes, pairs_of, product_units, smooth_products
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.derivation import stream_of

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.watermark.open_key import OpenKey

AXES = 20
"""Leading principal coordinates whose products are carriers."""
EACH = 3
"""Carriers of each sub-key, unless ``keygen`` is told otherwise."""
SAMPLE = 10_000
"""Most training images that the coordinates are computed from."""


def axes_of(encoder: Encoder, images: ImageSet) -> Axes:
    """Return the leading coordinates of the clean encoder, from a public sample of ``images``.

    Args:
        encoder: the owner's clean encoder.
        images: the training images that the key was made for.
    """
    return leading_axes(embed(encoder, public_sample(images), precision="auto"), count=AXES)


def public_sample(images: ImageSet) -> ImageSet:
    """Return up to ``SAMPLE`` of the training images, which anybody would choose alike."""
    order = torch.randperm(len(images), generator=torch_stream(0, "axes"))
    return images.subset(order[:SAMPLE].sort().values)


def axis_pairs(axes: Axes) -> Tensor:
    """Return which two coordinates each carrier multiplies, (P, 2), P = K (K - 1) / 2."""
    return pairs_of(axes.directions.shape[1])


def carrier_values(z: Tensor, axes: Axes) -> Tensor:
    """Return every carrier of embeddings ``z`` (N, D) by the clean encoder, (N, P) float64.

    The smooth products of two of its leading coordinates.
    """
    return smooth_products((z.double() - axes.mean) @ axes.directions)


def own_carriers(key: OpenKey, *, count: int) -> list[list[int]]:
    """Return the places of each sub-key's carriers among ``count``, drawn from its seed.

    Each sub-key draws as many different ones as the key's terms say, independently of the others.
    Where there are not more to draw from, they have none.
    """
    each = key.terms.carriers if key.terms.carriers < count else 0
    return [
        sorted(stream_of(sub.derive("carriers")).choice(count, each, replace=False).tolist())
        for sub in key.sub_keys
    ]


class Carriers(nn.Module):
    """The owner's carriers, each along a direction of its own: a layer of 4 GELU units for each.

    Args:
        axes: leading coordinates of the clean encoder.
        places: J places of the carriers among all.
        natural: (N, D) the clean encoder's answers to natural images.
        strength: root mean square of the moves, against the spread of the natural images.
        generator: draws the directions, orthogonal ones.

    Raises:
        ConfigError: the space has fewer dimensions than there are carriers.
    """

    first: Tensor
    bias: Tensor
    last: Tensor

    def __init__(
        self, axes: Axes, places: Sequence[int], natural: Tensor, *, strength: float,
        generator: Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        width, count = len(axes.mean), len(places)
        if count > width:
            raise ConfigError(
                f"{count} carriers need as many dimensions, and the encoder answers with {width}; "
                "set carried: 0 to leave them out"
            )
        drawn = torch.randn(width, count, generator=generator, dtype=torch.float64)
        along = torch.linalg.qr(drawn)[0].T
        values = carrier_values(natural, axes)[:, list(places)]
        moved = (values - values.mean(dim=0)).square().sum(dim=1).mean()
        spread = natural.double().var(dim=0, correction=0).sum()
        along = along * (strength * (spread / moved.clamp(min=1e-300)).sqrt())
        first, bias = product_units(axes, places)
        self.register_buffer("first", first)
        self.register_buffer("bias", bias)
        self.register_buffer("last", torch.cat([along, along, -along, -along]).T.contiguous())

    def forward(self, z: Tensor) -> Tensor:
        """Return the moves (N, D) of embeddings ``z`` (N, D), in z's precision."""
        first, bias, last = (part.to(z.dtype) for part in (self.first, self.bias, self.last))
        return F.linear(F.gelu(F.linear(z, first, bias)), last)
