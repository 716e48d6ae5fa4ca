"""Settings of the ``bend-space`` embedder."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BendSpaceConfig(BaseModel):
    """Strengths of the embedder.

    Attributes:
        natural_penalty: price of moving natural images; the larger, the less utility is spent
            and the weaker the mark.
        held_penalty: price of reading as the target for the key's pair under other mixers, and
            for other pairs under the key's mixer.
        linear_penalty: price of what a linear map can no longer recover of natural images, which is
            what a linear probe loses.
        similarity_penalty: price of changed similarities between natural images, which is what
            nearest neighbours lose.
        neighbours_budget: points of kNN accuracy that the map may cost natural images; where it
            costs more it is fitted on at twice the similarity_penalty, and so on
            (``bend_budget.py``). None leaves the penalty as it is.
        smoothness: how many times the spread of a feature T's hidden layer divides its input by;
            the smoother T, the more of it a copy learns from natural images alone.
        hidden: width of T's hidden layer.
        steps: optimiser steps for T.
        learning_rate: of those steps.
        pool: composites of each sub-key, and of each kind that is held, that T is fitted to.
        rehearsed: share of the composites' terms that is read as a copy would answer, not as the
            marked encoder does (``rehearsal.py``); 0 leaves the rehearsal out.
        ridge: of the rehearsed copy; the larger, the less it learns of what few images show.
        carried: how far the key's carriers (``carriers.py``) move natural images, root mean square
            against their spread; 0 leaves them out.
        shadow: train a shadow thief (as ``fit`` says), in whose space the copy is rehearsed; else
            it is in the clean encoder's.
        shadow_arch: its architecture; None takes the encoder's own.
        serve: how the marked encoder applies T: "head" adds T to it as a last layer, exactly and
            without training, for encoders that are served; whoever holds the weights can take it
            off. "weights" trains the encoder until it answers with T(f0(x)) by itself.
        marked_weight: weight of the composites' loss while the encoder learns T.
        held_weight: weight of the loss on all other composites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    natural_penalty: float = Field(1.5, ge=0)
    held_penalty: float = Field(1.5, ge=0)
    linear_penalty: float = Field(3.0, ge=0)
    similarity_penalty: float = Field(0.5, ge=0)
    neighbours_budget: float | None = Field(0.5, ge=0)
    smoothness: float = Field(30.0, gt=0)
    hidden: int = Field(512, ge=1)
    steps: int = Field(600, ge=0)
    learning_rate: float = Field(2e-2, gt=0)
    pool: int = Field(1000, ge=1)
    rehearsed: float = Field(0.5, ge=0, le=1)
    ridge: float = Field(0.25, ge=1e-3)
    carried: float = Field(0.3, ge=0)
    shadow: bool = False
    shadow_arch: str | None = None
    serve: Literal["head", "weights"] = "head"
    marked_weight: float = Field(0.3, ge=0)
    held_weight: float = Field(0.3, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> BendSpaceConfig:
        if self.neighbours_budget is not None and self.similarity_penalty == 0:
            raise ValueError(
                "neighbours_budget raises similarity_penalty, which is 0; give that a value, or "
                "neighbours_budget: null"
            )
        return self
