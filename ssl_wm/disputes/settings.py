"""How a false claim is made and how it is met."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ssl_wm.verification.settings import ReadConfig, refuse_natural_only


class CraftConfig(BaseModel):
    """How trigger images are crafted (projected gradient ascent).

    Attributes:
        epsilon: largest change of a pixel, in [0, 1] units; rounded down to whole 8-bit steps.
        step: change of a pixel in one step.
        steps: gradient steps.
        against: what the target's centre must be nearer than: the "sources" (the margin that
            ``verify`` reads), or all "others", which serves the success rate.
        count: trigger images.
        batch_size: images in one gradient step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(8 / 255, gt=0, le=1)
    step: float = Field(2 / 255, gt=0, le=1)
    steps: int = Field(20, ge=1)
    against: Literal["sources", "others"] = "sources"
    count: int = Field(200, ge=8)
    batch_size: int = Field(128, ge=1)


class FalseClaimConfig(BaseModel):
    """How a false claim is made and how it is met.

    Attributes:
        alpha: threshold of both verifiers.
        claimed_wsr: success rate at which the naive verifier accuses.
        keys: keys that the accuser tries before he commits.
        shortlist: of them, those that he reads in full; he ranks all by one scouting table.
        beacons: public values drawn after the commitment, each read in full.
        redraws: further draws of the groups under each beacon's recipe, ranked from its table.
        commitments: keys of which he commits to every one and shows the best, to show what
            counting them is for.
        draws: random joint keys behind a p-value of several sub-keys.
        seed: of the accuser's secrets and of the beacons.
        craft: the trigger images.
        read: how much is read from each encoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(0.01, gt=0, lt=1)
    claimed_wsr: float = Field(0.30, gt=0, le=1)
    keys: int = Field(200, ge=1)
    shortlist: int = Field(8, ge=1)
    beacons: int = Field(100, ge=1)
    redraws: int = Field(100, ge=0)
    commitments: int = Field(10, ge=2)
    draws: int = Field(99_999, ge=99, le=500_000)
    seed: int = 0
    craft: CraftConfig = CraftConfig()
    read: ReadConfig = ReadConfig(per_pair=8, recipes=0, reference=100, trigger_count=200)

    @field_validator("read")
    @classmethod
    def _composites(cls, read: ReadConfig) -> ReadConfig:
        refuse_natural_only(read, what="false claims are made and met")
        return read
