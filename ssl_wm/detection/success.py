"""How often what a detector found works on the encoder that it was found in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ssl_wm.detection.cleansing import clusters
from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.triggers import Patch, Success, Trigger, read_as, trigger_success
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.space import directions
from ssl_wm.rng import torch_stream
from ssl_wm.verification.probe import Probe, fit_probe

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images

OWN_GROUPS = "ssl-cleanse"
"""The detector that numbers its groups itself."""


class TrialConfig(BaseModel):
    """On how many images a trigger is tried.

    Attributes:
        fitted: training images that the reader is fitted to, at most.
        judged: test images that the trigger is tried on, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitted: int = Field(5000, ge=4)
    judged: int = Field(1000, ge=4)


@dataclass(frozen=True, eq=False)
class Tried:
    """A trigger, and how often it works.

    Attributes:
        trigger: the detector's most suspicious one; a collapsing one with the group that most
            images with it read as.
        success: on test images.
        groups: (N,) group of each test image of the trial, numbered as the detector numbers.
        reader: a linear probe on the encoder's embeddings that tells these groups apart.
    """

    trigger: Trigger
    success: Success
    groups: Tensor
    reader: Probe


class Trial:
    """Images of both splits on which the triggers found in one encoder are tried.

    Which images is a matter of the seed and the images alone, so all encoders get the same.

    Args:
        encoder: in which triggers were found.
        images: both splits; readers are fitted to the training images.
        seed: of the choice of images.
        config: how many.
    """

    def __init__(
        self, encoder: Encoder, *, images: Images, seed: int = 0, config: TrialConfig | None = None
    ) -> None:
        config = config or TrialConfig()
        self.encoder, self.images, self.seed = encoder, images, seed
        self.fitted = _some(len(images.train), config.fitted, seed=seed, split="train")
        self.judged = _some(len(images.test), config.judged, seed=seed, split="test")

    @cached_property
    def pixels(self) -> Tensor:
        """(N, 3, H, W) uint8 test images."""
        return self.images.test.take(self.judged).cpu()

    @cached_property
    def z(self) -> Tensor:
        """(M, D) embeddings of the training images that readers are fitted to."""
        return embed(self.encoder, self.images.train.take(self.fitted).cpu())

    def run(
        self, detection: Detection, *, detector: str, given: Given,
        groups: tuple[Tensor, Tensor] | None = None,
    ) -> Tried | None:  # fmt: skip
        """Return how often the most suspicious trigger works; None where none was inverted.

        Args:
            detection: of the encoder.
            detector: its detector.
            given: what the detector was given.
            groups: (N_train,) and (N_test,) groups of all images of both splits, as the detector
                was given them; None means the labels.

        Raises:
            DataError: no test image can be changed by the trigger.
            VerificationError: no reader can be fitted.
        """
        if detection.trigger is None:
            return None
        known, asked = self._groups(detector, given, groups)
        reader, trigger = fit_probe(self.z, known), detection.trigger
        if trigger.group is None and isinstance(trigger, Patch):
            half = given.fit.pixels
            trigger = read_as(self.encoder, trigger=trigger, pixels=half, reader=reader)
        success = trigger_success(
            self.encoder, trigger=trigger, pixels=self.pixels, groups=asked, reader=reader,
            seed=self.seed,
        )  # fmt: skip
        return Tried(trigger, success, asked, reader)

    def _groups(
        self, detector: str, given: Given, groups: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the groups of the fitted and the judged images, as the detector numbers them."""
        if detector == OWN_GROUPS:
            z = embed(self.encoder, given.fit.pixels)
            centre, centres = clusters(z, count=given.config.clusters, seed=given.seed)

            def nearest(rows: Tensor) -> Tensor:
                return (directions(rows, centre=centre) @ centres.T).argmax(dim=1)

            return nearest(self.z), nearest(embed(self.encoder, self.pixels))
        train, test = groups or (self.images.train.labels, self.images.test.labels)
        return train[self.fitted], test[self.judged]


def _some(total: int, count: int, *, seed: int, split: str) -> Tensor:
    """Return ``count`` of ``total`` indices in order, all where there are no more."""
    drawn = torch.randperm(total, generator=torch_stream(seed, "trial", split))
    return drawn[:count].sort().values
