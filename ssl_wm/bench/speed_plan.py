"""The settings of ``bench speed``: which measurements, how often, how large, on which device."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ssl_wm.bench.speed_sizes import GPU, QUICK, Setup, Sizes
from ssl_wm.config import merge, parse, read_yaml
from ssl_wm.errors import ConfigError, choose
from ssl_wm.precision import FitPrecision, settled_fit

NAMES = ("training", "augmentation", "embedding", "knn", "probe", "memory")
"""Every measurement, in the order in which they are run and told."""
OUR_LOOP = frozenset({"training", "augmentation", "memory"})
"""Those that run the training loop, which takes a GPU where there is one."""


class SpeedConfig(BaseModel):
    """What is measured.

    Attributes:
        cases: names in ``NAMES``; empty means all.
        repeats: measured runs of each side.
        quick: small sizes, to see that everything runs.
        device: of networks; "auto" takes a GPU where there is one.
        precision: of our training, as in ``fit``; lightly's side is in float32.
        compile: whether our training compiles its encoder (not with ``quick``); the time of
            compiling is not measured.
        workers: processes of lightly's loader; None means one for each core.
        seed: of weights and synthetic inputs.
        sizes: fields of ``Sizes`` that differ from those of the device or of ``quick``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: tuple[str, ...] = ()
    repeats: int = Field(5, ge=1)
    quick: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: FitPrecision = Field("auto", validate_default=True)
    compile: bool | Literal["graphs"] = True
    workers: int | None = Field(None, ge=0)
    seed: int = 0
    sizes: dict[str, Any] = Field(default_factory=dict)

    @field_validator("precision")
    @classmethod
    def _settled(cls, precision: FitPrecision) -> FitPrecision:
        return settled_fit(precision)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the measurements in their order."""
        return tuple(name for name in NAMES if not self.cases or name in self.cases)


def load_speed_config(path: Path | None, overrides: Mapping[str, Any]) -> SpeedConfig:
    """Return the config in ``path`` (None: the defaults) with overrides on top.

    Raises:
        ConfigError: a setting, a size or a measurement is unknown or out of range, or the device
            cannot be used.
    """
    data = merge(read_yaml(path) if path else {}, overrides)
    config = parse(SpeedConfig, data, source=str(path or "settings"))
    for name in config.cases:
        choose(name, NAMES, what="measurement")
    setup_of(config)
    return config


def setup_of(config: SpeedConfig) -> Setup:
    """Return sizes and device of a run.

    Raises:
        ConfigError: a size is unknown or out of range, or the device cannot be used.
    """
    device = device_of(config)
    base = QUICK if config.quick else GPU if device.type == "cuda" else {}
    sizes = parse(Sizes, {**base, **config.sizes}, source="sizes")
    workers = cores() if config.workers is None else config.workers
    compiled = False if config.quick else config.compile
    return Setup(sizes, device, config.precision, compiled, workers, config.seed)


def device_of(config: SpeedConfig) -> torch.device:
    """Return where networks run.

    Raises:
        ConfigError: there is no GPU, or there is one and the CPU was asked for: the training loop
            would not follow.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    if config.device == "cpu" and there and OUR_LOOP & set(config.chosen):
        raise ConfigError(
            "--device cpu: the training loop takes the GPU that is here; hide it with "
            "CUDA_VISIBLE_DEVICES='' in the environment, or name the measurements with --only"
        )
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def cores() -> int:
    """Return the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return what a measurement on this machine depends on: processor, cores, threads, memory."""
    model = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    if known.is_file():
        lines = known.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    told: dict[str, Any] = {
        "cpu": model, "cores": cores(), "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        told["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return told
