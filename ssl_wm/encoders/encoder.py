"""The encoder contract: images (B, 3, H, W) in [0, 1] -> embeddings (B, D), float32.

An ``Encoder`` owns its preprocessing (input size, normalisation), so callers never
normalise. Every stage of the project speaks to encoders through this contract only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.errors import EncoderError


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder does to images in [0, 1] before its first layer.

    Attributes:
        mean: per-channel mean that is subtracted.
        std: per-channel deviation that is divided by.
        size: side in pixels that images are resized to (bilinear, antialiased); None keeps
            the size that comes.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    size: int | None = None


class Encoder(nn.Module):
    """A backbone with its preprocessing: (B, 3, H, W) in [0, 1] -> (B, D) float32.

    Args:
        backbone: module from normalised images to a (B, D) tensor, a (B, D, h, w) map
            (averaged over h and w), or a mapping/tuple that holds one of these.
        arch: name that ``load_encoder`` builds the backbone from; "custom" when it cannot.
        preprocessing: what happens to the images first.
        made: how the encoder came to be (stage, settings, parents), kept in ``encoder.json``.

    >>> flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    >>> Encoder(flat)(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 12])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        arch: str = "custom",
        preprocessing: Preprocessing | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.arch = arch
        self.preprocessing = preprocessing or Preprocessing()
        self.made = dict(made or {})
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of ``images`` (B, 3, H, W), uint8 or float in [0, 1].

        Raises:
            EncoderError: the images are not (B, 3, H, W), or the backbone's output is no
                (B, D) tensor.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise EncoderError(
                f"an encoder takes images (B, 3, H, W); got shape {tuple(images.shape)}"
            )
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        size = self.preprocessing.size
        if size is not None and tuple(x.shape[-2:]) != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = (x - self.mean) / self.std
        output = self.backbone(x.contiguous(memory_format=torch.channels_last))
        return as_matrix(output, batch=len(images))


def as_matrix(output: object, *, batch: int) -> Tensor:
    """Return a backbone's ``output`` as (B, D) float32 embeddings.

    Raises:
        EncoderError: there is no such tensor in it; the message says what came.
    """
    tensor = _find_tensor(output)
    if tensor is not None and tensor.ndim == 4:
        tensor = tensor.mean(dim=(2, 3))
    if tensor is None or tensor.ndim != 2 or len(tensor) != batch:
        came = type(output).__name__ if tensor is None else f"shape {tuple(tensor.shape)}"
        raise EncoderError(
            f"an encoder must return ({batch}, D) embeddings for {batch} images; it returned "
            f"{came}. Wrap it so that it returns one vector per image"
        )
    return tensor.float()


def _find_tensor(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for name in ("pooler_output", "image_embeds", "embeddings", "last_hidden_state"):
            if isinstance(output.get(name), Tensor):
                found: Tensor = output[name]
                return found[:, 0] if name == "last_hidden_state" else found
        return next((value for value in output.values() if isinstance(value, Tensor)), None)
    if isinstance(output, tuple | list) and output:
        return _find_tensor(output[0])
    return None


@dataclass(frozen=True)
class EncoderFacts:
    """What a saved encoder says of itself (``encoder.json``)."""

    arch: str
    width: int
    preprocessing: Preprocessing
    sha256: str
    made: dict[str, Any] = field(default_factory=dict)
