"""How the detectors work: what they look at, for how long, and where they stop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ssl_wm.precision import Precision


class InversionConfig(BaseModel):
    """How triggers are inverted: a mask and a pattern by gradient descent.

    Attributes:
        rounds: after each round the weight of the mask's size changes.
        steps: gradient steps a round.
        batch: images a step and trigger.
        learning_rate: of Adam, on the logits of mask and pattern.
        weight: of the mask's size at the start; the size is its share of the image.
        factor: what the weight is multiplied with after a successful round, divided by after
            another.
        success: share of images in a round that makes it successful.
        at_once: images a pass of the encoder; bounds the memory.
        precision: of the encoder while a trigger is sought; "auto" is the fastest of its device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(30, ge=1, le=1000)
    steps: int = Field(5, ge=1, le=1000)
    batch: int = Field(16, ge=2, le=4096)
    learning_rate: float = Field(0.2, gt=0, le=10)
    weight: float = Field(1.0, gt=0, le=1e6)
    factor: float = Field(1.5, gt=1, le=100)
    success: float = Field(0.99, ge=0.5, le=1)
    at_once: int = Field(256, ge=2, le=65536)
    precision: Precision = "auto"


class CollapseConfig(BaseModel):
    """DECREE's own settings.

    Attributes:
        starts: random starts; the smallest mask of all counts.
        cosine: mean cosine between embeddings from which they count as one point.
        centred: whether cosines are taken around the mean embedding of natural images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: int = Field(4, ge=1, le=64)
    cosine: float = Field(0.99, gt=0, lt=1)
    centred: bool = False


class StimulationConfig(BaseModel):
    """ABS's own settings.

    Attributes:
        units: most suspicious pairs of unit and class that a trigger is inverted for.
        factor: a unit is set to this many times its largest natural distance from its mean.
        area: largest share of the image that a trigger may cover.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: int = Field(8, ge=1, le=256)
    factor: float = Field(2.0, gt=0, le=100)
    area: float = Field(0.06, gt=0, le=1)


class OutlierConfig(BaseModel):
    """How queries are told from natural images.

    Attributes:
        look_at: what LOF works on.
        neighbours: of LOF.
        false_alarms: share of natural queries that may be refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    look_at: Literal["embeddings", "pixels"] = "embeddings"
    neighbours: int = Field(20, ge=1, le=1000)
    false_alarms: float = Field(0.05, gt=0, lt=1)


class ScanConfig(BaseModel):
    """How all pairs of groups are scanned.

    Attributes:
        per_cell: composites of each ordered pair of groups by each mixer.
        reading: "probe": share of composites that a linear probe puts into a third group;
            "nearest": share whose nearest centre is that of a third group; "margin": mean
            cosine to a third group's centre minus the larger one to the two sources' centres.
        mixers: names in ``GUESSES``; empty takes all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_cell: int = Field(16, ge=2, le=4096)
    reading: Literal["probe", "nearest", "margin"] = "probe"
    mixers: tuple[str, ...] = ()


class DetectionConfig(BaseModel):
    """Settings of all detectors.

    Attributes:
        sample: natural images that are used, at most, the same number of each group; one half
            fits and seeks, the other judges.
        clusters: groups that SSL-Cleanse makes itself.
        inversion: of triggers, for the four detectors that invert any.
        collapse: of DECREE.
        stimulation: of ABS.
        outliers: of the detectors of queries.
        scan: of the scan of all pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: int = Field(1000, ge=16, le=1_000_000)
    clusters: int = Field(10, ge=3, le=1000)
    inversion: InversionConfig = InversionConfig()
    collapse: CollapseConfig = CollapseConfig()
    stimulation: StimulationConfig = StimulationConfig()
    outliers: OutlierConfig = OutlierConfig()
    scan: ScanConfig = ScanConfig()
