"""Weight files of other people: read safely, find the state dict, fit it to a module.

A checkpoint seldom holds the bare state dict of a backbone: training scripts nest it, wrappers
put prefixes before its names, and heads lie beside it. What is left out is always named.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_wm.encoders.pickles import read_pickle
from ssl_wm.encoders.properties import few, one_line
from ssl_wm.errors import EncoderError
from ssl_wm.files import read_tensors

LOG = logging.getLogger(__name__)
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLES)

# Where training scripts keep the state dict inside a checkpoint, best first.
_NESTS = (
    "state_dict", "model_state_dict", "model", "teacher", "target_encoder", "student", "encoder",
    "backbone", "net", "network", "module", "weights", "state_dict_ema", "model_ema",
)  # fmt: skip
# What wrappers put before the names of a backbone's parameters.
_PREFIXES = (
    "module.", "_orig_mod.", "backbone.", "encoder.", "model.", "encoder_q.", "base_encoder.",
    "online_encoder.", "teacher.", "student.",
)  # fmt: skip
# First part of names beside a backbone: classifiers, projectors, momentum copies, queues.
_BESIDE = re.compile(
    r"(fc|heads?|(last_)?linear|classifier|queue(_ptr)?|prototypes?|criterion|encoder_k|teacher"
    r"|student|\w*(_head|projector|projection|predictor|prediction|momentum|_ema|target)\w*)\d*"
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors`` file or a PyTorch pickle, on the CPU.

    Wrappers such as ``{"state_dict": ...}``, ``{"model": ...}`` or ``{"teacher": ...}`` are
    opened. Names keep their prefixes (``load_weights`` deals with them).

    Raises:
        EncoderError: the file is missing, truncated, of another kind (TorchScript, ``.pt2``),
            holds no tensors, or needs anything beyond tensors (the blocked globals are named;
            nothing of the file was executed).
    """
    if not path.is_file():
        raise EncoderError(f"checkpoint {path} does not exist or is no file")
    if path.suffix == ".safetensors":
        return read_tensors(path, error=EncoderError)
    if path.suffix not in PICKLES:
        raise EncoderError(
            f"checkpoint {path} is of no kind that is read here ({', '.join(SUFFIXES)}); "
            "save the state dict as safetensors"
        )
    return _find_state_dict(read_pickle(path), path)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], *, what: str, arch: str) -> None:
    """Load ``state`` into ``module`` strictly, in place.

    Prefixes of wrappers (``module.``, ``_orig_mod.``, ``backbone.``, ``encoder.``, ... in any
    order) are removed only if the names fit the module better without them. Entries that
    belong beside a backbone (classifier, projector, momentum copy) are left out with a
    warning that names them; anything else that is missing, unexpected or of another shape is
    an error.

    Raises:
        EncoderError: the weights do not fit; the message counts and names what does not.
    """
    wanted = module.state_dict()
    prefix, fits = min(
        ((prefix, _Fit(wanted, state, prefix)) for prefix in _candidates(state)),
        key=lambda item: (*item[1].badness, len(item[0])),
    )
    if any(fits.badness):
        raise EncoderError(
            f"{what} does not fit the architecture '{arch}': {fits.describe()}"
            + (f" (after removing the prefix '{prefix}')" if prefix else "")
            + "; name the architecture that the weights were trained with"
        )
    if fits.beside:
        LOG.warning(
            "%s: left out %d entries that are no part of '%s': %s",
            what, len(fits.beside), arch, few(fits.beside, most=20),
        )  # fmt: skip
    # Some modules read the format's version here, which safetensors files do not carry.
    complete = OrderedDict(fits.taken)
    complete._metadata = getattr(wanted, "_metadata", {})  # type: ignore[attr-defined]
    try:
        module.load_state_dict(complete, strict=True)
    except (RuntimeError, ValueError) as error:
        raise EncoderError(f"{what} cannot be loaded into '{arch}': {one_line(error)}") from error


