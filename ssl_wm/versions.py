"""What a result depends on besides its settings: library versions and the device."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import ssl_wm
from ssl_wm.precision import fast_bfloat16, main_device


def versions() -> dict[str, str]:
    """Return the versions and the device that a result depends on."""
    libraries = ("torchvision", "lightly", "faiss-cpu", "scikit-learn", "numpy")
    return {
        "ssl_wm": ssl_wm.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: metadata.version(name) for name in libraries},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "bfloat16": "in hardware" if fast_bfloat16(main_device()) else "imitated",
        "threads": str(torch.get_num_threads()),
    }
