"""The adaptive attempts on carriers: what they are made of is taken out of the answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.places import place_products, places_in
from ssl_wm.encoders.space import smooth_products
from ssl_wm.errors import ConfigError
from ssl_wm.removal.given import Given, wrapped
from ssl_wm.removal.outputs import principal_components

RIDGE = 1e-3


class Flattened(nn.Module):
    """An encoder whose answers lose what products of their leading coordinates explain.

    Args:
        inner: the encoder.
        mean: (D,) of its answers.
        axes: (K, D) whitening leading axes.
        matrix: (P, D) what one unit of each product adds to the answers.
        offset: (P,) the products' means.
    """

    mean: Tensor
    axes: Tensor
    matrix: Tensor
    offset: Tensor

    def __init__(
        self, inner: Encoder, *, mean: Tensor, axes: Tensor, matrix: Tensor, offset: Tensor
    ) -> None:
        super().__init__()
        self.inner = inner
        for name, value in (("mean", mean), ("axes", axes), ("matrix", matrix), ("offset", offset)):
            self.register_buffer(name, value.float())

    def forward(self, images: Tensor) -> Tensor:
        """Return the flattened embeddings of ``images`` (B, 3, H, W)."""
        z: Tensor = self.inner(images).float()
        return z - (smooth_products((z - self.mean) @ self.axes.T) - self.offset) @ self.matrix


class FlattenedPlaces(nn.Module):
    """An encoder whose answers lose what products of its places explain.

    Args:
        inner: the encoder.
        products: answers with the products of its places (``place_products``).
        matrix: (P, D) what one unit of each product adds to the answers.
        offset: (P,) the products' means.
    """

    matrix: Tensor
    offset: Tensor

    def __init__(
        self, inner: Encoder, products: Encoder, *, matrix: Tensor, offset: Tensor
    ) -> None:
        super().__init__()
        self.inner, self.products = inner, products
        for name, value in (("matrix", matrix), ("offset", offset)):
            self.register_buffer(name, value.float())

    def forward(self, images: Tensor) -> Tensor:
        """Return the flattened embeddings of ``images`` (B, 3, H, W)."""
        z: Tensor = self.inner(images)
        found: Tensor = self.products(images)
        return z - (found - self.offset) @ self.matrix


def flatten(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Take out what the products of the ``strength`` leading principal coordinates explain.

    These are the very functions that carriers of the answers are made of, since a thief knows
    the method. Coordinates, products and their ridge regression (``RIDGE`` of the products' mean
    variance) are those of the answers to all of the thief's images.

    Raises:
        ConfigError: more coordinates than the embeddings have.
    """
    z = embed(encoder, given.needed).double()
    count = int(strength)
    if not 2 <= count <= z.shape[1]:
        raise ConfigError(
            f"embeddings of width {z.shape[1]} have 2 to {z.shape[1]} leading coordinates; got "
            f"{count}"
        )
    mean, basis = principal_components(z)
    spread = ((z - mean) @ basis[:count].T).std(dim=0, correction=0)
    axes = basis[:count] / spread.clamp(min=1e-12).unsqueeze(1)
    matrix, offset = _explained(z, smooth_products((z - mean) @ axes.T))
    return wrapped(
        Flattened(encoder, mean=mean, axes=axes, matrix=matrix, offset=offset), inner=encoder
    )


def flatten_places(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Take out what the products of the places inside the encoder explain.

    What carriers of the places are made of, but in the thief's own encoder: its middle layer,
    and the ``strength`` leading coordinates there. All else as in ``flatten``.

    Raises:
        EncoderError: the encoder has no layers that could be told apart.
    """
    products = place_products(encoder, places_in(encoder, given.needed, count=int(strength)))
    z, found = (embed(each, given.needed).double() for each in (encoder, products))
    matrix, offset = _explained(z, found)
    return wrapped(FlattenedPlaces(encoder, products, matrix=matrix, offset=offset), inner=encoder)


def _explained(z: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return (M (P, D), offset (P,)) such that (found - offset) M explains ``z`` (N, D) best."""
    offset = found.mean(dim=0)
    x = found - offset
    gram = x.T @ x
    loaded = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(loaded, x.T @ (z - z.mean(dim=0))), offset
