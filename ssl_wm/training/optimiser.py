"""The optimiser of a run and its learning rate."""

from __future__ import annotations

import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from ssl_wm.training.settings import FitConfig


def learning_rate(step: int, *, total: int, config: FitConfig) -> float:
    """Return the rate at ``step`` of ``total``: linear warm-up, then a cosine to 0.

    >>> from ssl_wm.training.settings import FitConfig
    >>> config = FitConfig(learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate(s, total=12, config=config), 2) for s in (0, 1, 2, 11)]
    [0.5, 1.0, 1.0, 0.0]
    """
    warmup = min(config.warmup_steps, total // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    rest = total - warmup
    return float(cosine_schedule(step - warmup, max(rest, 2), config.learning_rate, 0.0))


def build_optimiser(
    task: nn.Module, *, config: FitConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser of ``config``; norms and biases are not decayed.

    Args:
        task: whose parameters are trained.
        config: which optimiser.
        fused: take a whole step in one kernel, to the same weights up to rounding.
    """
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
