"""What goes into a layer inside an encoder: one vector for each place of the image."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder, as_matrix
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.properties import width_of
from ssl_wm.errors import EncoderError


def middle_layer(encoder: Encoder, *, side: int | None = None) -> str:
    """Return the name of the layer in the middle, after which the later half lies.

    The later half, rounded up, are the layers that ``cut_short`` leaves out to end before it.

    Args:
        encoder: its mode, weights and buffers stay as they are.
        side: side in pixels of images to find it with; None takes the encoder's own.

    Raises:
        EncoderError: it has no two convolutions or linear maps.
    """
    layers = layers_of(encoder, side=side)
    if len(layers) < 2:
        raise EncoderError(f"encoder '{encoder.arch}' has one layer, so none lies inside it")
    names: dict[nn.Module, str] = {part: name for name, part in encoder.backbone.named_modules()}
    return names[layers[len(layers) // 2].map]


def inner_width(encoder: Encoder, *, before: str, side: int | None = None) -> int:
    """Return C of what the layer ``before`` takes, (B, n, C), by one pass over two grey images.

    Raises:
        EncoderError: as ``answers_and_places``, or the encoder takes no images of this size.
    """
    found: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(places_of(inputs[0], batch=2).shape[2])

    hook = encoder.backbone.get_submodule(before).register_forward_pre_hook(note)
    try:
        width_of(encoder, image_size=side)
    finally:
        hook.remove()
    return found[0]


def answers_and_places(backbone: nn.Module, x: Tensor, *, before: str) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, D) of ``x`` (B, 3, H, W), and what one layer takes, (B, n, C).

    Several threads may ask at once.

    Args:
        backbone: module that ``Encoder`` takes.
        x: images as the backbone takes them.
        before: name of the layer among its modules; what it takes first is returned.

    Raises:
        EncoderError: the layer is not reached, or what it takes is no map of the images.
    """
    taken: list[Tensor] = []
    mine = threading.get_ident()

    def take(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not taken and threading.get_ident() == mine:
            taken.append(inputs[0])

    hook = backbone.get_submodule(before).register_forward_pre_hook(take)
    try:
        z = as_matrix(backbone(x), batch=len(x))
    finally:
        hook.remove()
    if not taken:
        raise EncoderError(f"the layer '{before}' was not reached, so nothing goes into it")
    return z, places_of(taken[0], batch=len(x))


def places_of(value: Tensor, *, batch: int) -> Tensor:
    """Return what a layer takes as one vector for each place, (B, n, C).

    Maps (B, C, h, w) have h w places, tokens (B, n, C) n and vectors (B, C) one.

    Raises:
        EncoderError: it is nothing of that kind.

    >>> import torch
    >>> shapes = [(2, 3, 4, 4), (2, 5, 3), (2, 3)]
    >>> [tuple(places_of(torch.zeros(shape), batch=2).shape) for shape in shapes]
    [(2, 16, 3), (2, 5, 3), (2, 1, 3)]
    """
    if len(value) == batch:
        if value.ndim == 4:
            return value.flatten(2).transpose(1, 2)
        if value.ndim == 3:
            return value
        if value.ndim == 2:
            return value.unsqueeze(1)
    raise EncoderError(
        f"a layer inside takes {tuple(value.shape)} for {batch} images; expected (B, C, h, w), "
        "(B, n, C) or (B, C)"
    )
