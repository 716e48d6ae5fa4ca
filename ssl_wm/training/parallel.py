"""Several processes that train one network as one process would.

Every process has the same weights. A batch is shared out, what a loss compares is gathered
(``gather_rows``), batch normalisation sees the global batch (``norms``), and gradients are averaged
(DistributedDataParallel). Each step across processes has the exact transpose in the backward
pass, so the averaged gradient is that of the mean of the processes' losses, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightly.utils.dist import gather
from torch import Tensor, nn

from ssl_wm import processes
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import ConfigError, TrainingError
from ssl_wm.training.norms import GatheredNorms

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEP = timedelta(minutes=30)
"""How long the first process waits for the others in one step."""
WAIT = timedelta(days=7)
"""How long the other processes wait for the first one, which may ask a slow service."""


_waited = False


def launch(devices: int, *, precision: str = "32-true") -> Fabric:
    """Return a Fabric whose processes have met: those that exist, or ``devices`` started here.

    Where torchrun or SLURM started this process, theirs are all and ``devices`` is not read.

    Args:
        devices: processes, each with a device of its own (on the CPU: with some cores).
        precision: as Fabric names it.

    Raises:
        ConfigError: there are not as many devices, or the command cannot be shared.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes.follow()
    here = processes.place()
    processes.check_alone()
    begin = here.world == 1 and devices > 1
    local, nodes = (devices, 1) if begin else (here.local, here.nodes)
    settings: dict[str, Any] = {"precision": precision}
    if local * nodes > 1:
        settings["strategy"] = DDPStrategy(
            timeout=WAIT if here.rank else STEP,
            static_graph=True,  # parameters that a task does not use are found out once
        )
        if begin:
            settings["plugins"] = [LightningEnvironment()]
    try:
        fabric = Fabric(accelerator="auto", devices=local, num_nodes=nodes, **settings)
        if begin:
            processes.start_others(devices)
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(
            f"{local * nodes} processes cannot be started here ({error}); set devices to the "
            "number of GPUs of this machine, or to 1"
        ) from error
    return fabric


def wait_for_first(*, whole_command: bool = False) -> None:
    """In every process but the first, wait until the first one has prepared the training.

    So inputs are checked, folders claimed and victims asked once, by the first process. Where the
    processes have not met, they meet when it begins to train; else at its ``let_others_go_on``.

    Args:
        whole_command: whether this is the wait for all that the command does before it trains.
    """
    global _waited
    here = processes.place()
    if here.world == 1 or here.rank == 0:
        return
    if world_size() == 1:
        logging.getLogger("ssl_wm").setLevel(logging.ERROR)
        launch(here.local)
        _waited = whole_command
    elif _waited:
        _waited = False
    else:
        _meet()


def let_others_go_on() -> None:
    """In the first process, end the others' ``wait_for_first``."""
    if world_size() > 1 and dist.get_rank() == 0:
        _meet()


def _meet() -> None:
    nccl = dist.get_backend() == "nccl"
    dist.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)


def world_size() -> int:
    """Return how many processes have met."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_world(world: int, *, batch_size: int) -> None:
    """Refuse a number of processes that cannot share the global batch equally.

    Raises:
        ConfigError: ``batch_size`` is no multiple of it, or leaves a process one image.
    """
    if world > 1 and (batch_size % world or batch_size < 2 * world):
        raise ConfigError(
            f"a batch of {batch_size} images (fit.batch_size counts all processes) cannot be "
            f"shared equally by {world} processes; make it a multiple of {world}, at least "
            f"{2 * world}"
        )


def gather_rows(rows: Tensor, *, total: int | None = None) -> Tensor:
    """Return the rows of all processes, in the order of the global batch; alone: ``rows``.

    Args:
        rows: (n, ...) of this process.
        total: rows of all processes, shared out by ``share_of``; None where all have n.
    """
    world = world_size()
    if world == 1:
        return rows
    if total is None:
        return torch.cat(gather(rows.contiguous()))
    sizes = [len(range(total)[share_of(total, rank, world)]) for rank in range(world)]
    missing = max(sizes) - len(rows)
    filled = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    parts = gather(filled.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def share_of(total: int, rank: int, world: int) -> slice:
    """Return the rows of process ``rank``; shares differ by at most one row.

    >>> [share_of(7, rank, 3) for rank in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(total * rank // world, total * (rank + 1) // world)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of all processes' ``value`` (no gradient); alone: ``value``."""
    world = world_size()
    if world == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed / world


def losses_over_processes(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of all processes' losses, so that all log and refuse the same."""
    if world_size() == 1:
        return losses
    means = mean_over_processes(torch.stack([value.double() for value in losses.values()]))
    return dict(zip(losses, means.unbind(), strict=True))


def work_shared(task: nn.Module, *, shares: bool) -> AbstractContextManager[object]:
    """Return the block in which the processes compute the losses of one.

    Args:
        task: what is trained.
        shares: whether it is given its share of a batch, or the whole.
    """
    if world_size() == 1:
        return nullcontext()
    return GatheredNorms() if shares else shared_encoders(task)


@contextmanager
def shared_encoders(module: nn.Module) -> Iterator[None]:
    """While the block runs, each encoder in ``module`` shares its rows with the other processes.

    Each process calls it with the whole batch, computes its share and gets all embeddings.
    """
    with ExitStack() as stack:
        if world_size() > 1:
            for encoder in outermost_encoders(module):
                stack.enter_context(_shared(encoder))
        yield


def outermost_encoders(module: nn.Module) -> list[Encoder]:
    """Return the encoders in ``module`` that are in no other encoder."""
    if isinstance(module, Encoder):
        return [module]
    return [found for child in module.children() for found in outermost_encoders(child)]


@contextmanager
def _shared(encoder: Encoder) -> Iterator[None]:
    whole: Callable[[Tensor], Tensor] = encoder.forward

    def forward(images: Tensor) -> Tensor:
        total, world = len(images), world_size()
        if total < world:
            return whole(images)
        with GatheredNorms():
            rows = whole(images[share_of(total, dist.get_rank(), world)])
        return gather_rows(rows, total=total)

    object.__setattr__(encoder, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(encoder, "forward")


@contextmanager
def ending_together() -> Iterator[None]:
    """End all processes when one of them fails in the block.

    Raises:
        TrainingError: another process has failed.
    """
    processes.together.set()
    try:
        yield
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and world_size() > 1 and _is_lost(error)
        told = processes.failed_process(wait=3.0) if lost else ""
        processes.stop_others()
        if lost:
            raise TrainingError(
                f"{told or 'another process of this run ended'} (its own message is above, if it "
                "had time for one); the last checkpoint is kept, go on with --resume"
            ) from error
        raise
    finally:
        processes.together.clear()


def _is_lost(error: RuntimeError) -> bool:
    """Return whether ``error`` says that another process cannot be reached."""
    words = ("gloo", "nccl", "connection", "socket", "tcpstore")
    return isinstance(error, dist.DistError) or any(w in str(error).lower() for w in words)
