"""How a suspect is read and judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from ssl_wm.later import WithLater
from ssl_wm.precision import Precision, settled
from ssl_wm.verification.centring import Centring

SpaceName = Literal["plain", "evened"]


class ReadConfig(WithLater):
    """How much is read.

    Attributes:
        per_pair: composites of test images for each ordered pair of groups and sub-key.
        recipes: decoy recipes (mixer and image pairs) for each sub-key's own groups; 0 leaves
            out the test on them.
        reference: training images per group that fix the centres and fit the readers.
        trigger_count: composites behind each WSR and WFPR (the paper: at least 1,000).
        neighbours: k of the kNN reader.
        natural_only: ask natural images alone (``reference``), no composite: the key is read from
            where its groups lie (``margins.nearness_table``). Nothing of the mark shows in the
            questions; there are no rates and no decoy recipes.
        space: in which space cosines are taken: "evened", where the principal directions of the
            suspect's natural images weigh more alike (``encoders.space.evening``), or "plain", its
            own around its centre, as all did at first. WSR and WFPR are read in the plain one.
        centring: how what the null encoders show too is taken off (``centring.CENTRINGS``): their
            "mean", or the "fitted" linear combination of them that explains most of the suspect;
            both in units of the nulls' own deviation from four nulls on. "unexplained" is what
            the combination leaves as it is, in one unit for all keys.
        precision: of the encoder's forward pass; "auto" is settled when the settings are read, as
            the faster one of this machine's CPU, so that a bundle says which it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {
        "natural_only": False,
        "space": "plain",
        "centring": "mean",
    }

    per_pair: int = Field(64, ge=8)
    recipes: int = Field(99, ge=0)
    reference: int = Field(500, ge=8)
    trigger_count: int = Field(1000, ge=8)
    neighbours: int = Field(20, ge=1)
    natural_only: bool = False
    space: SpaceName = "evened"
    centring: Centring = "mean"
    precision: Precision = "float32"

    @field_validator("precision")
    @classmethod
    def _settled(cls, precision: Precision) -> Precision:
        return settled(precision)

    @property
    def decoy_recipes(self) -> int:
        """Decoy recipes that are read for each sub-key."""
        return 0 if self.natural_only else self.recipes


def refuse_natural_only(read: ReadConfig, *, what: str) -> None:
    """Do nothing unless ``read`` leaves composites out.

    Raises:
        ValueError: it does, and ``what`` is told by composites.
    """
    if read.natural_only:
        raise ValueError(f"{what} by composites; leave read: natural_only: out")


class VerifyConfig(WithLater):
    """How a suspect is judged.

    Attributes:
        alpha: largest acceptable rate of false accusations, over all looks together.
        look: None where this key judges one suspect, once. Else 1 for its first use, 2 for its
            second, ...: the n-th may spend ``alpha * 6 / (pi n)^2``, and all sum to alpha.
        counted: joint keys that are looked at one by one, at most, to find how many of all fit as
            well as the owner's (``counting.py``); 0 leaves that out.
        draws: random joint keys behind the combined p-value of several sub-keys, where more fit
            as well than could be counted.
        access: what the suspect answers: "embeddings", or "labels" (only the largest output
            of a classifier is used).
        max_queries: images that the suspect may be sent; None means no limit.
        read: how much is read from each encoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    LATER: ClassVar[Mapping[str, Any]] = {"counted": 0}

    alpha: float = Field(0.01, gt=0, lt=1)
    look: int | None = Field(None, ge=1)
    counted: int = Field(20_000_000, ge=0, le=1_000_000_000)
    draws: int = Field(9_999_999, ge=99, le=1_000_000_000)
    access: Literal["embeddings", "labels"] = "embeddings"
    max_queries: int | None = Field(None, ge=1)
    read: ReadConfig = ReadConfig()

    @classmethod
    def as_written(cls, told: Mapping[str, Any]) -> VerifyConfig:
        """Return the settings that were written as ``told``, by this version or an older one.

        Raises:
            ValidationError: they are no such settings.
            KeyError, TypeError: they say nothing of what was read.
        """
        return cls.model_validate(
            {**cls.LATER, **told, "read": ReadConfig.as_written(told["read"])}
        )
