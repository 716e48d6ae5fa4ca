"""Attempts that change the weights without training. Each changes and returns what it is given.

They take an encoder of which nobody else holds the weights (``remove`` makes a copy).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, LnStructured

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.layers import Layer, convolutions_of
from ssl_wm.encoders.names import with_cut
from ssl_wm.encoders.properties import check_finite
from ssl_wm.encoders.zoo import cut_short
from ssl_wm.errors import ConfigError
from ssl_wm.removal.given import Given, weights_of
from ssl_wm.rng import torch_stream

FORMATS = {
    23: torch.float32,
    10: torch.float16,
    7: torch.bfloat16,
    3: torch.float8_e4m3fn,
    2: torch.float8_e5m2,
}
"""Floating-point formats by the bits of their mantissa."""


@torch.no_grad()
def prune(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Set the share ``strength`` of each weight tensor's smallest magnitudes to 0."""
    for weight in weights_of(encoder).values():
        weight.copy_(L1Unstructured(amount=float(strength)).prune(weight))
    return encoder


@torch.no_grad()
def prune_global(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Set the share ``strength`` of all weights' smallest magnitudes to 0, ranked together."""
    weights = list(weights_of(encoder).values())
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    kept = L1Unstructured(amount=float(strength)).prune(flat)
    for weight, part in zip(weights, kept.split([w.numel() for w in weights]), strict=True):
        weight.copy_(part.view_as(weight))
    return encoder


@torch.no_grad()
def prune_channels(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Silence the share ``strength`` of each convolution's channels, least L1 norm first.

    Li et al., ICLR 2017. The channel's scale and shift in the norm after it go too, so that it
    gives 0, as if it were not there.

    Raises:
        EncoderError: the encoder has fewer than two convolutions.
    """
    ranking = LnStructured(amount=float(strength), n=1, dim=0)
    for layer in convolutions_of(encoder, side=given.side(encoder)):
        weight = layer.weight
        kept = ranking.compute_mask(weight, default_mask=torch.ones_like(weight))
        _silence(layer, ~kept.flatten(1).bool().any(dim=1))
    return encoder


@torch.no_grad()
def fine_prune(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Silence the share ``strength`` of the last convolution's channels, least active first.

    A channel's activity is the mean over natural images and places of its rectified output,
    after the norm (Liu et al., RAID 2018). Their fine-tuning afterwards is a second attempt of a
    stack: ``fine-prune+ftal``, ``fine-prune+ssl``.

    Raises:
        ConfigError: there are no images.
        EncoderError: the encoder has fewer than two convolutions.
    """
    layer = convolutions_of(encoder, side=given.side(encoder))[-1]
    active = activity(encoder, layer=layer, given=given)
    least = active.argsort(stable=True)[: round(strength * len(active))]
    _silence(layer, torch.zeros(len(active), dtype=torch.bool).index_fill(0, least, True))
    return encoder


def activity(encoder: Encoder, *, layer: Layer, given: Given) -> Tensor:
    """Return the mean rectified output (C,), float64, of a layer's channels on natural images."""
    total: list[Tensor] = []
    channels = len(layer.weight)

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        first = output if output.shape[1] == channels else output.movedim(-1, 1)
        rows = first.detach().clamp(min=0).flatten(2).mean(dim=2)
        total.append(rows.double().sum(dim=0).cpu())

    images = given.some_images()
    hook = layer.last.register_forward_hook(note)
    try:
        embed(encoder, images, batch_size=256)
    finally:
        hook.remove()
    return torch.stack(total).sum(dim=0) / len(images)


@torch.no_grad()
def round_floats(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Store every weight and statistic with ``strength`` bits of mantissa (``FORMATS``).

    10 is fp16, 7 is bf16, 3 and 2 are the 8-bit floats e4m3 and e5m2. The values are brought back
    to float32, so that the encoder runs everywhere; activations keep their precision.

    Raises:
        ConfigError: there is no format with so many bits.
        EncoderError: a weight does not fit into the format's range.
    """
    if strength not in FORMATS:
        raise ConfigError(
            f"'float' takes the bits of a format's mantissa, one of {sorted(FORMATS)}; got "
            f"{strength:g}"
        )
    weights_of(encoder)
    state = encoder.backbone.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.copy_(value.to(FORMATS[int(strength)]).to(value.dtype))
    check_finite(state, what=f"rounding to {FORMATS[int(strength)]}")
    return encoder


@torch.no_grad()
def round_weights(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Round weights to ``strength`` bits, symmetrically for each output channel.

    ``w -> s round(w / s)`` with ``s = max |w| / (2^(b - 1) - 1)`` over the channel: whole numbers
    from -(2^(b - 1) - 1) to 2^(b - 1) - 1, so 8 is int8 and 2 leaves three levels (Jacob et al.,
    CVPR 2018, on weights alone).
    """
    most = 2 ** (int(strength) - 1) - 1
    for weight in weights_of(encoder).values():
        largest = weight.abs().flatten(1).amax(dim=1)
        scale = (largest / most).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        weight.copy_(torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most))
    return encoder


@torch.no_grad()
def shift_weights(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Take ``strength`` times the mean filter off every filter: ``w -= lambda mean_out(w)``.

    The mean is over the output units of a convolution or linear map.
    """
    for weight in weights_of(encoder).values():
        weight.sub_(strength * weight.mean(dim=0, keepdim=True))
    return encoder


@torch.no_grad()
def noise_weights(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Add Gaussian noise of ``strength`` times each weight tensor's own deviation."""
    for name, weight in weights_of(encoder).items():
        stream = torch_stream(given.seed, "weight-noise", name)
        noise = torch.randn(weight.shape, generator=stream).to(weight)
        weight.add_(strength * weight.std(correction=0) * noise)
    return encoder


def _silence(layer: Layer, gone: Tensor) -> None:
    """Set what the channels ``gone`` (C,) bool are made of to 0."""
    for part in layer.parts:
        for name in ("weight", "bias"):
            value = getattr(part, name, None)
            if isinstance(value, nn.Parameter):
                value[gone.to(value.device)] = 0


def cut_layers(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Answer with what goes into the ``strength``-th last layer (Bordes et al., TMLR 2023).

    It is averaged over its places or tokens, so that it is one vector for each image.

    Raises:
        EncoderError: the encoder has no more layers than are dropped.
    """
    dropped = int(strength)
    backbone = cut_short(encoder, dropped=dropped, side=given.side(encoder))
    arch = "custom" if encoder.arch == "custom" else with_cut(encoder.arch, dropped)
    result = Encoder(backbone, arch=arch, preprocessing=encoder.preprocessing, made=encoder.made)
    return result.to(encoder.mean.device).eval()
