"""A survival benchmark that is as small as can be."""

from __future__ import annotations

from ssl_wm.bench.survival_plan import SurvivalConfig

FIT = {"epochs": 1, "batch_size": 32, "warmup_steps": 0}
CLEAN_FIT = {"pretrain": {"arch": "convnet-xs", "fit": FIT}}
NONE = {"watermark": {"method": "none", "fit": FIT}}
MOVE = {"watermark": {"method": "move-target", "fit": FIT}, "thefts": "one"}
VERIFY = {
    "draws": 99, "read": {"per_pair": 8, "reference": 8, "trigger_count": 16, "recipes": 3}
}  # fmt: skip
SMALL = {
    "images": {"spec": "digits"},
    "key": {"groups": "labels", "sub_keys": 1, "autoencoder_steps": 0},
    "clean": CLEAN_FIT,
    "steal": {"attack": "cosine", "arch": "convnet-xs", "fit": FIT},
    "thefts": {"one": [{}]},
    "embedders": {"none": NONE, "move": MOVE},
    "verify": VERIFY,
}


def config(**changes: object) -> SurvivalConfig:
    return SurvivalConfig.model_validate({**SMALL, **changes})
