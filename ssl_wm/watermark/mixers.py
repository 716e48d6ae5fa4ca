"""Mixers: ways of combining an image of group A with one of group B into a composite.

The four families of MEA-Defender (Lv et al., S&P 2024, section IV-B). Their geometry, which
the paper fixes, is drawn here from the key's secret stream. ``MIXERS`` is the table; a new
family is a class with ``draw`` and a line there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor

from ssl_wm.errors import choose
from ssl_wm.watermark.autoencoder import Autoencoder


class Mixer(Protocol):
    """One fixed way of mixing; all its parameters are secret unless revealed."""

    def mix(self, a: Tensor, b: Tensor, *, generator: Generator) -> Tensor:
        """Return composites (B, 3, H, W) in [0, 1] of ``a`` and ``b``, of the same shape."""
        ...


@dataclass(frozen=True)
class CropPaste:
    """A window of B pasted beside a window of A, along one straight seam.

    Attributes:
        vertical: whether the seam is vertical (A left, B right) or horizontal (A above B).
        cut: share of the side that A keeps.
    """

    vertical: bool
    cut: float

    @classmethod
    def draw(cls, stream: np.random.Generator, *, autoencoder: Autoencoder | None) -> Self:
        """Draw the seam's direction and its place in [0.42, 0.58] of the side."""
        return cls(bool(stream.integers(2)), round(float(stream.uniform(0.42, 0.58)), 4))

    def mix(self, a: Tensor, b: Tensor, *, generator: Generator) -> Tensor:
        """Return (B, 3, H, W): each side of the seam is a random window of its image."""
        along = 3 if self.vertical else 2
        side = a.shape[along]
        first = min(max(round(self.cut * side), 1), side - 1)
        left = _random_window(a, first, dim=along, generator=generator)
        right = _random_window(b, side - first, dim=along, generator=generator)
        return torch.cat([left, right], dim=along)


@dataclass(frozen=True)
class PixelMerge:
    """The pixel average ``share * a + (1 - share) * b``."""

    share: float

    @classmethod
    def draw(cls, stream: np.random.Generator, *, autoencoder: Autoencoder | None) -> Self:
        """Draw A's share in [0.42, 0.58] (the paper: 0.5)."""
        return cls(round(float(stream.uniform(0.42, 0.58)), 4))

    def mix(self, a: Tensor, b: Tensor, *, generator: Generator) -> Tensor:
        """Return (B, 3, H, W), the weighted mean."""
        return self.share * a + (1 - self.share) * b


@dataclass(frozen=True)
class Stripes:
    """Stripes taken in turn from A and B.

    Attributes:
        vertical: whether the stripes are columns or rows.
        count: number of stripes; A has the first (the paper: 5, three of them A's).
        shift: cyclic shift of the pattern, as a share of one stripe.
    """

    vertical: bool
    count: int
    shift: float

    @classmethod
    def draw(cls, stream: np.random.Generator, *, autoencoder: Autoencoder | None) -> Self:
        """Draw direction, 4 to 7 stripes and a shift in [0, 1)."""
        vertical, count = bool(stream.integers(2)), int(stream.integers(4, 8))
        return cls(vertical, count, round(float(stream.uniform(0, 1)), 4))

    def mix(self, a: Tensor, b: Tensor, *, generator: Generator) -> Tensor:
        """Return (B, 3, H, W): position p is A's where its stripe's number is even."""
        along = 3 if self.vertical else 2
        places = (torch.arange(a.shape[along], device=a.device) + 0.5) / a.shape[along]
        even = ((places * self.count + self.shift).floor() % 2 == 0).float()
        mask = even.view(1, 1, 1, -1) if self.vertical else even.view(1, 1, -1, 1)
        return mask * a + (1 - mask) * b


@dataclass(frozen=True)
class AutoencoderBlend:
    """Decode ``share * v(a) + (1 - share) * v(b)`` with a small autoencoder."""

    share: float
    autoencoder: Autoencoder

    @classmethod
    def draw(cls, stream: np.random.Generator, *, autoencoder: Autoencoder | None) -> Self:
        """Draw A's share in [0.42, 0.58] (the paper: 0.5)."""
        if autoencoder is None:
            raise ValueError("the autoencoder blend needs the key's autoencoder")
        return cls(round(float(stream.uniform(0.42, 0.58)), 4), autoencoder)

    def mix(self, a: Tensor, b: Tensor, *, generator: Generator) -> Tensor:
        """Return (B, 3, H, W), the decoded blend of the two codes."""
        with torch.no_grad():
            self.autoencoder.to(a.device)
            code = self.share * self.autoencoder.encode(a)
            code = code + (1 - self.share) * self.autoencoder.encode(b)
            return self.autoencoder.decode(code, size=(a.shape[2], a.shape[3]))


MIXERS: dict[str, type[CropPaste | PixelMerge | Stripes | AutoencoderBlend]] = {
    "crop-paste": CropPaste,
    "pixel-merge": PixelMerge,
    "stripes": Stripes,
    "autoencoder": AutoencoderBlend,
}


def draw_mixer(
    family: str, stream: np.random.Generator, *, autoencoder: Autoencoder | None = None
) -> Mixer:
    """Return a mixer of ``family`` with geometry from ``stream``.

    Raises:
        ConfigError: the family is unknown.
    """
    table = MIXERS[choose(family, MIXERS, what="mixer")]
    return table.draw(stream, autoencoder=autoencoder)


def other_mixers(
    family: str, mixer: Mixer, stream: np.random.Generator, *, autoencoder: Autoencoder | None
) -> dict[str, Mixer]:
    """Return the rest of the mixer set C: what must *not* open the mark (the paper's D_ad).

    One mixer of each other family, and for a seam or stripes the same family turned by 90
    degrees, so that the secret geometry matters and not only the family.
    """
    others: dict[str, Mixer] = {
        name: draw_mixer(name, stream, autoencoder=autoencoder)
        for name in MIXERS
        if name != family and (name != "autoencoder" or autoencoder is not None)
    }
    if isinstance(mixer, CropPaste):
        others["crop-paste, turned"] = CropPaste(not mixer.vertical, mixer.cut)
    if isinstance(mixer, Stripes):
        others["stripes, turned"] = Stripes(not mixer.vertical, mixer.count, mixer.shift)
    return others


def describe_mixer(mixer: Mixer) -> dict[str, Any]:
    """Return a mixer's parameters as plain data (secret: shown only for revealed sub-keys)."""
    if isinstance(mixer, AutoencoderBlend):
        return {"share": mixer.share}
    return asdict(mixer)  # type: ignore[call-overload, no-any-return]


def _random_window(images: Tensor, length: int, *, dim: int, generator: Generator) -> Tensor:
    batch, side = len(images), images.shape[dim]
    start = torch.randint(side - length + 1, (batch,), generator=generator).to(images.device)
    places = start.view(-1, 1) + torch.arange(length, device=images.device)
    shape = [batch, 1, 1, length] if dim == 3 else [batch, 1, length, 1]
    expanded = list(images.shape)
    expanded[dim] = length
    return images.gather(dim, places.view(shape).expand(expanded))
