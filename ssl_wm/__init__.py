"""ssl-wm: watermark image encoders, simulate their theft, and prove it.

The whole story in Python::

    import ssl_wm

    images = ssl_wm.open_images("digits")
    clean, _ = ssl_wm.pretrain(images.train, config=ssl_wm.PretrainConfig())
    key = ssl_wm.keygen(images, encoder=clean)
    marked, _ = ssl_wm.embed_watermark(clean, key=key, images=images)
    theft = ssl_wm.steal(marked, images=images.train, config=ssl_wm.StealConfig())
    verdict = ssl_wm.verify(theft.surrogate, key=key, images=images, nulls=[clean])
    print(verdict.decision, verdict.p_value)

The same verbs are commands (``ssl-wm --help``). Your own encoder is any module or function
from images (B, 3, H, W) in [0, 1] to embeddings (B, D), or a spec string for
``load_encoder``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_VERBS = {
    "Encoder": "ssl_wm.encoders.encoder",
    "PretrainConfig": "ssl_wm.training.pretrain",
    "RemovalConfig": "ssl_wm.removal.given",
    "StealConfig": "ssl_wm.extraction.steal",
    "VerifyConfig": "ssl_wm.verification.settings",
    "WatermarkConfig": "ssl_wm.watermark.embed",
    "embed_watermark": "ssl_wm.watermark.embed:watermark",  # ssl_wm.watermark is the package
    "keygen": "ssl_wm.watermark.keygen",
    "load_encoder": "ssl_wm.encoders.load",
    "load_key": "ssl_wm.watermark.keyfile",
    "open_images": "ssl_wm.data.sources",
    "pretrain": "ssl_wm.training.pretrain",
    "remove": "ssl_wm.removal.remove",
    "save_encoder": "ssl_wm.encoders.load",
    "steal": "ssl_wm.extraction.steal",
    "verify": "ssl_wm.verification.verify",
}

__all__ = list(_VERBS)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'ssl_wm' has no attribute '{name}'")
    module, _, own = _VERBS[name].partition(":")
    return getattr(import_module(module), own or name)
