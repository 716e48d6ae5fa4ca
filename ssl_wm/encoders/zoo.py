"""Architectures that are built by name (``names.py``): our table, timm, torchvision, the hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ssl_wm.encoders.backbones import BACKBONES
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.heads import Bent, Carrying, Cut, Projected
from ssl_wm.encoders.inner import inner_width, middle_layer
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.names import HEADED, PREFIXES, Spec, parse_spec
from ssl_wm.encoders.properties import one_line, width_of
from ssl_wm.errors import EncoderError, choose
from ssl_wm.rng import derive_seed

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224)
WIDEST = 65_536


def cut_short(encoder: Encoder, *, dropped: int, side: int | None = None) -> Cut:
    """Return the backbone of ``encoder`` without its last layers, convolutions or linear maps.

    Args:
        encoder: it stays as it is, and shares the weights.
        dropped: number of layers.
        side: side in pixels of images to find them with; None takes the encoder's own.

    Raises:
        EncoderError: it has no more layers than are dropped.
    """
    layers = layers_of(encoder, side=side)
    if dropped >= len(layers):
        raise EncoderError(
            f"encoder '{encoder.arch}' has {len(layers)} layers, so at most {len(layers) - 1} can "
            f"be dropped; got {dropped}"
        )
    names = {part: name for name, part in encoder.backbone.named_modules()}
    return Cut(encoder.backbone, before=names[layers[-dropped].map], dropped=dropped)


def build_encoder(
    arch: str,
    *,
    seed: int = 0,
    input_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Encoder:
    """Return an encoder with fresh random weights; the same seed gives the same weights.

    The global random state stays as it was, and nothing is downloaded (but for ``hf-hub:``,
    whose configuration names the architecture).

    Args:
        arch: architecture name, with ``?size=N`` if wished (see the module's docstring).
        seed: of the weights.
        input_size: side in pixels that images are resized to; replaces the default size.
        preprocessing: replaces the architecture's own preprocessing altogether.

    Raises:
        EncoderError: the architecture is unknown to its library or cannot be built.
        ConfigError: the name is unknown; the message names the nearest.

    >>> build_encoder("convnet-s", seed=1)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 256])
    """
    spec = parse_spec(arch)
    if spec.seed is not None or spec.arch is not None:
        raise EncoderError(f"give the seed as seed=, not in the architecture's name '{arch}'")
    if preprocessing is not None and input_size is not None:
        preprocessing = replace(preprocessing, size=input_size)
    size = preprocessing.size if preprocessing else input_size or spec.size
    backbone, name, own = seeded_backbone(spec.name, seed=seed, size=size)
    made = {"stage": "random weights", "seed": seed}
    return Encoder(backbone, arch=name, preprocessing=preprocessing or own, made=made)


def load_pretrained(spec: Spec) -> Encoder:
    """Return the encoder that timm, torchvision or the hub publish under ``spec.name``.

    A head is nowhere published: its weights are random, of seed 0.

    Raises:
        EncoderError: the name is unknown, or the weights cannot be fetched.
    """
    made = {"stage": "published weights", "spec": spec.name}
    if headed := HEADED.fullmatch(spec.name):
        below = load_pretrained(replace(spec, name=headed[1]))
        parts = _add_head(below, kind=headed[2], units=int(headed[3]), seed=0)
        return Encoder(parts[0], arch=parts[1], preprocessing=below.preprocessing, made=made)
    try:
        backbone, name, own = _library_backbone(spec.name, size=spec.size, pretrained=True)
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(
            f"cannot get the weights of '{spec.name}' ({one_line(error)}); add '?random' for "
            "random weights, point HF_HOME (timm, hf-hub) or TORCH_HOME (torchvision) at a "
            f"cache that holds them, or load a file: 'weights.safetensors?arch={spec.name}'"
        ) from error
    return Encoder(backbone, arch=name, preprocessing=own, made=made)


def seeded_backbone(
    name: str, *, seed: int, size: int | None
) -> tuple[nn.Module, str, Preprocessing]:
    """Return a backbone with random weights, the name to save it under, its preprocessing.

    Below a head lie the weights that the plain architecture gets from the same seed.
    """
    if headed := HEADED.fullmatch(name):
        backbone, saved, own = seeded_backbone(headed[1], seed=seed, size=size)
        below = Encoder(backbone, arch=saved, preprocessing=own)
        return *_add_head(below, kind=headed[2], units=int(headed[3]), seed=seed), own
    if not name.startswith(PREFIXES):
        forms = [*BACKBONES, "timm/<name>", "torchvision/<name>", "hf-hub:<id>"]
        if name not in BACKBONES:
            choose(name, forms, what="encoder")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights", name))
        if name in BACKBONES:
            return BACKBONES[name](), name, Preprocessing(size=size)
        try:
            return _library_backbone(name, size=size, pretrained=False)
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(
                f"cannot build '{name}' ({one_line(error)}); check the name and its options"
            ) from error


def _add_head(below: Encoder, *, kind: str, units: int, seed: int) -> tuple[nn.Module, str]:
    """Return the backbone of ``below`` with a head, and the name to save it under."""
    name = f"{below.arch}{kind}{units}"
    if not 1 <= units <= WIDEST:
        raise EncoderError(f"the number after '{kind}' must be 1 to {WIDEST}; got '{name}'")
    if kind == "^":
        return cut_short(below, dropped=units), name
    width = width_of(below)
    stream = {"+": "projection", "~": "bend", ":": "carriers"}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, stream, name))
        if kind == "+":
            return Projected(below.backbone, inputs=width, outputs=units), name
        if kind == ":":
            before = middle_layer(below)
            channels = inner_width(below, before=before)
            return Carrying(
                below.backbone, before=before, channels=channels, width=width, count=units
            ), name
        return Bent(below.backbone, width=width, hidden=units), name


def _library_backbone(
    name: str, *, size: int | None, pretrained: bool
) -> tuple[nn.Module, str, Preprocessing]:
    if name.startswith("torchvision/"):
        return _torchvision(name.removeprefix("torchvision/"), size=size, pretrained=pretrained)
    return _timm(name.removeprefix("timm/"), size=size, pretrained=pretrained)


def _timm(name: str, *, size: int | None, pretrained: bool) -> tuple[nn.Module, str, Preprocessing]:
    import timm
    from timm.data import resolve_model_data_config

    arguments: dict[str, Any] = {"num_classes": 0}
    plain_name, saved_name = name, f"timm/{name}"
    if name.startswith("hf-hub:"):
        _, plain_name, extra = timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))
        # Without arguments of its own, the plain name builds the same network, offline.
        saved_name = name if extra else f"timm/{plain_name}"
    if not timm.is_model(plain_name):
        raise _unknown(plain_name, timm.list_models(), library="timm")
    settings = timm.get_pretrained_cfg(plain_name)
    if size is not None and settings is not None and settings.fixed_input_size:
        arguments["img_size"] = size
    model = timm.create_model(name, pretrained=pretrained, **arguments)
    config = resolve_model_data_config(model)
    own = Preprocessing(
        mean=tuple(config["mean"]), std=tuple(config["std"]), size=size or config["input_size"][-1]
    )
    return model, saved_name, own


def _torchvision(
    name: str, *, size: int | None, pretrained: bool
) -> tuple[nn.Module, str, Preprocessing]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(name, known, library="torchvision")
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    own = Preprocessing(
        mean=tuple(getattr(preset, "mean", IMAGENET.mean)),
        std=tuple(getattr(preset, "std", IMAGENET.std)),
        size=size or [*getattr(preset, "crop_size", ()), IMAGENET.size][0],
    )
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # one output, as with the published weights
        arguments = {"aux_logits": False, "init_weights": False, "transform_input": True}
    if size is not None and name.startswith("vit_"):
        arguments = {"image_size": size}
    if pretrained:
        # torchvision unpickles its cached file with no guard: read it safely once before.
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    model = models.get_model(name, weights=weights if pretrained else None, **arguments)
    _drop_classifier(model)
    return model, f"torchvision/{name}", own


def _drop_classifier(model: nn.Module) -> None:
    """Replace the last linear layer of a torchvision classifier by the identity."""
    for name in ("fc", "classifier", "heads", "head"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            setattr(model, name, nn.Identity())
            return
        if isinstance(head, nn.Sequential):
            linear = [i for i, layer in enumerate(head) if isinstance(layer, nn.Linear)]
            if linear:
                head[linear[-1]] = nn.Identity()
            else:  # SqueezeNet classifies with a convolution over the map
                setattr(model, name, nn.AdaptiveAvgPool2d(1))
            return
    raise EncoderError(
        f"found no classifier to remove in {type(model).__name__}; load it in Python"
    )


def _unknown(name: str, known: Iterable[str], *, library: str) -> EncoderError:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(item) for item in near)}? " if near else ""
    return EncoderError(
        f"unknown {library} model '{name}'; {hint}{library} knows {len(names)} models "
        f"({library}.{'models.' if library == 'torchvision' else ''}list_models())"
    )
