"""What networks compute in: bfloat16 where the device multiplies it in hardware, else float32.

Elsewhere bfloat16 is imitated, and a network trains about ten times slower than in float32.
"""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
Settled = Literal["float32", "bfloat16"]
_MULTIPLIERS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def fast_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Return whether a device multiplies bfloat16 in hardware.

    A CPU does with Intel's AMX or AVX-512 BF16, a GPU from NVIDIA's Ampere on.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and any(_cpu_has(name) for name in _MULTIPLIERS)


def settled(precision: Precision, *, device: torch.device | str = "cpu") -> Settled:
    """Return the precision itself, or for "auto" the faster one of the device.

    >>> settled("float32")
    'float32'
    """
    if precision != "auto":
        return precision
    return "bfloat16" if fast_bfloat16(device) else "float32"


def lowered(precision: Precision, *, device: torch.device | str) -> torch.autocast:
    """Return the block in which a network computes in ``precision`` where that is sound."""
    kind = torch.device(device).type
    half = settled(precision, device=device) == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=half)


FitPrecision = Literal["auto", "bf16-mixed", "32-true"]
"""The training loop's names: mixed precision keeps weights, norms and losses in float32."""


def settled_fit(precision: FitPrecision) -> FitPrecision:
    """Return the precision itself, or for "auto" the faster one of the training device.

    >>> settled_fit("bf16-mixed")
    'bf16-mixed'
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if fast_bfloat16(main_device()) else "32-true"


def main_device() -> torch.device:
    """Return where networks run: on an accelerator, or where there is none on the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def _cpu_has(name: str) -> bool:
    asked = getattr(torch.cpu, name, None)
    return bool(asked is not None and asked())
