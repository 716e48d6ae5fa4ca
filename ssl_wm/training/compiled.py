"""Encoders whose training steps run through ``torch.compile``, with a way back.

Only the forward pass of a training step is compiled: evaluation, which comes with other batch
sizes, and everything that is saved know nothing of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_wm.training.parallel import outermost_encoders, world_size

LOG = logging.getLogger(__name__)
Forward = Callable[[Tensor], object]
Faster = Mapping[nn.Module, Forward]
"""Backbones with their compiled forward passes."""


def compiled_encoders(module: nn.Module, *, graphs: bool = False) -> dict[nn.Module, Forward]:
    """Return the backbones of the encoders in ``module`` that are trained, compiled.

    Args:
        module: a task.
        graphs: on a GPU, record each pass as a CUDA graph and replay it.

    With several processes nothing is compiled: batch normalisation over all of them
    (``norms``) and the compiler do not know each other.
    """
    if world_size() > 1:
        LOG.warning("fit.compile is left out: it does not go together with several processes")
        return {}
    torch.compiler.reset()  # a program that trains many encoders would reach its limit of them
    encoders = outermost_encoders(module)
    trained = [each.backbone for each in encoders if _is_trained(each)]
    return {backbone: _with_way_back(backbone.forward, graphs=graphs) for backbone in trained}


@contextmanager
def running(faster: Faster) -> Iterator[None]:
    """While the block runs, let the backbones in ``faster`` run their compiled passes."""
    for backbone, forward in faster.items():
        object.__setattr__(backbone, "forward", forward)
    try:
        yield
    finally:
        for backbone in faster:
            object.__delattr__(backbone, "forward")


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _with_way_back(plain: Forward, *, graphs: bool) -> Forward:
    """Return ``plain`` compiled; where that fails, ``plain`` itself, with one warning."""
    from torch._dynamo.exc import TorchDynamoException

    fast: Forward | None = torch.compile(plain, mode="reduce-overhead" if graphs else None)

    def forward(x: Tensor) -> object:
        nonlocal fast
        if fast is not None:
            try:
                return fast(x)
            except (TorchDynamoException, RuntimeError, OSError) as error:
                told = (str(error).strip().splitlines() or [type(error).__name__])[0]
                result = plain(x)  # an error of the network itself is raised here
                LOG.warning("torch.compile does not work here (%s); going on without it", told)
                fast = None
                return result
        return plain(x)

    return forward
