"""Attempts on the embeddings after the encoder.

Linear ones become a projection with weights of its own (``Projected``), so that the result is an
architecture with a name that can be saved and loaded. The others are a wrapper. Both work on
the answers of a service too.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Projected
from ssl_wm.encoders.names import with_width
from ssl_wm.encoders.serving.defences import (
    add_noise,
    keep_largest,
    random_rotation,
    round_off,
)
from ssl_wm.errors import ConfigError
from ssl_wm.removal.content import content_streams
from ssl_wm.removal.given import Given, wrapped
from ssl_wm.removal.inputs import described
from ssl_wm.rng import torch_stream


class OutputChange(Protocol):
    """A change of embeddings (B, D), which may depend on the images that they are of."""

    __name__: str

    def __call__(self, rows: Tensor, *, images: Tensor, strength: float, seed: int) -> Tensor:
        """Return the changed embeddings."""


class Answered(nn.Module):
    """An encoder behind a change of its embeddings; ``settings`` as in ``Filtered``."""

    def __init__(self, inner: Encoder, change: OutputChange, *, strength: float, seed: int) -> None:
        super().__init__()
        self.inner = inner
        self.change = partial(change, strength=strength, seed=seed)
        self.register_buffer("settings", described(change.__name__, strength, seed))

    def forward(self, images: Tensor) -> Tensor:
        """Return the changed embeddings of ``images`` (B, 3, H, W)."""
        return self.change(self.inner(images), images=images)


def after(encoder: Encoder, *, change: OutputChange, strength: float, given: Given) -> Encoder:
    """Return ``encoder`` with ``change`` behind it."""
    return wrapped(Answered(encoder, change, strength=strength, seed=given.seed), inner=encoder)


def rms(rows: Tensor) -> Tensor:
    """Return the root mean square (B,) of each row's coordinates: the scale of its embedding."""
    return rows.square().mean(dim=1).sqrt()


def rounding(rows: Tensor, *, images: Tensor, strength: float, seed: int) -> Tensor:
    """Round coordinates to multiples of ``strength`` times the embedding's own ``rms``.

    The step is relative, so that it means the same for embeddings of any scale.
    """
    step = (strength * rms(rows)).clamp(min=torch.finfo(rows.dtype).tiny).unsqueeze(1)
    return round_off(rows / step, decimals=0) * step


def top_k(rows: Tensor, *, images: Tensor, strength: float, seed: int) -> Tensor:
    """Set the share ``strength`` of the coordinates, the smallest magnitudes, to 0."""
    return keep_largest(rows, k=max(1, round((1 - strength) * rows.shape[1])))


def answer_noise(rows: Tensor, *, images: Tensor, strength: float, seed: int) -> Tensor:
    """Add Gaussian noise of ``strength`` times the embedding's ``rms``, drawn by the image."""
    scale = (strength * rms(rows)).cpu()
    streams = content_streams(images, seed=seed, name="answer noise")
    parts = [
        add_noise(row, sigma=sigma, generator=stream)
        for row, sigma, stream in zip(rows.cpu().split(1), scale.split(1), streams, strict=True)
    ]
    return torch.cat(parts).to(rows.device)


def shorten(rows: Tensor, *, images: Tensor, strength: float, seed: int) -> Tensor:
    """Divide each embedding by its length to the power ``strength``; 1 gives unit length."""
    length = rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    shorter: Tensor = rows / length.pow(strength)
    return shorter


def drop_components(
    encoder: Encoder, *, strength: float, given: Given, end: Literal["leading", "trailing"]
) -> Encoder:
    """Take principal components off the embeddings: ``z - (z - mu) V V^T``.

    V holds the components of natural images that are dropped: the ``strength`` of largest
    variance ("leading"), or the share ``strength`` of all D of smallest variance ("trailing").
    The mean mu stays.

    Raises:
        ConfigError: no images, or as many components to drop as the embeddings have.
    """
    z = embed(encoder, given.some_images()).double()
    mean, basis = principal_components(z)
    width = len(basis)
    count = int(strength) if end == "leading" else round(strength * width)
    if count >= width:
        raise ConfigError(
            f"embeddings of width {width} have no {count} components to drop; take fewer"
        )
    dropped = basis[:count] if end == "leading" else basis[width - count :]
    matrix = torch.eye(width, dtype=torch.float64) - dropped.T @ dropped
    return linear(encoder, matrix, offset=mean - matrix @ mean)


def principal_components(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and all principal axes (D, D) of ``z`` (N, D), largest variance first.

    Rows are axes of unit length. Where N is at most D, those without variance complete them to a
    basis.
    """
    mean = z.mean(dim=0)
    centred = z - mean
    _, axes = torch.linalg.eigh(centred.T @ centred)
    return mean, axes.T.flip(0)


def rotate(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Turn the share ``strength`` of the axes, chosen at random, by a random orthogonal map."""
    width = given.width(encoder)
    stream = torch_stream(given.seed, "rotate")
    chosen = torch.randperm(width, generator=stream)[: round(strength * width)]
    matrix = torch.eye(width, dtype=torch.float64)
    if len(chosen):
        turned = random_rotation(len(chosen), generator=stream).double()
        matrix[chosen.unsqueeze(1), chosen] = turned
    return linear(encoder, matrix)


def permute(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Permute the share ``strength`` of the coordinates, chosen at random."""
    width = given.width(encoder)
    stream = torch_stream(given.seed, "permute")
    chosen = torch.randperm(width, generator=stream)[: round(strength * width)]
    places = torch.arange(width)
    places[chosen] = chosen[torch.randperm(len(chosen), generator=stream)]
    return linear(encoder, torch.eye(width, dtype=torch.float64)[places])


def scale(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Multiply the embeddings by ``strength``."""
    width = given.width(encoder)
    return linear(encoder, strength * torch.eye(width, dtype=torch.float64))


def narrow(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Project onto a random subspace that is narrower by the share ``strength``.

    The rows of the map are the first of a random orthogonal matrix, so that lengths shrink by
    the square root of the share that is kept, on average (Johnson and Lindenstrauss).
    """
    width = given.width(encoder)
    kept = max(1, round((1 - strength) * width))
    turned = random_rotation(width, generator=torch_stream(given.seed, "narrow"))
    return linear(encoder, turned[:kept].double())


def linear(encoder: Encoder, matrix: Tensor, *, offset: Tensor | None = None) -> Encoder:
    """Return ``encoder`` followed by ``z -> matrix z + offset``, as weights.

    An encoder of a named architecture becomes ``name+D``, which ``load_encoder`` builds.

    Args:
        encoder: the encoder, or a service.
        matrix: (D', D) float64.
        offset: (D',) float64; None is 0.
    """
    outputs, inputs = matrix.shape
    plain = bool(encoder.backbone.state_dict())
    below = encoder.backbone if plain else encoder
    with torch.random.fork_rng(devices=[]):
        backbone = Projected(below, inputs=inputs, outputs=outputs)
    with torch.no_grad():
        backbone.projection.weight.copy_(matrix)
        backbone.projection.bias.copy_(torch.zeros(outputs) if offset is None else offset)
    if not plain:
        return wrapped(backbone, inner=encoder)
    custom = encoder.arch == "custom"
    result = Encoder(
        backbone, arch="custom" if custom else with_width(encoder.arch, outputs),
        preprocessing=encoder.preprocessing, made=encoder.made,
    )  # fmt: skip
    return result.to(encoder.mean.device).eval()
