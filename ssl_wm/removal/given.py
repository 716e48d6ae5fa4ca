"""What every attempt is given, and the copy of the encoder that it works on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ssl_wm.data.views import ViewConfig
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.properties import width_of
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.later import WithLater
from ssl_wm.rng import torch_stream
from ssl_wm.training.settings import FitConfig

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

DISTIL = FitConfig(epochs=20, batch_size=128, learning_rate=2e-3)
UNTOUCHED = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=None)


class RemovalConfig(WithLater):
    """How the attempts that train or look at images work.

    Attributes:
        fit: the training loop. Where the strength is a learning rate it replaces ``fit``'s.
        objective: of the attempts that train without labels, a name in ``OBJECTIVES``.
        ssl_views: their augmentation.
        views: augmentation of the attempts that train with labels or composites.
        sample: images that activations and principal components are measured on, at most.
        distil: the training loop of ``distil``, which starts from random weights.
        distil_arch: the architecture of its result; None takes the encoder's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {"distil": DISTIL, "distil_arch": None}

    fit: FitConfig = FitConfig(epochs=5, batch_size=64, weight_decay=0.0)
    objective: str = "simclr"
    ssl_views: ViewConfig = ViewConfig()
    views: ViewConfig = ViewConfig(crop=0.5, min_scale=0.6, jitter=0.0, grey=0.0)
    sample: int = Field(2000, ge=2)
    distil: FitConfig = DISTIL
    distil_arch: str | None = None


@dataclass(frozen=True)
class Given:
    """What an attempt is given besides the encoder and its strength.

    Attributes:
        images: the thief's images, with labels where the attempt needs them.
        seed: of all draws.
        folder: where a run that trains keeps its checkpoint and metrics.
        config: settings of the attempts that train or look at images.
    """

    images: ImageSet | None = None
    seed: int = 0
    folder: Path | None = None
    config: RemovalConfig = field(default_factory=RemovalConfig)

    @property
    def needed(self) -> ImageSet:
        """The thief's images.

        Raises:
            ConfigError: there are none.
        """
        if self.images is None:
            raise ConfigError("this attempt needs images of the thief; give images=")
        return self.images

    def sample(self) -> Tensor:
        """Return the places (n,) of a random sample of the images, at most ``config.sample``."""
        order = torch.randperm(len(self.needed), generator=torch_stream(self.seed, "sample"))
        return order[: self.config.sample]

    def some_images(self) -> Tensor:
        """Return the sampled images (n, 3, H, W), uint8."""
        return self.needed.take(self.sample())

    def width(self, encoder: Encoder) -> int:
        """Return D of ``encoder``'s embeddings, by a pass over images of the right size."""
        return width_of(encoder, image_size=self.side(encoder))

    def side(self, encoder: Encoder) -> int | None:
        """Return the side in pixels of images to try ``encoder`` on; None lets it be found."""
        if encoder.preprocessing.size is not None or self.images is None:
            return None
        return self.images.size[0]


def copy_of(encoder: Encoder) -> Encoder:
    """Return an encoder that can be changed without changing ``encoder``, in eval mode.

    One without weights (a service, a function) holds nothing that could change, so it is
    returned as it is.
    """
    if not encoder.backbone.state_dict():
        return encoder
    result = Encoder(
        copy.deepcopy(encoder.backbone), arch=encoder.arch,
        preprocessing=encoder.preprocessing, made=encoder.made,
    )  # fmt: skip
    return result.to(encoder.mean.device).requires_grad_(True).eval()


def wrapped(backbone: nn.Module, *, inner: Encoder) -> Encoder:
    """Return ``backbone``, which holds ``inner``, as an encoder that gets images in [0, 1]."""
    result = Encoder(backbone, preprocessing=UNTOUCHED, made=inner.made)
    return result.to(inner.mean.device).eval()


def weights_of(encoder: Encoder) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions and linear maps by name; no norms, biases, tokens.

    These are the parameters called ``weight`` with two or more axes, the first of which counts
    output units. Batch norms have one axis, so also those with other names are left alone.

    Raises:
        EncoderError: there are none (a service, a function, or a net of buffers).
    """
    found = {
        name: value
        for name, value in encoder.backbone.named_parameters()
        if value.ndim > 1 and name.endswith("weight")
    }
    if not found:
        raise EncoderError(
            f"encoder '{encoder.arch}' holds no convolution or linear map, so there are no weights "
            "to change; take an attempt on inputs or outputs, or steal a copy first"
        )
    return found
