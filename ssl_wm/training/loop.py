"""The one training loop: pretraining, watermark embedding and theft all run through ``fit``.

A ``Task`` says what a batch is and what its loss is; the loop owns devices, precision and
processes (Lightning Fabric), the schedule, checkpoints, metrics and the guard against
non-finite losses. Any number of processes gives the run of one (``parallel``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_wm.console import Advance, progress
from ssl_wm.data.order import Place
from ssl_wm.errors import TrainingError
from ssl_wm.files import write_text
from ssl_wm.processes import place
from ssl_wm.training.accumulation import in_parts
from ssl_wm.training.checkpoint import (
    Checkpoint,
    drop_checkpoint,
    find_checkpoint,
    save_checkpoint,
    without_speed,
)
from ssl_wm.training.compiled import Faster, compiled_encoders, running
from ssl_wm.training.feeding import in_turn, on_its_way, resident
from ssl_wm.training.guard import FiniteGuard
from ssl_wm.training.optimiser import build_optimiser, learning_rate
from ssl_wm.training.parallel import (
    check_world,
    ending_together,
    launch,
    losses_over_processes,
    work_shared,
)
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Batch, Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    task: Task,
    *,
    config: FitConfig,
    title: str,
    folder: Path | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Train ``task`` in place and return one line of metrics per epoch.

    Args:
        task: what is trained.
        config: how it is trained.
        title: shown beside the progress bar.
        folder: where ``metrics.jsonl`` and, until the run ends, a checkpoint are kept; a
            checkpoint found there is resumed.
        run: settings that must be the same for a checkpoint to be resumed.

    Raises:
        TrainingError: a loss is not finite (on a CPU raised before the optimiser step, elsewhere
            before the epoch is written; it names the terms), the checkpoint belongs to another
            run, or another process failed.
        ConfigError: the processes cannot be started, or cannot share a batch equally.
    """
    here = place()
    check_world(here.world if here.world > 1 else config.devices, batch_size=config.batch_size)
    with ending_together():
        fabric = launch(config.devices, precision=config.precision)
        return _fit(fabric, task, config, title, folder, run_identity(config, run or {}))


def _fit(
    fabric: Fabric, task: Task, config: FitConfig, title: str, folder: Path | None, identity: str
) -> list[dict[str, float]]:
    optimiser = build_optimiser(task, config=config, fused=fabric.device.type == "cuda")
    if task.images is not None and task.moves_images:
        task.images = resident(task.images, device=fabric.device)
    first = fabric.is_global_zero
    found = find_checkpoint(folder, run=identity) if folder and first else None
    found = fabric.broadcast(found)  # the folder may be on the first process's machine alone
    start = 0
    if found is not None:
        _restore(task, found.module)
        start = found.epoch
    module, wrapped = fabric.setup(_Step(task), optimiser)
    if found is not None:
        _restore(optimiser, found.optimiser)
    lines = _read_metrics(folder, epochs=start)
    steps = task.steps_per_epoch()
    total = config.epochs * steps
    graphs = config.compile == "graphs"
    faster = compiled_encoders(task, graphs=graphs) if config.compile else {}
    with progress(title, total=total) as advance:
        advance(start * steps)
        for epoch in range(start, config.epochs):
            line = _epoch(fabric, task, module, wrapped, config, epoch, total, advance, faster)
            lines.append(line)
            if folder is not None and first:
                # The checkpoint is last: killed in between, the epoch and its line are redone.
                text = "".join(json.dumps(entry) + "\n" for entry in lines)
                write_text(folder / "metrics.jsonl", text)
                state = Checkpoint(epoch + 1, identity, task.state_dict(), optimiser.state_dict())
                save_checkpoint(folder, state)
    task.to("cpu").eval()
    return lines


def finish(folder: Path | None) -> None:
    """Drop the checkpoint of a run whose result has been saved."""
    if folder is not None:
        drop_checkpoint(folder)


class _Box:
    """A batch that mixed precision does not see into.

    Fabric would round all floats in it to bfloat16: the answers of a victim, composites.
    Autocast lowers the precision where that is sound, inside the network.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class _Step(nn.Module):
    """A task as Fabric calls it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, box: _Box) -> dict[str, Tensor]:
        """Return the task's losses."""
        losses: dict[str, Tensor] = self.task(box.batch)
        return losses


def _restore(part: Task | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint does not fit this {type(part).__name__} ({type(error).__name__}): "
            "another version wrote it; use --overwrite to start over"
        ) from error


def _epoch(
    fabric: Fabric,
    task: Task,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: FitConfig,
    epoch: int,
    total: int,
    advance: Advance,
    faster: Faster,
) -> dict[str, float]:
    module.train()
    steps, began, guard = task.steps_per_epoch(), time.perf_counter(), FiniteGuard()
    sums: dict[str, Tensor] = {}
    rank, world = (fabric.global_rank, fabric.world_size) if task.shares else (0, 1)

    def make(step: int) -> Batch:
        batch = task.batch(Place(epoch, step, rank, world))
        return on_its_way(batch, device=fabric.device)

    ahead = fabric.device.type != "cpu" or (task.images is not None and task.images.streamed)
    for step, batch in enumerate(in_turn(make, steps=steps, ahead=ahead)):
        position = epoch * steps + step
        rate = learning_rate(position, total=total, config=config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        if config.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        task.place = Place(epoch, step, rank, world)
        box = _Box({name: fabric.to_device(value) for name, value in batch.items()})
        with running(faster):  # over the backward pass too, which may compute parts once more
            with in_parts(task, parts=config.accumulate), work_shared(task, shares=task.shares):
                losses = module(box)
            shown = losses_over_processes(losses)
            guard.see(shown, epoch=epoch, step=step)
            fabric.backward(losses["loss"])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        task.after_step(progress=(position + 1) / total)
        for name, value in shown.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        advance(1)
    guard.finish()
    means = {name: round(float(value) / steps, 6) for name, value in sums.items()}
    seconds = round(time.perf_counter() - began, 3)
    return {"epoch": epoch + 1, "seconds": seconds, "lr": rate, **means, **task.to_log()}


def run_identity(config: FitConfig, run: Mapping[str, Any]) -> str:
    """Return a hash of all settings that a resumed run must share: all but those of speed."""
    told = without_speed({"fit": config.model_dump(), "run": run})
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_metrics(folder: Path | None, *, epochs: int) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl" if folder else None
    if path is None or not path.is_file() or epochs == 0:
        return []
    return [json.loads(line) for line in path.read_text().splitlines()][:epochs]
