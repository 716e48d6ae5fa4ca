"""Names of architectures: our table, timm, torchvision and the Hugging Face hub through timm.

An architecture name is ``convnet-s`` (any entry of ``BACKBONES``), ``timm/<name>``,
``torchvision/<name>`` or ``hf-hub:<id>``. With ``+D`` after it (``convnet-xs+256``) a trainable
linear projection to D dimensions follows the backbone, with ``~H`` (``convnet-s~512``) a residual
network with H hidden units, with ``:J`` J functions of what lies inside are added to the answers;
with ``^N`` (``convnet-s^1``) its last N layers are left out. Options come after a question mark,
joined by ``&``:

- ``random``: random weights of seed 0, nothing is downloaded;
- ``seed=N``: random weights of seed N;
- ``size=N``: images are resized to N x N pixels instead of the library's own size;
- ``arch=NAME``: (only after a file) the architecture that the file's weights belong to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from ssl_wm.encoders.backbones import BACKBONES
from ssl_wm.errors import EncoderError, choose

PREFIXES = ("timm/", "torchvision/", "hf-hub:")
HEADED = re.compile(r"(.+)([+~:^])([0-9]{1,9})")
"""A name with a head behind it: the rest, the kind of head, its number."""


@dataclass(frozen=True)
class Spec:
    """An encoder spec taken apart: ``name?random&seed=N&size=N&arch=NAME``."""

    name: str
    random: bool = False
    seed: int | None = None
    size: int | None = None
    arch: str | None = None


def parse_spec(text: str) -> Spec:
    """Return the parts of an encoder spec.

    Raises:
        EncoderError: an option has no value, or one that is no whole number.
        ConfigError: an option is unknown (the message names the nearest).

    >>> parse_spec("timm/resnet18?seed=3&size=64")
    Spec(name='timm/resnet18', random=True, seed=3, size=64, arch=None)
    >>> parse_spec("weights.pt?arch=timm/resnet18?size=64").arch
    'timm/resnet18?size=64'
    """
    name, _, query = text.strip().partition("?")
    values: dict[str, Any] = {}
    plus_kept = query.replace("+", "%2B")  # in a web address '+' would stand for a space
    for option, value in parse_qsl(plus_kept, keep_blank_values=True):
        choose(option, ("random", "seed", "size", "arch"), what="encoder option")
        if option == "random":
            if value:
                raise EncoderError(f"'?random' takes no value in '{text}'; use '?seed={value}'")
            values[option] = True
        elif option == "arch":
            values[option] = value or None
        else:
            lowest = 0 if option == "seed" else 1
            if not (value.isascii() and value.isdigit() and int(value) >= lowest):
                raise EncoderError(
                    f"'{option}=' takes a whole number from {lowest} in '{text}'; got '{value}'"
                )
            values[option] = int(value)
    values["random"] = values.get("random", False) or "seed" in values
    return Spec(name, **values)


def is_architecture(name: str) -> bool:
    """Return whether ``name`` (without options) has the form of an architecture name."""
    return is_ours(name) or name.startswith(PREFIXES)


def is_ours(name: str) -> bool:
    """Return whether ``name`` is an entry of ``BACKBONES``, with or without a head.

    >>> is_ours("convnet-s"), is_ours("convnet-s+64"), is_ours("timm/resnet18+64")
    (True, True, False)
    """
    headed = HEADED.fullmatch(name)
    return is_ours(headed[1]) if headed else name in BACKBONES


def with_width(arch: str, width: int) -> str:
    """Return the name of ``arch`` followed by a projection to ``width`` dimensions.

    >>> with_width("convnet-xs", 256), with_width("timm/resnet10t?size=64", 256)
    ('convnet-xs+256', 'timm/resnet10t+256?size=64')
    """
    return _with_head(arch, f"+{width}")


def with_bend(arch: str, hidden: int) -> str:
    """Return the name of ``arch`` followed by a residual network with ``hidden`` units.

    >>> with_bend("convnet-xs+64", 512), with_bend("timm/resnet10t?size=64", 512)
    ('convnet-xs+64~512', 'timm/resnet10t~512?size=64')
    """
    return _with_head(arch, f"~{hidden}")


def with_carriers(arch: str, count: int) -> str:
    """Return the name of ``arch`` with ``count`` functions of what lies inside it.

    >>> with_carriers("convnet-xs", 9), with_carriers("timm/resnet10t?size=64", 9)
    ('convnet-xs:9', 'timm/resnet10t:9?size=64')
    """
    return _with_head(arch, f":{count}")


def with_cut(arch: str, dropped: int) -> str:
    """Return the name of ``arch`` without its last layers.

    >>> with_cut("convnet-xs~512", 2), with_cut("timm/resnet10t?size=64", 1)
    ('convnet-xs~512^2', 'timm/resnet10t^1?size=64')
    """
    return _with_head(arch, f"^{dropped}")


def _with_head(arch: str, head: str) -> str:
    name, mark, options = arch.partition("?")
    return f"{name}{head}{mark}{options}"
