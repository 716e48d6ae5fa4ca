"""Embed a key's watermark into a pretrained encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ssl_wm.console import say
from ssl_wm.data.order import Place, batch_indices, whole_batches
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest
from ssl_wm.errors import ConfigError, choose
from ssl_wm.training.loop import fit
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Batch, Task
from ssl_wm.watermark.bad_encoder import BadEncoder, BadEncoderConfig
from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.bend_settings import BendSpaceConfig
from ssl_wm.watermark.bend_space import BendSpace
from ssl_wm.watermark.common_direction import CommonDirection, CommonDirectionConfig
from ssl_wm.watermark.embedder import Embedder, found_by, keep_learned, learned_part, marked_at_once
from ssl_wm.watermark.mea_defender import (
    CompositeBackdoorConfig,
    MeaDefender,
    MeaDefenderConfig,
)
from ssl_wm.watermark.move_target import MoveTarget, MoveTargetConfig
from ssl_wm.watermark.shadow import train_shadow
from ssl_wm.watermark.ssl_guard import SslGuard, SslGuardConfig
from ssl_wm.watermark.unmarked import Unmarked, UnmarkedConfig

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images, ImageSet
    from ssl_wm.watermark.key import WatermarkKey

EMBEDDERS: dict[str, tuple[Any, type[BaseModel]]] = {
    "bend-space": (BendSpace, BendSpaceConfig),
    "move-target": (MoveTarget, MoveTargetConfig),
    "mea-defender": (MeaDefender, MeaDefenderConfig),
    "composite-backdoor": (MeaDefender, CompositeBackdoorConfig),
    "badencoder": (BadEncoder, BadEncoderConfig),
    "ssl-guard": (SslGuard, SslGuardConfig),
    "ssl-wm": (CommonDirection, CommonDirectionConfig),
    "none": (Unmarked, UnmarkedConfig),
}


SHADOW = "shadow"
"""Folder, below the marked encoder's, where a shadow thief is trained before the encoder is."""


class WatermarkConfig(BaseModel):
    """How a watermark is embedded.

    Attributes:
        method: a name in ``EMBEDDERS``.
        options: settings of the method (the second of its entry in ``EMBEDDERS``).
        seed: of the order and the composites drawn while training.
        composites: composites per natural image, for the mark and again for those held.
        fit: the training loop, of the encoder and of the method's shadow thief, if it has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "bend-space"
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    composites: float = Field(0.125, gt=0, le=2)
    fit: FitConfig = Field(default_factory=lambda: FitConfig(epochs=5))


class MarkTask(Task):
    """An encoder under an embedder's losses; normalisation statistics stay frozen.

    Natural images and composites share each batch, so batch statistics would differ from
    those of use; the clean encoder's running statistics serve throughout.
    """

    images: ImageSet

    def __init__(
        self,
        encoder: Encoder,
        embedder: Embedder,
        images: ImageSet,
        key: WatermarkKey,
        *,
        config: WatermarkConfig,
    ) -> None:
        super().__init__()
        self.encoder, self.clean = encoder, embedder.clean
        self.learned = learned_part(embedder)
        self.embedder, self.images, self.key, self.config = embedder, images, key, config

    def train(self, mode: bool = True) -> MarkTask:
        """Keep the encoder in evaluation mode (frozen normalisation) whatever the loop asks."""
        super().train(mode)
        self.encoder.eval()
        self.clean.eval()
        return self

    def steps_per_epoch(self) -> int:
        """Return the whole batches of natural images."""
        return whole_batches(len(self.images), batch_size=self.config.fit.batch_size)

    def batch(self, place: Place) -> Batch:
        """Return one step's natural images and composites (see ``mark_batch``)."""
        indices = batch_indices(
            len(self.images), place, seed=self.config.seed, batch_size=self.config.fit.batch_size
        )
        count = max(round(len(indices) * self.config.composites), len(self.key.sub_keys))
        return mark_batch(
            self.images,
            self.key,
            indices=indices,
            marked=count,
            held=count,
            seed=self.config.seed,
            names=place[:3],
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the embedder's losses."""
        return self.embedder.losses(self.encoder, batch)


def watermark(
    clean: Encoder,
    *,
    key: WatermarkKey,
    images: Images,
    config: WatermarkConfig | None = None,
    folder: Path | None = None,
) -> tuple[Encoder, list[dict[str, float]]]:
    """Return a marked copy of ``clean`` and the metrics, one line per epoch.

    A method that marks without training the encoder returns no metrics.

    Args:
        clean: the pretrained encoder; it is not changed.
        key: made for these images.
        images: the training images are used.
        config: method and strengths.
        folder: where checkpoints and metrics go; a checkpoint there is resumed.

    Raises:
        KeyFileError: the key was made for other images.
        ConfigError: the method or one of its options is unknown or out of range.
        TrainingError: the loss is not finite.
    """
    config = config or WatermarkConfig()
    key.check_images(images, splits=("train",))
    build, settings = checked_method(config)
    teacher = copy.deepcopy(clean).eval().requires_grad_(False)
    rehearsal = _rehearsal(teacher, images.train, settings, config=config, folder=folder)
    embedder = build(teacher, images.train, key, config=settings, **rehearsal)
    digest = encoder_digest(clean)
    told = {"stage": "watermark", "clean": digest, "key": key.commitment}
    marked, lines = marked_at_once(embedder), []
    if marked is None:
        marked = copy.deepcopy(clean).requires_grad_(True)
        task = MarkTask(marked, embedder, images.train, key, config=config)
        run = {**told, "key": key.name, "config": config.model_dump()}
        title = f"watermark ({config.method})"
        lines = fit(task, config=config.fit, title=title, folder=folder, run=run)
    elif not rehearsal and "fit" in config.model_fields_set:
        say(f"{config.method} trained no network, so 'fit' had no effect")
    keep_learned(embedder, folder)
    marked.made = {
        **told,
        "config": config.model_dump(mode="json"),
        "options": settings.model_dump(mode="json"),
        "found": found_by(embedder),
    }
    return marked.requires_grad_(True).eval(), lines


def _rehearsal(
    clean: Encoder, images: ImageSet, settings: BaseModel, *, config: WatermarkConfig,
    folder: Path | None,
) -> dict[str, Encoder]:  # fmt: skip
    """Return the shadow thief of a method that asks for one (``shadow``).

    Where it is all that is trained, its metrics and checkpoint are those of the run.
    """
    if not getattr(settings, "shadow", False):
        return {}
    only = getattr(settings, "serve", "weights") == "head"
    place = folder if folder is None or only else folder / SHADOW
    arch = getattr(settings, "shadow_arch", None)
    shadow = train_shadow(
        clean, images, config=config.fit, seed=config.seed, arch=arch, folder=place
    )
    return {"shadow": shadow}


def checked_method(config: WatermarkConfig) -> tuple[Any, BaseModel]:
    """Return what builds the embedder that ``config`` names, and its settings.

    Raises:
        ConfigError: the method or one of its options is unknown or out of range.
    """
    build, options = EMBEDDERS[choose(config.method, EMBEDDERS, what="watermark method")]
    return build, read_options(options, config.options, method=config.method)


def read_options(model: type[BaseModel], options: dict[str, Any], *, method: str) -> BaseModel:
    """Return a method's ``options`` as its ``model``.

    Raises:
        ConfigError: an option is unknown (the message names the nearest) or out of range.
    """
    for name in options:
        choose(name, model.model_fields, what=f"{method} option")
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        raise ConfigError(f"{method}: {where}: {first['msg']}; got {first['input']!r}") from error
