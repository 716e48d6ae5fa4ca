"""Two-view augmentation of whole batches, on the device the images are on.

Every image draws its own parameters. The crop and flip are one ``grid_sample``; the whole
colour jitter (brightness, contrast, saturation, hue in random order, then grey) is one
affine map of the colour channels per image.

Differences from torchvision's ``ColorJitter``: values are clamped once at the end, not after
each operation, and hue is a rotation of the chroma plane (YIQ), not a shift in HSV.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

TRIES = 10
GREY = (0.299, 0.587, 0.114)
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class ViewConfig(BaseModel):
    """The SimCLR family of augmentations (Chen et al., 2020, appendix A), without blur.

    Attributes:
        crop: probability of a random resized crop; else the whole image stays as it is.
        min_scale: smallest area of a crop, as a share of the image.
        flip: probability of a horizontal flip.
        jitter: probability of the colour jitter.
        brightness: largest relative change; likewise ``contrast`` and ``saturation``.
        contrast: see brightness.
        saturation: see brightness.
        hue: largest hue rotation, as a share of the full circle.
        grey: probability of turning grey.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: float = Field(1.0, ge=0, le=1)
    min_scale: float = Field(0.2, gt=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    jitter: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    grey: float = Field(0.2, ge=0, le=1)


class Draws:
    """Random numbers for a batch, or for one process's share of it.

    The numbers of the whole batch are drawn and the share's are kept, so that an image's view does
    not depend on how many processes there are.

    Args:
        count: images of this share.
        generator: the stream, on the images' device.
        rank: which of the equal shares this is.
        world: how many shares there are.
    """

    def __init__(self, count: int, *, generator: Generator, rank: int = 0, world: int = 1) -> None:
        self.total, self.rows = count * world, slice(rank * count, (rank + 1) * count)
        self.generator, self.device = generator, generator.device

    def uniform(self, *leading: int) -> Tensor:
        """Return numbers in [0, 1), (..., count), after the ``leading`` sizes."""
        drawn = torch.rand(*leading, self.total, generator=self.generator, device=self.device)
        return drawn[..., self.rows]

    def order(self, parts: int) -> Tensor:
        """Return a random order of ``parts`` things for each image, (count, parts)."""
        drawn = torch.rand(self.total, parts, generator=self.generator, device=self.device)
        return drawn[self.rows].argsort(dim=1)


def augment(
    images: Tensor, *, config: ViewConfig, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """Return one random view of each image.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        config: strengths and probabilities.
        generator: stream of the parameters, on the images' device.
        rank: which of ``world`` equal shares of a batch ``images`` is; its views are those that
            the images have in the whole batch.
        world: shares of the batch.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    with torch.autocast(images.device.type, enabled=False):  # colours need more than bfloat16
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        x = random_crop_flip(x, config=config, generator=generator, rank=rank, world=world)
        matrix, offset = colour_maps(
            x.mean(dim=(2, 3)), config=config, generator=generator, rank=rank, world=world
        )
        flat = torch.baddbmm(offset.unsqueeze(2), matrix, x.flatten(2))
        return flat.clamp_(0, 1).view_as(x)


def random_crop_flip(
    images: Tensor, *, config: ViewConfig, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """Return random resized crops (area in [min_scale, 1], ratio in [3/4, 4/3]) with flips.

    A share ``crop`` of the images is cropped, by the law of torchvision's
    ``RandomResizedCrop``: area and ratio are drawn until the
    crop fits into the image, at most ten times, else the whole image is taken (so always with
    min_scale 1). ``images`` and the result are (B, 3, H, W) floats; for images that are not
    square, the ratio is relative to theirs. ``rank`` and ``world`` as in ``augment``.
    """
    batch = len(images)
    draws = Draws(batch, generator=generator, rank=rank, world=world)

    def uniform(low: float, high: float, *, tries: int = 1) -> Tensor:
        return (draws.uniform(tries) * (high - low) + low).squeeze(0)

    area = uniform(config.min_scale, 1.0, tries=TRIES)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3), tries=TRIES).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])
    fits = (sides <= 1).all(dim=0)
    first = fits.byte().argmax(dim=0).expand(2, 1, batch)
    width, height = torch.where(fits.any(dim=0), sides.gather(1, first).squeeze(1), 1.0)
    whole = uniform(0, 1) >= config.crop
    width, height = width.where(~whole, 1.0), height.where(~whole, 1.0)
    centre_x = uniform(-1, 1) * (1 - width)
    centre_y = uniform(-1, 1) * (1 - height)
    mirrored = torch.where(uniform(0, 1) < config.flip, -width, width)
    zero = torch.zeros_like(width)
    theta = torch.stack([mirrored, zero, centre_x, zero, height, centre_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def colour_maps(
    means: Tensor, *, config: ViewConfig, generator: Generator, rank: int = 0, world: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the affine colour map of each image, ``x -> matrix @ x + offset``.

    Args:
        means: (B, 3) mean colour of each image (contrast turns around its grey value).
        config: strengths and probabilities.
        generator: stream of the parameters.
        rank: as in ``augment``; likewise ``world``.
        world: see ``rank``.

    Returns:
        matrix (B, 3, 3) and offset (B, 3).
    """
    batch, device = len(means), means.device
    draws = Draws(batch, generator=generator, rank=rank, world=world)
    uniform = draws.uniform
    eye = torch.eye(3, device=device)
    grey = torch.tensor(GREY, device=device)
    grey_map = grey.expand(3, 3)

    def factor(strength: float) -> Tensor:
        return (1 + strength * (2 * uniform() - 1)).view(-1, 1, 1)

    saturation = factor(config.saturation)
    contrast = factor(config.contrast)
    changes = torch.stack(
        [
            factor(config.brightness) * eye,
            contrast * eye,
            saturation * eye + (1 - saturation) * grey_map,
            hue_rotation(config.hue * (2 * uniform() - 1)),
        ]
    )
    order = draws.order(4)
    rows = torch.arange(batch, device=device)
    matrix, offset = eye.repeat(batch, 1, 1), torch.zeros(batch, 3, device=device)
    for position in range(4):
        chosen = order[:, position]
        change = changes[chosen, rows]
        level = ((matrix @ means.unsqueeze(2)).squeeze(2) + offset) @ grey
        shift = torch.where(chosen == 1, (1 - contrast.view(-1)) * level, 0.0)
        matrix = change @ matrix
        offset = (change @ offset.unsqueeze(2)).squeeze(2) + shift.unsqueeze(1)
    plain = (uniform() >= config.jitter).view(-1, 1, 1)
    matrix = torch.where(plain, eye, matrix)
    offset = torch.where(plain.view(-1, 1), 0.0, offset)
    to_grey = torch.where((uniform() < config.grey).view(-1, 1, 1), grey_map, eye)
    return to_grey @ matrix, (to_grey @ offset.unsqueeze(2)).squeeze(2)


def hue_rotation(turns: Tensor) -> Tensor:
    """Return the RGB maps (B, 3, 3) that turn the chroma plane by ``turns`` (B,) full circles.

    >>> bool(torch.allclose(hue_rotation(torch.zeros(1))[0], torch.eye(3), atol=1e-5))
    True
    """
    to_yiq = torch.tensor(RGB_TO_YIQ, device=turns.device)
    cosine, sine = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()
    rotation = torch.zeros(len(turns), 3, 3, device=turns.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = cosine
    rotation[:, 1, 2], rotation[:, 2, 1] = -sine, sine
    to_rgb: Tensor = torch.linalg.inv(to_yiq)
    return to_rgb @ rotation @ to_yiq
