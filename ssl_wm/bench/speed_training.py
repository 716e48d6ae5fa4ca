"""The speed of training: our loop against lightly's, and what share of a step the views take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ssl_wm.bench.rivals import LEARNING_RATE, lightly_training
from ssl_wm.bench.side_by_side import Case, Clock, Side, Timing, timed
from ssl_wm.bench.speed_sizes import Setup
from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.views import augment
from ssl_wm.encoders.load import build_encoder, width_of
from ssl_wm.rng import torch_stream
from ssl_wm.training.loop import fit
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, build_objective
from ssl_wm.training.settings import FitConfig

COUNTED = 8  # images of the step whose floating-point operations are counted


class TimedTask(PretrainTask):
    """Pretraining that looks at the clock after the warm-up and after the last step."""

    def start(self, *, warmup: int, clock: Clock, wait: Callable[[], None]) -> None:
        """Count from here; the clock is read after ``warmup`` steps and after all."""
        self.done, self.warmup, self.clock, self.wait = 0, warmup, clock, wait
        self.times: list[float] = []

    def after_step(self, *, progress: float) -> None:
        """Update momentum copies, then look at the clock where it is time."""
        super().after_step(progress=progress)
        self.done += 1
        if self.done in (self.warmup, self.steps_per_epoch()):
            self.wait()
            self.times.append(self.clock())


def fit_config(setup: Setup) -> FitConfig:
    """Return how our loop trains: as lightly's example does, but with momentum."""
    return FitConfig(
        epochs=1, batch_size=setup.sizes.batch_size, optimiser="sgd", learning_rate=LEARNING_RATE,
        weight_decay=0.0, warmup_steps=0,
        precision=setup.precision,
        compile=setup.compile,
    )  # fmt: skip


def our_training(setup: Setup, *, clock: Clock) -> Timing:
    """Pretrain with this package's loop and return the time of the timed steps."""
    sizes = setup.sizes
    count = sizes.batch_size * (sizes.warmup + sizes.steps)
    labels = torch.zeros(count, dtype=torch.int64)
    images = ImageSet("speed", "train", setup.pixels[:count], labels, ("all",))
    config = PretrainConfig(arch=sizes.arch, seed=setup.seed, fit=fit_config(setup))
    encoder = build_encoder(sizes.arch, seed=setup.seed)
    objective = build_objective("simclr", encoder, seed=setup.seed, size=images.size)
    task = TimedTask(encoder, objective, images, config=config)
    task.start(warmup=sizes.warmup, clock=clock, wait=setup.wait)
    fit(task, config=config.fit, title="our training")
    began, ended = task.times
    return Timing(ended - began, sizes.batch_size * sizes.steps)


def training_case(setup: Setup) -> Case:
    """SimCLR, images per second: our loop against lightly's documented pipeline."""
    sizes, views = setup.sizes, PretrainConfig().views

    def theirs(clock: Clock) -> Timing:
        encoder = build_encoder(sizes.arch, seed=setup.seed)
        return lightly_training(
            encoder.backbone, setup.pixels, width=width_of(encoder), batch_size=sizes.batch_size,
            warmup=setup.rival_warmup, steps=sizes.steps, workers=setup.workers,
            min_scale=views.min_scale, device=setup.device, clock=clock, wait=setup.wait,
        )  # fmt: skip

    settings = {
        "arch": sizes.arch, "image_size": list(setup.pixels.shape[-2:]),
        "batch_size": sizes.batch_size, "timed_steps": sizes.steps,
        "ours": {
            **fit_config(setup).model_dump(), "untimed_steps": sizes.warmup,
            "images": f"uint8 on {setup.device.type}",
        },
        "lightly": {
            "precision": "32-true", "optimiser": "sgd without momentum",
            "learning_rate": LEARNING_RATE, "untimed_steps": setup.rival_warmup,
            "workers": setup.workers, "transform": "SimCLRTransform of PIL images, no blur",
            "loss": "NTXentLoss",
        },
    }  # fmt: skip
    return Case(
        "training", "images", Side("ours", lambda clock: our_training(setup, clock=clock)),
        Side("lightly", theirs), bar=10.0 if setup.on_gpu else 3.0, settings=settings,
        checks=lambda: work_of(setup),
    )  # fmt: skip


def work_of(setup: Setup) -> Mapping[str, Any]:
    """Return the operations of one image pair in a training step and what the device can do.

    ``gflop_per_image`` counts multiplications and additions of convolutions and matrix products,
    forward and backward, of both views. ``matmul_tflops``, on a GPU, is what a product of two
    bfloat16 matrices reaches there.
    """
    from torch.utils.flop_counter import FlopCounterMode

    encoder = build_encoder(setup.sizes.arch, seed=setup.seed)
    objective = build_objective("simclr", encoder, seed=setup.seed, size=(32, 32))
    network = nn.ModuleList([encoder, objective]).to(setup.device).train()
    views = setup.pixels[:COUNTED].to(setup.device)
    with FlopCounterMode(display=False) as counter:
        objective(encoder, views, views).backward()
    del network
    told = {"gflop_per_image": counter.get_total_flops() / COUNTED / 1e9}
    return told | ({"matmul_tflops": matmul_tflops(setup)} if setup.on_gpu else {})


def matmul_tflops(setup: Setup, *, side: int = 8192, times: int = 20) -> float:
    """Return 10^12 operations per second of bfloat16 matrix products, by the device's own clock."""
    a, b = (torch.randn(side, side, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for run in range(2 * times):
        if run == times:
            began.record()
        torch.mm(a, b)
    ended.record()
    setup.wait()
    seconds = float(began.elapsed_time(ended)) / 1e3
    return 2 * side**3 * times / seconds / 1e12


def augmentation_case(setup: Setup) -> Case:
    """Seconds of two views of a batch, as a share of the seconds of a training step."""
    sizes = setup.sizes
    batch = setup.pixels[: sizes.batch_size].to(setup.device)
    streams = [torch_stream(setup.seed, "views", v, device=setup.device) for v in ("a", "b")]
    config = PretrainConfig().views

    def views() -> None:
        for _ in range(sizes.augmented):
            for stream in streams:
                augment(batch, config=config, generator=stream)

    items = sizes.batch_size * sizes.augmented
    return Case(
        "augmentation", "images",
        replace(timed(views, items=items, wait=setup.wait), name="two views"),
        Side("training step", lambda clock: our_training(setup, clock=clock)), of="time",
        bar=0.05 if setup.on_gpu else 0.15,
        settings={
            "arch": sizes.arch, "batch_size": sizes.batch_size, "precision": setup.precision,
        },
    )  # fmt: skip