class _Fit:
    """How ``state`` fits the names and shapes in ``wanted`` once ``prefix`` is removed."""

    def __init__(
        self, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str
    ) -> None:
        names = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
        absent = [name for name in wanted if name not in names]
        # Old checkpoints have no batch counters; those start at zero, as in PyTorch itself.
        counters = [name for name in absent if name.endswith("num_batches_tracked")]
        self.missing = [name for name in absent if name not in counters]
        self.taken = {name: state[names[name]] for name in wanted if name in names}
        self.shapes = [
            f"{name} is {_kind(value)}, should be {_kind(wanted[name])}"
            for name, value in self.taken.items()
            if value.shape != wanted[name].shape
            or value.is_floating_point() != wanted[name].is_floating_point()
        ]
        used = {names[name] for name in self.taken}
        self.taken |= {name: torch.zeros_like(wanted[name]) for name in counters}
        rest = [name for name in state if name not in used]
        self.beside = [name for name in rest if _is_beside(name)]
        self.unexpected = [name for name in rest if not _is_beside(name)]

    @property
    def badness(self) -> tuple[int, int]:
        return len(self.missing) + len(self.shapes), len(self.unexpected)

    def describe(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or type", self.shapes),
        )
        return "; ".join(f"{len(names)} {kind} ({few(names)})" for kind, names in parts if names)


def _candidates(state: Iterable[str]) -> list[str]:
    """Return "" and every chain of wrapper prefixes that begins some name in ``state``."""
    names, found, frontier = list(state), [""], [""]
    while frontier:
        longer = [front + piece for front in frontier for piece in _PREFIXES]
        frontier = [each for each in longer if any(name.startswith(each) for name in names)]
        found += frontier
        if len(found) > 64:  # no real checkpoint nests like this
            break
    return found


def _is_beside(name: str) -> bool:
    parts = name.split(".")
    while len(parts) > 1 and f"{parts[0]}." in _PREFIXES and not _BESIDE.fullmatch(parts[0]):
        parts = parts[1:]
    return _BESIDE.fullmatch(parts[0]) is not None


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _find_state_dict(value: object, path: Path) -> dict[str, Tensor]:
    level = value
    for _ in range(8):
        if not isinstance(level, Mapping):
            break
        nests = [name for name in _NESTS if _holds_tensors(level.get(name))]
        if not nests and not any(isinstance(item, Tensor) for item in level.values()):
            nests = [name for name, item in level.items() if _holds_tensors(item)]
        if len(nests) > 1:
            LOG.warning("%s: took '%s', left out %s", path, nests[0], ", ".join(nests[1:]))
        if not nests:
            return _plain_tensors(level, path)
        level = level[nests[0]]
    raise EncoderError(
        f"{path} holds a {type(value).__name__} and no state dict (a mapping from names to "
        "tensors); save model.state_dict()"
    )


def _holds_tensors(value: object, *, depth: int = 4) -> bool:
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(
        isinstance(item, Tensor) or _holds_tensors(item, depth=depth - 1) for item in value.values()
    )


def _plain_tensors(level: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    tensors = {
        name: item
        for name, item in level.items()
        if isinstance(name, str) and isinstance(item, Tensor)
    }
    others = [str(name) for name in level if name not in tensors]
    if not tensors:
        raise EncoderError(
            f"{path} holds no state dict, only {few(others, most=6) or 'nothing'}; save "
            "{'state_dict': model.state_dict()}"
        )
    for name, item in tensors.items():
        if item.device.type != "cpu" or item.layout != torch.strided or item.is_quantized:
            raise EncoderError(
                f"{path}: '{name}' is sparse, quantised or without data ({item.layout}, "
                f"{item.device}); save dense tensors"
            )
    if others:
        LOG.warning("%s: left out entries that are no tensors: %s", path, few(others, most=20))
    return tensors
