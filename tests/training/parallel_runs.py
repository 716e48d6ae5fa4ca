"""What the tests of many processes run, in one process or as one of several (``main``)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import make_images, make_key, trained_encoder

from ssl_wm.data.order import Place
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import TrainingError
from ssl_wm.extraction.steal import StealConfig, steal
from ssl_wm.processes import place
from ssl_wm.training.loop import fit
from ssl_wm.training.norms import GatheredNorms
from ssl_wm.training.objectives import OBJECTIVES as OBJECTIVES_BY_NAME
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask, pretrain
from ssl_wm.training.settings import FitConfig
from ssl_wm.training.task import Task
from ssl_wm.watermark.embed import WatermarkConfig, watermark

# Larger rates make contrastive training chaotic: weights changed by 1e-7 then change the losses.
FIT = FitConfig(epochs=2, batch_size=48, optimiser="sgd", learning_rate=2e-4, precision="32-true")
OBJECTIVES = ("simclr", "byol", "moco")
METHODS = ("move-target", "composite-backdoor", "mea-defender", "ssl-guard", "ssl-wm")
ATTACKS = ("cosine", "hybrid", "barlow")
CASES = (*OBJECTIVES, *METHODS, *ATTACKS)


def run(case: str, folder: Path, *, fit: FitConfig = FIT) -> tuple[Encoder, list[dict]]:
    """Return the trained encoder of ``case`` and its lines of metrics."""
    images = make_images()
    place = folder / case
    if case in OBJECTIVES:
        config = PretrainConfig(arch="convnet-xs", objective=case, fit=fit)
        return pretrain(images.train, config=config, folder=place)
    if case in METHODS:
        key = make_key(images, sub_keys=2)
        mark = WatermarkConfig(method=case, fit=fit)
        return watermark(trained_encoder(), key=key, images=images, config=mark, folder=place)
    theft = StealConfig(attack=case, arch="convnet-xs", fit=fit, budget=107)
    done = steal(trained_encoder(), images=images.train, config=theft, folder=place)
    return done.surrogate, done.metrics


def in_parts(norm: str, *, parts: int) -> tuple[Encoder, list[dict]]:
    """Return SimCLR of a small network whose batches go through it in ``parts``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        middle = nn.BatchNorm2d(6) if norm == "batches" else nn.GroupNorm(2, 6)
        layers = (nn.Conv2d(3, 6, 3), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        encoder = Encoder(nn.Sequential(*layers))
        heads = OBJECTIVES_BY_NAME["simclr"](encoder, width=24)
    config = PretrainConfig(fit=FIT.model_copy(update={"accumulate": parts}))
    task = PretrainTask(encoder, heads, make_images().train, config=config)
    return encoder, fit(task, config=config.fit, title="x")


class Faulty(Task):
    """A loss that is not finite in the last process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def steps_per_epoch(self) -> int:
        return 2

    def batch(self, at: Place) -> dict[str, Tensor]:
        bad = at.step == 1 and place().rank == place().world - 1
        return {"x": torch.full((4, 2), float("nan") if bad else 1.0)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.net(batch["x"]).square().mean()}


def normed(kind: str, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Return outputs, gradients and running statistics of batch normalisation of ``rows``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        shape = (7, 5) if kind == "flat" else (7, 5, 3, 2)
        x, slope = 4 + 3 * torch.randn(shape), torch.randn(shape)
        layer = (nn.BatchNorm1d if kind == "flat" else nn.BatchNorm2d)(
            5, affine=kind != "plain", momentum=0.3
        )
        if layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    own = x[rows].clone().requires_grad_()
    out = layer(own)
    (out * slope[rows]).sum().backward()
    told = {"out": out.detach(), "x": own.grad, **dict(layer.named_buffers())}
    return told | {f"{name}.grad": p.grad for name, p in layer.named_parameters()}


def main(folder: Path, cases: list[str]) -> None:
    """Run everything and leave what each process saw in ``folder``."""
    rank = place().rank
    told: dict[str, object] = {}
    for case in cases:
        encoder, lines = run(case, folder)
        told[case] = {"state": encoder.state_dict(), "lines": json.dumps(lines)}
    for norm in ("batches", "groups"):
        encoder, lines = in_parts(norm, parts=2)
        told[f"in parts, {norm}"] = {"state": encoder.state_dict(), "lines": json.dumps(lines)}
    with GatheredNorms():
        rows = slice(0, 3) if rank == 0 else slice(3, 7)
        told["norms"] = {kind: normed(kind, rows) for kind in ("flat", "maps", "plain")}
    try:
        fit(Faulty(), config=FIT, title="x")
    except TrainingError as error:
        told["refused"] = str(error)
    torch.save(told, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
