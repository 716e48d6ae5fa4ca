"""What can be read off an encoder: its width, its digest, whether its weights are finite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import EncoderError
from ssl_wm.files import canonical_json
from ssl_wm.precision import main_device


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Hold ``module`` in eval mode; afterwards every submodule has the mode it had before.

    Submodules are remembered one by one, so a frozen BatchNorm inside a training network
    stays frozen.
    """
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def at_work(encoder: Encoder) -> Iterator[torch.device]:
    """Hold ``encoder`` in eval mode where it works fastest, and yield that device.

    Afterwards it lies where it lay before and every submodule has the mode it had.
    """
    before, device = encoder.mean.device, working_device(encoder)
    with eval_mode(encoder):
        encoder.to(device)
        try:
            yield device
        finally:
            encoder.to(before)


def working_device(encoder: Encoder) -> torch.device:
    """Return where ``encoder`` works fastest: on the accelerator, where there is one.

    It stays where it is if somebody has put it on a device, has no weights, or its architecture
    is "custom", as its code may name a device.
    """
    own = encoder.mean.device
    stays = encoder.arch == "custom" or next(encoder.backbone.parameters(), None) is None
    return own if stays or own.type != "cpu" else main_device()


def width_of(encoder: Encoder, image_size: int | None = None) -> int:
    """Return D of the embeddings (B, D), by one pass over two grey images in eval mode.

    Args:
        encoder: the encoder; its mode, weights and buffers stay as they are.
        image_size: side of the images in pixels; None takes the encoder's own size or, where
            it has none, tries 32 and then 224.

    Raises:
        EncoderError: the encoder takes no images of these sizes, or breaks the contract.
    """
    own = image_size or encoder.preprocessing.size
    sizes = (own,) if own else (32, 224)
    with eval_mode(encoder), torch.no_grad():
        for size in sizes:
            images = torch.full((2, 3, size, size), 0.5, device=encoder.mean.device)
            try:
                return int(encoder(images).shape[1])
            except (RuntimeError, ValueError, AssertionError, IndexError) as error:
                cause = error
    raise EncoderError(
        f"the encoder '{encoder.arch}' failed on images of {' and of '.join(map(str, sizes))} "
        f"pixels ({one_line(cause)}); set the side it takes as Preprocessing(size=...)"
    ) from cause


def encoder_digest(encoder: Encoder) -> str:
    """Return a SHA-256 (hex) over the preprocessing and the sorted state dict.

    Each tensor adds its name, type, shape and bytes, so two encoders share a digest only if
    they hold the same weights and prepare images alike. The architecture's code is no part
    of it.

    Raises:
        EncoderError: the encoder has no weights (a plain function), so nothing names it.
    """
    state = encoder.backbone.state_dict()
    if not state:
        raise EncoderError(
            "this encoder has no weights (a function?), so it has no digest; wrap a module "
            "with weights, or keep its embeddings yourself"
        )
    digest = hashlib.sha256(canonical_json(asdict(encoder.preprocessing)))
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]))
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def known_digest(encoder: Encoder) -> str | None:
    """Return the encoder's digest; None for a function, which has no weights to name it."""
    return encoder_digest(encoder) if encoder.backbone.state_dict() else None


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def check_finite(state: Mapping[str, Tensor], *, what: str) -> None:
    """Do nothing when every tensor in ``state`` is finite.

    Raises:
        EncoderError: a tensor holds NaN or infinity; the message names the first such tensor
            and counts its bad values.
    """
    for name, value in state.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise EncoderError(
                f"{what}: tensor '{name}' holds {bad} NaN or infinite values of "
                f"{value.numel()}; the training diverged or the file is damaged: take an "
                "earlier checkpoint"
            )


def one_line(error: BaseException) -> str:
    """Return the type and the first line of ``error``, cut to 200 characters.

    >>> one_line(ValueError("first; second"))
    'ValueError: first; second'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def few(names: Iterable[str], *, most: int = 3) -> str:
    """Return the first ``most`` names, joined by commas, and how many more there are.

    >>> few("abcde")
    'a, b, c and 2 more'
    """
    items = list(names)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
