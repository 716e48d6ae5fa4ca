"""The detection benchmark: every detector on marked and on clean encoders, cell by cell.

Each (encoder, detector) cell is one JSON file below ``OUT/cells``, written whole or not at all.
What is there already, made with the same settings, is not run again; a failed cell is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_wm.bench.detection_plan import DetectionBench, Subject
from ssl_wm.bench.detection_run import DetectionRun
from ssl_wm.data.image_set import Images
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.null_plans import is_marked
from ssl_wm.nulls import null_folders
from ssl_wm.watermark.keyfile import load_key


def run_detection(
    config: DetectionBench, *, out: Path, images: Images | None = None
) -> dict[str, Any]:
    """Run all missing cells into ``out`` and return what ``result.json`` holds.

    Encoders, keys and finished cells are looked at before anything is run.

    Raises:
        ConfigError: a finished cell was made with other settings, an encoder is given twice, or a
            clean one carries a mark.
        KeyFileError: a key cannot be read, or was made for other images.
        EncoderError: an encoder cannot be loaded.
        DataError: the images cannot be opened.
    """
    chosen = config.images
    opened = images or open_images(
        chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download
    )
    return DetectionRun(config, subjects=subjects(config, opened), images=opened, out=out).run()


def subjects(config: DetectionBench, images: Images) -> list[Subject]:
    """Return the encoders of a config, marked ones first, folders of several opened out.

    Raises:
        ConfigError: an encoder is given twice, or a clean one carries a mark.
        KeyFileError: a key cannot be read, or was made for other images.
        EncoderError: an encoder cannot be loaded.
    """
    found = []
    for name, marked in config.marked.items():
        key = load_key(marked.key)
        key.check_images(images)
        found.append(Subject(name, marked.encoder, _digest(marked.encoder), key))
    for name, spec in config.clean.items():
        folders = null_folders(Path(spec)) if Path(spec).is_dir() else []
        if len(folders) > 1:
            inside = [(f"{name}/{folder.name}", str(folder)) for folder in folders]
        else:
            inside = [(name, str(folders[0]) if folders else spec)]
        found += [Subject(each, at, _digest(at, clean=True)) for each, at in inside]
    seen: dict[str, str] = {}
    for each in found:
        if each.digest in seen:
            raise ConfigError(
                f"'{each.name}' and '{seen[each.digest]}' are the same encoder, which would count "
                "twice; name each encoder once"
            )
        seen[each.digest] = each.name
    return found


def _digest(spec: str, *, clean: bool = False) -> str:
    """Return what names the encoder: its digest, or its spec where it has no weights."""
    encoder: Encoder = load_encoder(spec)
    if clean and is_marked(encoder.made):
        raise ConfigError(
            f"{spec} carries a watermark, so it is no clean encoder; name it under marked:"
        )
    return encoder_digest(encoder) if encoder.backbone.state_dict() else spec
