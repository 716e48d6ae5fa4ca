"""An encoder's layers in the order in which they are executed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import width_of
from ssl_wm.errors import EncoderError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAPS = (*CONVOLUTIONS, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear map with the norm that is executed right after it, if any."""

    map: nn.Module
    norm: nn.Module | None

    @property
    def parts(self) -> list[nn.Module]:
        """The map and, where there is one, its norm."""
        return [self.map] if self.norm is None else [self.map, self.norm]

    @property
    def weight(self) -> Tensor:
        """The map's weights, (C, ...) for C output units."""
        weight = self.map.weight
        if not isinstance(weight, Tensor):
            raise EncoderError(f"a layer {type(self.map).__name__} has no weights of its own")
        return weight

    @property
    def last(self) -> nn.Module:
        """Where the layer's output comes out: the norm, or the map."""
        return self.parts[-1]


def layers_of(encoder: Encoder, *, side: int | None = None) -> list[Layer]:
    """Return the convolutions and linear maps with their norms, in order of first execution.

    Found by one pass over two grey images, so the order is that of the computation, whatever
    the order in which the network was written down. A norm belongs to the map before it when it
    has as many channels as that map has output units.

    Args:
        encoder: its mode, weights and buffers stay as they are.
        side: side in pixels of the images; None takes the encoder's own.

    Raises:
        EncoderError: there is no such layer, or the encoder takes no images of this size.
    """
    seen: dict[nn.Module, None] = {}

    def note(module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        seen.setdefault(module)

    hooks = [
        part.register_forward_hook(note)
        for part in encoder.backbone.modules()
        if isinstance(part, MAPS + NORMS)
    ]
    try:
        width_of(encoder, image_size=side)
    finally:
        for hook in hooks:
            hook.remove()
    order = list(seen)
    found = [
        Layer(part, _norm_of(part, after))
        for part, after in zip(order, [*order[1:], None], strict=True)
        if isinstance(part, MAPS)
    ]
    if not found:
        raise EncoderError(f"encoder '{encoder.arch}' executes no convolution or linear map")
    return found


def convolutions_of(encoder: Encoder, *, side: int | None = None) -> list[Layer]:
    """Return the layers of ``layers_of`` that are convolutions; there are two or more.

    Raises:
        EncoderError: there are fewer, as in a transformer, where the one convolution cuts the
            image into patches; or as in ``layers_of``.
    """
    found = [
        layer for layer in layers_of(encoder, side=side) if isinstance(layer.map, CONVOLUTIONS)
    ]
    if len(found) < 2:
        raise EncoderError(
            f"channels of convolutions are pruned, and encoder '{encoder.arch}' has {len(found)}; "
            "take 'prune' or 'prune-global'"
        )
    return found


def _norm_of(part: nn.Module, after: nn.Module | None) -> nn.Module | None:
    if not isinstance(after, NORMS):
        return None
    units = getattr(part, "out_channels", None) or getattr(part, "out_features", None)
    return after if units == _channels(after) else None


def _channels(norm: nn.Module) -> int:
    if isinstance(norm, nn.LayerNorm):
        return int(norm.normalized_shape[-1])
    return int(getattr(norm, "num_features", 0) or getattr(norm, "num_channels", 0))
