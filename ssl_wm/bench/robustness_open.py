"""What a robustness benchmark works on: images, the key and encoders, loaded from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssl_wm.bench.robustness_plan import CONTROL, RobustnessConfig
from ssl_wm.config import ImagesConfig
from ssl_wm.data.image_set import Images, ImageSet
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.properties import known_digest
from ssl_wm.nulls import null_folders
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.keyfile import load_key


@dataclass(frozen=True)
class Opened:
    """What a benchmark works on.

    Attributes:
        images: those the key was made for.
        key: the owner's.
        encoders: by name, the control as ``CONTROL``.
        names: what stands for each encoder in a cell: its digest, or its spec without weights.
        nulls: null encoders by spec.
        transfer: labelled images of another task.
    """

    images: Images
    key: WatermarkKey
    encoders: Mapping[str, Encoder]
    names: Mapping[str, str]
    nulls: Mapping[str, Encoder]
    transfer: ImageSet | None = None


def open_robustness(config: RobustnessConfig) -> Opened:
    """Load what ``config`` names.

    Raises:
        SslWmError: the key, an encoder or images cannot be read or do not fit together.
    """
    key = load_key(config.key)
    specs: list[str] = []
    for spec in config.nulls:
        inside = null_folders(Path(spec)) if Path(spec).is_dir() else []
        specs += [str(each) for each in inside] or [spec]
    named = {**config.encoders, CONTROL: config.control or specs[0]}
    loaded = {spec: load_encoder(spec) for spec in dict.fromkeys([*named.values(), *specs])}
    encoders = {name: loaded[spec] for name, spec in named.items()}
    nulls = {spec: loaded[spec] for spec in specs}
    images = _open(config.images)
    key.check_images(images)
    transfer = None
    if config.transfer is not None:
        chosen = config.transfer.size or images.train.size[0]
        transfer = _open(config.transfer.model_copy(update={"size": chosen})).train
    names = {name: known_digest(each) or named[name] for name, each in encoders.items()}
    return Opened(images, key, encoders, names, nulls, transfer)


def _open(chosen: ImagesConfig) -> Images:
    return open_images(chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download)
