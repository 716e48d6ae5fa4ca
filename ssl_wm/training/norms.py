"""Batch normalisation over the shares of all processes.

torch's ``SyncBatchNorm`` runs on GPUs only and replaces modules. Here the call of
``torch.nn.functional.batch_norm`` is replaced while a block runs, so that every network that
normalises by batches, whoever wrote it, sees the global batch, and stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode


class GatheredNorms(TorchFunctionMode):
    """While it is entered, batch normalisation in training uses the shares of all processes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, or in its place ``gathered_batch_norm``."""
        if func is F.batch_norm:
            return gathered_batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def gathered_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``torch.nn.functional.batch_norm`` returns for this share of the batch.

    Mean and variance are those of all processes' rows, also in the running statistics; the
    gradient for ``x`` is that of the sum of all processes' losses. On a GPU torch's own kernels
    for this do the work.

    Args:
        x: (N, C, ...), this process's rows; N may differ between processes.
        running_mean: (C,), updated in place in training; likewise ``running_var``.
        running_var: see ``running_mean``.
        weight: (C,) scale.
        bias: (C,) offset.
        training: whether statistics of the batch are used.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
    """
    if not training or not dist.is_initialized() or dist.get_world_size() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if x.is_cuda:
        group = dist.group.WORLD
        normed: Tensor = SyncBatchNorm.apply(
            x, weight, bias, running_mean, running_var, eps, momentum, group, dist.get_world_size()
        )
        return normed
    mean, variance, count = _statistics(x.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    normed = _Normalise.apply(x, weight, bias, mean, variance, count, eps)
    return normed  # noqa: RET504 - it has a type


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and count () of all processes' rows.

    ``var = sum_r n_r (var_r + (mean_r - mean)^2) / n`` (Chan, Golub and LeVeque, 1979).
    """
    others = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x.float(), dim=others, correction=0)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    own = torch.cat([mean, variance, count])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.stack(parts).double().split([*[x.shape[1]] * 2, 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / total
    return mean.float(), variance.float(), total.float()


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps) * weight + bias``, mean and var of all processes' rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Ioffe and Szegedy (ICML 2015, section 3), the sums over all processes' rows."""
        x, weight, mean, variance, count = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.ndim - 2)
        others = [axis for axis in range(x.ndim) if axis != 1]
        slope, unit = grads[0].float(), (variance + ctx.eps).rsqrt()
        normal = (x.float() - mean.view(shape)) * unit.view(shape)
        for_bias, for_weight = slope.sum(dim=others), (slope * normal).sum(dim=others)
        for_x = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([for_bias, for_weight])
            dist.all_reduce(sums)
            along, across = (sums / count).view(2, *shape[1:]).unsqueeze(1)
            scale = unit if weight is None else unit * weight
            for_x = ((slope - along - normal * across) * scale.view(shape)).to(x.dtype)
        return (
            for_x,
            for_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            for_bias if ctx.needs_input_grad[2] else None,
            None, None, None, None,
        )  # fmt: skip
