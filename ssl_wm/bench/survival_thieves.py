"""The thieves of the survival benchmark: grids of attacks, surrogates, budgets and pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ssl_wm.bench.extraction_plan import SAME, safe_name
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.extraction.steal import StealConfig

HALF = "half"
"""The pool that holds a random half of the owner's training images."""
IN_TASK, OTHER = "in-task", "other"
Budget = Annotated[int, Field(ge=1)]


class Grid(BaseModel):
    """Thieves: all combinations of the lists; an empty list means what ``steal`` says.

    Attributes:
        attacks: names in ``ATTACKS``, or "all".
        archs: architectures that the surrogate starts fresh from.
        starts: specs of encoders that it starts from instead (a thief's own one).
        budgets: images to query; one that is larger than the pool sends the whole pool.
        pools: "same" (the owner's training images), "half" (a random half of them), or image
            specs, whose train split is queried.
        control: whether these thieves also steal the clean encoder, for comparison; it doubles
            what they cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attacks: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    pools: tuple[str, ...] = ()
    control: bool = True

    @field_validator("attacks", mode="before")
    @classmethod
    def _all_of_them(cls, given: Any) -> Any:
        return tuple(ATTACKS) if given == "all" or given in (["all"], ("all",)) else given


@dataclass(frozen=True)
class Thief:
    """Who steals, with what.

    Attributes:
        attack: a name in ``ATTACKS``.
        shape: the surrogate's architecture, or the spec of the encoder it starts from.
        warm: whether it is the latter.
        budget: images to query; None means the whole pool.
        pool: "same", "half" or an image spec.
    """

    attack: str
    shape: str
    warm: bool
    budget: int | None
    pool: str

    @property
    def name(self) -> str:
        """Name of the thief's folder; no two thieves have the same.

        >>> Thief("mse", "convnet-s", False, 100, "same").name
        'mse_100_convnet-s_same'
        """
        shape = f"{'from-' if self.warm else ''}{safe_name(self.shape)}"
        return f"{self.attack}_{self.budget or 'all'}_{shape}_{safe_name(self.pool)}"

    @property
    def kind(self) -> str:
        """Where the pool comes from: "in-task" or "other"."""
        return IN_TASK if self.pool in (SAME, HALF) else OTHER

    def theft(self, base: StealConfig, *, seed: int) -> StealConfig:
        """Return how the copy is made.

        Args:
            base: what all thefts share.
            seed: of the run; the base's is added to it.
        """
        told = base.model_dump(exclude_unset=True)
        for name in ("arch", "start"):
            told.pop(name, None)
        told |= {"attack": self.attack, "budget": self.budget, "seed": seed + base.seed}
        told["start" if self.warm else "arch"] = self.shape
        return StealConfig.model_validate(told)


def thieves_of(
    grids: Sequence[Grid], *, base: StealConfig, sizes: Mapping[str, int] | None = None
) -> list[Thief]:
    """Return the thieves of some grids, each once, in the grids' order.

    Args:
        grids: the lists.
        base: what stands for an empty list.
        sizes: images of each pool, where budgets are to be cut to them.
    """
    found: dict[Thief, None] = {}
    for grid in grids:
        shapes = [(arch, False) for arch in grid.archs] + [(spec, True) for spec in grid.starts]
        shapes = shapes or [(base.start or base.arch, base.start is not None)]
        budgets = grid.budgets or (base.budget,)
        lists = (grid.attacks or (base.attack,), shapes, budgets, grid.pools or (SAME,))
        for attack, (shape, warm), budget, pool in product(*lists):
            whole = budget if sizes is None else min(budget or sizes[pool], sizes[pool])
            found[Thief(attack, shape, warm, whole, pool)] = None
    return list(found)
