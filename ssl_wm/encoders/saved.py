"""Our saved encoder: a folder with ``encoder.safetensors`` and ``encoder.json``.

The JSON names the format, the architecture, the width, the preprocessing, how the encoder
was made, and the SHA-256 of the weights file. It is written last, so a folder with a
matching pair is whole.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ssl_wm.encoders.checkpoints import load_weights
from ssl_wm.encoders.encoder import Encoder, EncoderFacts, Preprocessing
from ssl_wm.encoders.properties import check_finite, width_of
from ssl_wm.encoders.zoo import build_encoder
from ssl_wm.errors import EncoderError
from ssl_wm.files import (
    pack_tensors,
    plain,
    read_json,
    sha256_bytes,
    unpack_tensors,
    write_bytes,
    write_json,
)

T = TypeVar("T")
FORMAT = "ssl-wm encoder"
VERSION = 1
WEIGHTS = "encoder.safetensors"
FACTS = "encoder.json"


def save_encoder(encoder: Encoder, folder: Path) -> EncoderFacts:
    """Write ``encoder`` to ``folder`` (weights first, JSON last) and return its facts.

    Args:
        encoder: any encoder with weights; one of arch "custom" loads again only with
            ``load_encoder(folder, arch=module)``.
        folder: made where it is missing; an encoder saved there before is replaced.

    Raises:
        EncoderError: the weights are not finite, there are none, or the encoder breaks the
            contract, so that it has no width.
        OutputError: the folder cannot be written to.
    """
    state = encoder.backbone.state_dict()
    if not state:
        raise EncoderError(
            "cannot save an encoder without weights (a function?); save what it calls instead"
        )
    check_finite(state, what=f"cannot save to {folder}")
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    data = pack_tensors({name: value.detach().clone() for name, value in state.items()})
    facts = EncoderFacts(
        arch=encoder.arch,
        width=width_of(encoder),
        preprocessing=encoder.preprocessing,
        sha256=sha256_bytes(data),
        made=plain(encoder.made),
    )
    write_bytes(folder / WEIGHTS, data)
    write_json(folder / FACTS, {"format": FORMAT, "version": VERSION, **asdict(facts)})
    return facts


def read_facts(folder: Path) -> EncoderFacts:
    """Return what ``folder/encoder.json`` says, without reading the weights.

    Raises:
        EncoderError: the file is missing, damaged, of another format or a newer version.
    """
    path = folder / FACTS
    if not path.exists():
        raise EncoderError(
            f"folder {folder} holds no {FACTS}, so it is no saved encoder{_neighbours(folder)}"
        )
    value = read_json(path, error=EncoderError, what="encoder description")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise EncoderError(f"{path} does not describe an encoder of format '{FORMAT}'")
    if value.get("version") != VERSION:
        raise EncoderError(
            f"{path} has version {value.get('version')!r}; this ssl-wm reads version {VERSION}: "
            "upgrade ssl-wm or save the encoder again"
        )
    try:
        return EncoderFacts(
            arch=_checked(value["arch"], str),
            width=_checked(value["width"], int),
            preprocessing=_preprocessing(_checked(value["preprocessing"], dict)),
            sha256=_checked(value["sha256"], str),
            made=_checked(value["made"], dict),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(
            f"{path} is damaged: {type(error).__name__} {error}; save the encoder again"
        ) from error


def load_saved(folder: Path, *, arch: str | nn.Module | None = None) -> Encoder:
    """Return the encoder saved in ``folder``, in eval mode.

    Args:
        folder: what ``save_encoder`` wrote.
        arch: a module to take the weights, needed where the saved arch is "custom"; a name
            is accepted if it is the saved one.

    Raises:
        EncoderError: the folder is incomplete, the weights are truncated, changed, not finite
            or of another shape, or the width is not the one that the JSON promises.
    """
    facts = read_facts(folder)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EncoderError(f"cannot read {path}: {error.strerror}") from error
    if sha256_bytes(data) != facts.sha256:
        raise EncoderError(
            f"{path} ({len(data)} bytes) is truncated or changed: its SHA-256 is not the one in "
            f"{FACTS}; copy the folder again"
        )
    state = unpack_tensors(data, error=EncoderError, what=str(path))
    check_finite(state, what=str(path))
    encoder = _empty(folder, facts, arch=arch)
    load_weights(encoder.backbone, state, what=str(path), arch=facts.arch)
    width = width_of(encoder)
    if width != facts.width:
        raise EncoderError(
            f"{folder} promises embeddings of width {facts.width} and gives {width}; {FACTS} "
            "was changed or belongs to another encoder"
        )
    encoder.made = facts.made
    return encoder.eval()


def _empty(folder: Path, facts: EncoderFacts, *, arch: str | nn.Module | None) -> Encoder:
    if isinstance(arch, nn.Module):
        module = arch.backbone if isinstance(arch, Encoder) else arch
        return Encoder(copy.deepcopy(module), arch=facts.arch, preprocessing=facts.preprocessing)
    if arch not in (None, facts.arch):
        raise EncoderError(f"{folder} holds an encoder of arch '{facts.arch}', not '{arch}'")
    if facts.arch == "custom":
        raise EncoderError(
            f"{folder} holds a custom architecture, which has no name to build it from; load it "
            "in Python: load_encoder(folder, arch=module)"
        )
    return build_encoder(facts.arch, preprocessing=facts.preprocessing)


def _preprocessing(value: dict[str, Any]) -> Preprocessing:
    mean, std = (tuple(float(item) for item in value[name]) for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)):
        raise ValueError("preprocessing needs three finite means and three finite deviations")
    if min(std) <= 0:
        raise ValueError("preprocessing deviations must be above 0")
    size = value["size"]
    if size is not None and _checked(size, int) < 1:
        raise ValueError("preprocessing size must be at least 1 pixel")
    return replace(Preprocessing(), mean=mean, std=std, size=size)


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _neighbours(folder: Path) -> str:
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{FACTS}"))
    return f"; did you mean {' or '.join(inside[:4])}?" if inside else ""
