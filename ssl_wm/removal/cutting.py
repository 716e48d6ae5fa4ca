"""The attempt that answers with what an earlier layer sees, and drops the layers after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder, as_matrix
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.removal.given import Given
from ssl_wm.removal.inputs import described
from ssl_wm.removal.layers import layers_of


class Cut(nn.Module):
    """A backbone that answers with the input of one of its layers, averaged over places.

    Args:
        backbone: module that ``Encoder`` takes; what is executed after the layer is not.
        before: name of the layer among its modules.
        dropped: how many layers that leaves out, kept as ``settings``.
    """

    def __init__(self, backbone: nn.Module, *, before: str, dropped: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.before = before
        self.register_buffer("settings", described("cut-layers", dropped, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) for ``x`` (B, 3, H, W), D the channels that the layer takes.

        Raises:
            EncoderError: the layer is not reached, or what it takes is no map of the images.
        """

        def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise _ReachedError(inputs[0])

        hook = self.backbone.get_submodule(self.before).register_forward_pre_hook(stop)
        try:
            self.backbone(x)
        except _ReachedError as reached:
            return pooled(reached.value, batch=len(x))
        finally:
            hook.remove()
        raise EncoderError(f"the layer '{self.before}' was not reached, so nothing can be cut")


def cut(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Answer with what goes into the ``strength``-th last layer (Bordes et al., TMLR 2023).

    A layer is a convolution or linear map (``layers_of``). Its input is averaged over its places
    or tokens, so that it is one vector for each image.

    Raises:
        ConfigError: the encoder has no more layers than are dropped.
    """
    dropped = int(strength)
    layers = layers_of(encoder, side=given.side(encoder))
    if dropped >= len(layers):
        raise ConfigError(
            f"encoder '{encoder.arch}' has {len(layers)} layers, so at most {len(layers) - 1} can "
            f"be dropped; got {dropped}"
        )
    names = {part: name for name, part in encoder.backbone.named_modules()}
    before = names[layers[-dropped].map]
    result = Encoder(
        Cut(encoder.backbone, before=before, dropped=dropped),
        preprocessing=encoder.preprocessing, made=encoder.made,
    )  # fmt: skip
    return result.to(encoder.mean.device).eval()


def pooled(value: Tensor, *, batch: int) -> Tensor:
    """Return what a layer takes as one vector for each image, (B, D).

    Maps (B, D, h, w) and tokens (B, n, D) are averaged over their places.

    Raises:
        EncoderError: it is nothing of that kind.

    >>> pooled(torch.ones(2, 5, 3), batch=2).shape, pooled(torch.ones(2, 3, 4, 4), batch=2).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    return as_matrix(value.mean(dim=1) if value.ndim == 3 else value, batch=batch)


class _ReachedError(Exception):
    """The layer was reached; carries what goes into it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
