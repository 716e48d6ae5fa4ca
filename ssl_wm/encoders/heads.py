"""Heads behind a backbone: a linear projection (``arch+D``) or a residual network (``arch~H``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.encoders.encoder import as_matrix


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
