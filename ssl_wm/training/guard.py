"""No training goes on with a loss that is not finite, and no device waits to be asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssl_wm.errors import TrainingError


class Arrival(Protocol):
    """Numbers on their way from a device."""

    def here(self) -> bool:
        """Return whether they have come."""

    def wait(self) -> Tensor:
        """Return them, (n,) on the CPU, when they have come."""


class Copy:
    """Numbers that a device sends when it has come so far; nobody waits for them.

    Args:
        values: (n,) on an accelerator.
    """

    def __init__(self, values: Tensor) -> None:
        pinned = values.device.type == "cuda"
        self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
        self.values.copy_(values, non_blocking=True)
        self.event = torch.Event(values.device)
        self.event.record()

    def here(self) -> bool:
        """Return whether they have come."""
        return bool(self.event.query())

    def wait(self) -> Tensor:
        """Return them, (n,) on the CPU, when they have come."""
        self.event.synchronize()
        return self.values


@dataclass(frozen=True)
class _Seen:
    names: tuple[str, ...]
    values: Arrival
    epoch: int
    step: int


class FiniteGuard:
    """Refuses losses that are not finite.

    Those on the CPU are refused at once. Those on another device are looked at when they have
    come, some steps later, and at the latest by ``finish``.

    Args:
        send: how numbers leave a device.
    """

    def __init__(self, send: Callable[[Tensor], Arrival] = Copy) -> None:
        self.send = send
        self.seen: deque[_Seen] = deque()

    def see(self, losses: Mapping[str, Tensor], *, epoch: int, step: int) -> None:
        """Take note of a step's named scalars; ``loss`` among them is the one that counts.

        Raises:
            TrainingError: the loss of this or an earlier step is not finite.
        """
        names = tuple(losses)
        values = torch.stack([value.detach().float() for value in losses.values()])
        if values.device.type == "cpu":
            _refuse(names, values, epoch, step)
            return
        self.seen.append(_Seen(names, self.send(values), epoch, step))
        while self.seen and self.seen[0].values.here():
            self._look(self.seen.popleft())

    def finish(self) -> None:
        """Wait for what is on its way.

        Raises:
            TrainingError: a loss is not finite.
        """
        while self.seen:
            self._look(self.seen.popleft())

    def _look(self, seen: _Seen) -> None:
        _refuse(seen.names, seen.values.wait(), seen.epoch, seen.step)


def _refuse(names: tuple[str, ...], values: Tensor, epoch: int, step: int) -> None:
    told = dict(zip(names, values.tolist(), strict=True))
    if torch.isfinite(values[names.index("loss")]):
        return
    terms = ", ".join(f"{name} = {value:.4g}" for name, value in told.items())
    raise TrainingError(
        f"the loss is not finite at epoch {epoch + 1}, step {step + 1} ({terms}); the last "
        "checkpoint is kept. Lower learning_rate or use precision 32-true"
    )
