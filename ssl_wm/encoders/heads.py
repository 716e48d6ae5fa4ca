"""Heads behind a backbone, or its end cut off.

A linear projection is ``arch+D``, a residual network ``arch~H``, J functions of what lies inside
``arch:J``, the last N layers left out ``arch^N``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.encoders.encoder import as_matrix
from ssl_wm.encoders.inner import answers_and_places
from ssl_wm.errors import EncoderError


class Projected(nn.Module):
    """A backbone followed by a trainable linear projection to another width.

    Args:
        backbone: module that ``Encoder`` takes: from (B, 3, H, W) to (B, D) in some form.
        inputs: D, the backbone's own width.
        outputs: the width of the projection.
    """

    def __init__(self, backbone: nn.Module, *, inputs: int, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs) for ``x`` (B, 3, H, W)."""
        projected: Tensor = self.projection(as_matrix(self.backbone(x), batch=len(x)))
        return projected


class Bent(nn.Module):
    """A backbone followed by a residual network with one hidden layer, ``z + B gelu(A z + a)``.

    The identity when new: B starts at zero.

    Args:
        backbone: module that ``Encoder`` takes: from (B, 3, H, W) to (B, D) in some form.
        width: D, the backbone's width.
        hidden: units of the hidden layer.
    """

    def __init__(self, backbone: nn.Module, *, width: int, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) for ``x`` (B, 3, H, W), the head in float32 under any autocast."""
        z = as_matrix(self.backbone(x), batch=len(x))
        with torch.autocast(z.device.type, enabled=False):
            bent: Tensor = z + self.last(F.gelu(self.first(z)))
        return bent


class Carrying(nn.Module):
    """A backbone whose answers also hold functions of what lies at each place inside it.

    ``z + A (m - K z - k)``, where each of the J numbers m is the mean over places p of
    ``g(u p) + g(-u p) - g(v p) - g(-v p)`` with g = gelu and offsets. The identity when new: A
    starts at zero.

    Args:
        backbone: module that ``Encoder`` takes: from (B, 3, H, W) to (B, D) in some form.
        before: name of the layer among its modules that takes the places.
        channels: C, the numbers at each place.
        width: D, the backbone's width.
        count: J.
    """

    def __init__(
        self, backbone: nn.Module, *, before: str, channels: int, width: int, count: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.before = before
        self.first = nn.Linear(channels, 4 * count)
        self.known = nn.Linear(width, count)
        self.along = nn.Linear(count, width, bias=False)
        nn.init.zeros_(self.along.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) for ``x`` (B, 3, H, W), the head in float32 under any autocast."""
        z, places = answers_and_places(self.backbone, x, before=self.before)
        with torch.autocast(z.device.type, enabled=False):
            units = F.gelu(self.first(places.float())).mean(dim=1)
            one, other, less, least = units.chunk(4, dim=1)
            carried = one + other - less - least - self.known(z)
            added: Tensor = z + self.along(carried)
        return added


class Cut(nn.Module):
    """A backbone that answers with the input of one of its layers, averaged over places.

    Args:
        backbone: module that ``Encoder`` takes; what is executed after the layer is not.
        before: name of the layer among its modules.
        dropped: how many layers that leaves out; among the weights, so that it is in the digest.
    """

    dropped: Tensor

    def __init__(self, backbone: nn.Module, *, before: str, dropped: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.before = before
        self.register_buffer("dropped", torch.tensor(dropped))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) for ``x`` (B, 3, H, W), D the channels that the layer takes.

        Raises:
            EncoderError: the layer is not reached, or what it takes is no map of the images.
        """

        def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise _ReachedError(self, inputs[0])

        hook = self.backbone.get_submodule(self.before).register_forward_pre_hook(stop)
        try:
            self.backbone(x)
        except _ReachedError as reached:
            if reached.by is not self:
                raise
            return pooled(reached.value, batch=len(x))
        finally:
            hook.remove()
        raise EncoderError(f"the layer '{self.before}' was not reached, so nothing can be cut")


def pooled(value: Tensor, *, batch: int) -> Tensor:
    """Return what a layer takes as one vector for each image, (B, D).

    Maps (B, D, h, w) and tokens (B, n, D) are averaged over their places.

    Raises:
        EncoderError: it is nothing of that kind.

    >>> pooled(torch.ones(2, 5, 3), batch=2).shape, pooled(torch.ones(2, 3, 4, 4), batch=2).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    return as_matrix(value.mean(dim=1) if value.ndim == 3 else value, batch=batch)


class _ReachedError(Exception):
    """The layer that somebody waits for was reached; carries what goes into it."""

    def __init__(self, by: Cut, value: Tensor) -> None:
        super().__init__()
        self.by, self.value = by, value
