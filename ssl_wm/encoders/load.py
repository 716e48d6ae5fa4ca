"""One spec string -> an encoder in eval mode.

A spec is one of

- an architecture with its library's published weights: ``timm/<name>``,
  ``torchvision/<name>``, ``hf-hub:<id>``; with ``?random`` or ``?seed=N`` the weights are
  random and nothing is downloaded; ``&size=N`` sets the input size;
- one of our small backbones, ``convnet-s`` and friends, always random: ``convnet-s?seed=3``;
- any of these with ``+D`` after its name, a linear projection to D: ``convnet-s+512``, or with
  ``~H``, a residual network with H hidden units: ``convnet-s~512``, or with ``^N``, without its
  last N layers: ``convnet-s^1``;
- a folder that ``save_encoder`` wrote;
- a weights file with its architecture: ``run/last.pth?arch=timm/resnet18``;
- the address of a service, ``http://host:8000#cache=answers`` (``remote.py``);
- in Python also a module or a function from images (B, 3, H, W) in [0, 1] to (B, D).

Names win over files: write ``./convnet-s`` for a folder of that name.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_wm.encoders.checkpoints import SUFFIXES, load_weights, read_state_dict
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.names import Spec, is_architecture, is_ours, parse_spec
from ssl_wm.encoders.properties import check_finite, encoder_digest, eval_mode, width_of
from ssl_wm.encoders.saved import FACTS, WEIGHTS, load_saved, read_facts, save_encoder
from ssl_wm.encoders.zoo import build_encoder, load_pretrained, seeded_backbone
from ssl_wm.errors import EncoderError
from ssl_wm.files import sha256_file

__all__ = [
    "build_encoder",
    "encoder_digest",
    "eval_mode",
    "load_encoder",
    "read_facts",
    "save_encoder",
    "width_of",
    "wrap",
]

Images = Callable[[Tensor], Any]
UNTOUCHED = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=None)


def load_encoder(
    spec: str | Path | nn.Module | Images,
    *,
    arch: str | nn.Module | None = None,
    width: int | None = None,
) -> Encoder:
    """Return the encoder that ``spec`` names (see the module's docstring), in eval mode.

    Args:
        spec: a spec string, a path, a module or a function. An ``Encoder`` is returned as it
            is, its mode included. A module or function gets images in [0, 1] unchanged.
        arch: the architecture of a weights file: a name, or in Python a module, of which a
            copy takes the weights.
        width: the width D that the embeddings must have, where the caller knows it.

    Raises:
        EncoderError: nothing of that name exists, the weights are damaged, unsafe, not finite
            or of another architecture, or the width is another one.
        ConfigError: a name or an option is unknown; the message names the nearest.

    >>> load_encoder("convnet-s?seed=3").made["seed"]
    3
    >>> load_encoder(lambda images: images.mean(dim=(2, 3)), width=3).arch
    'custom'
    """
    if isinstance(spec, str | Path):
        encoder = _from_text(spec, arch=arch).eval()
    elif arch is not None:
        raise EncoderError("arch= goes with a weights file; a module or function needs none")
    else:
        encoder = wrap(spec)
    if width is not None and (came := width_of(encoder)) != width:
        raise EncoderError(
            f"encoder '{spec if isinstance(spec, str | Path) else encoder.arch}' has width {came}"
            f"; width {width} was expected: name the encoder that this was made for"
        )
    return encoder


def wrap(thing: nn.Module | Images) -> Encoder:
    """Return ``thing`` as an ``Encoder``; images in [0, 1] reach it unchanged, as floats.

    Args:
        thing: an ``Encoder`` (returned as it is), a module, or a function from images
            (B, 3, H, W) to a tensor or numpy array (B, D).

    Raises:
        EncoderError: it is a class or nothing that can be called.
    """
    if isinstance(thing, Encoder):
        return thing
    if isinstance(thing, nn.Module):
        return Encoder(thing, preprocessing=UNTOUCHED, made={"stage": "module given in Python"})
    if isinstance(thing, type) or not callable(thing):
        kind = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
        raise EncoderError(
            f"an encoder is a spec string, a path, a module or a function; got {kind}"
        )
    made = {"stage": "function given in Python"}
    return Encoder(_Function(thing), preprocessing=UNTOUCHED, made=made).eval()


class _Function(nn.Module):
    """A plain function from images (B, 3, H, W) to embeddings (B, D), as a module."""

    def __init__(self, function: Images) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> object:
        """Return what the function returns, numpy arrays as tensors."""
        output: object = self.function(images)
        return torch.from_numpy(output) if isinstance(output, np.ndarray) else output


def _from_text(text: str | Path, *, arch: str | nn.Module | None) -> Encoder:
    if isinstance(text, Path):
        return _from_path(text, Spec(str(text)), arch=arch)
    if not text.strip():
        raise EncoderError("the encoder spec is empty; name an architecture, a folder or a file")
    if text.startswith(("http://", "https://")):
        if arch is not None:
            raise EncoderError(f"arch= goes with a weights file; '{text}' is a remote encoder")
        return _from_service(text)
    whole = Path(os.path.expanduser(text))
    if os.path.exists(whole) and not is_architecture(text):
        return _from_path(whole, Spec(text), arch=arch)
    spec = parse_spec(text)
    path = Path(os.path.expanduser(spec.name))
    looks_like_a_path = path.suffix in SUFFIXES or "/" in spec.name or "\\" in spec.name
    if not is_architecture(spec.name) and (os.path.exists(path) or looks_like_a_path):
        return _from_path(path, spec, arch=arch)
    if arch is not None or spec.arch is not None:
        raise EncoderError(f"arch= goes with a weights file; '{text}' names an architecture")
    if spec.random or is_ours(spec.name) or not is_architecture(spec.name):
        seed = spec.seed or 0
        backbone, name, own = seeded_backbone(spec.name, seed=seed, size=spec.size)
        made = {"stage": "random weights", "seed": seed}
        return Encoder(backbone, arch=name, preprocessing=own, made=made)
    return load_pretrained(spec)


def _from_service(text: str) -> Encoder:
    try:
        from ssl_wm.encoders.remote import open_remote
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise EncoderError(
            "a remote encoder needs httpx; install it with: pip install 'ssl-wm[remote]'"
        ) from error
    return open_remote(text)


def _from_path(path: Path, spec: Spec, *, arch: str | nn.Module | None) -> Encoder:
    if spec.random or spec.size is not None:
        raise EncoderError(
            f"'random', 'seed' and 'size' go with an architecture; for a file write "
            f"'{spec.name}?arch=NAME?size=N'"
        )
    if not os.path.exists(path):
        raise EncoderError(
            f"no encoder at {path}: no such file or folder; a spec is a folder, a weights file or "
            "a name such as convnet-s, timm/resnet18, torchvision/resnet18 or hf-hub:<id>"
        )
    if arch is not None and spec.arch is not None and arch != spec.arch:
        raise EncoderError(f"two architectures for {path}: arch={arch} and ?arch={spec.arch}")
    arch = arch if arch is not None else spec.arch
    return load_saved(path, arch=arch) if path.is_dir() else _from_file(path, arch=arch)


def _from_file(path: Path, *, arch: str | nn.Module | None) -> Encoder:
    if arch is None:
        saved = path.name == WEIGHTS and (path.parent / FACTS).exists()
        raise EncoderError(
            f"{path} holds weights without their architecture; "
            + (
                f"name its folder, {path.parent}"
                if saved
                else f"add it: '{path}?arch=timm/resnet18'"
            )
        )
    if isinstance(arch, Encoder):
        encoder, name = copy.deepcopy(arch), arch.arch
    elif isinstance(arch, nn.Module):
        encoder, name = wrap(copy.deepcopy(arch)), type(arch).__name__
    else:
        encoder, name = build_encoder(arch), arch
    state = read_state_dict(path)
    load_weights(encoder.backbone, state, what=str(path), arch=name)
    check_finite(encoder.backbone.state_dict(), what=str(path))
    encoder.made = {"stage": "weights file", "file": path.name, "sha256": sha256_file(path)}
    return encoder
