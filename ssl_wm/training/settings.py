"""How a task is trained: the settings of the one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ssl_wm.later import WithLater
from ssl_wm.precision import FitPrecision, settled_fit


class FitConfig(WithLater):
    """How a task is trained.

    Attributes:
        epochs: passes over the task's images.
        batch_size: images per step, over all processes.
        optimiser: AdamW or SGD with momentum 0.9.
        learning_rate: peak rate; it warms up linearly, then falls to 0 along a cosine.
        weight_decay: decoupled for AdamW, L2 for SGD; not applied to norms and biases.
        warmup_steps: steps of the linear warm-up.
        precision: "bf16-mixed" (autocast), "32-true", or "auto": mixed where the training device
            multiplies bfloat16 in hardware. It is settled when the settings are read, so records
            say which it was; a run is resumed with the one it began with, so name that where the
            other machine would take another.
        devices: processes, each on a device of its own; under torchrun or SLURM theirs count.
        compile: compile the trained encoders (``torch.compile``), for one process. It takes half a
            minute, then steps are faster by a tenth to a quarter; see docs/scaling.md. "graphs"
            also replays them as CUDA graphs, which saves a GPU the launches of small networks.
        accumulate: parts in which a batch (a process's share of it) goes through the encoders, one
            after the other, so that their activations are held for one part at a time; the loss is
            that of the whole batch (``accumulation``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {"compile": False, "accumulate": 1}

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(256, ge=2)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_steps: int = Field(100, ge=0)
    precision: FitPrecision = Field("auto", validate_default=True)
    devices: int = Field(1, ge=1)
    compile: bool | Literal["graphs"] = False
    accumulate: int = Field(1, ge=1)

    @field_validator("precision")
    @classmethod
    def _settled(cls, precision: FitPrecision) -> FitPrecision:
        return settled_fit(precision)

    @model_validator(mode="after")
    def _fits(self) -> FitConfig:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} images has no {self.accumulate} parts of two images "
                "or more; lower accumulate or raise batch_size"
            )
        return self
