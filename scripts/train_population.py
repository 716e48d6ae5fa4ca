"""Train a population of innocent encoders, for ``ssl-wm calibrate`` to accuse.

    python scripts/train_population.py --images data/cifar10 --clean clean --out population

Half of them are pretrained: objectives, shapes, halves of the data and seeds in turn. The
other half are copies, by all attacks, of those and of the clean encoder. Finished ones are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ssl_wm.cli.terminal import guarded
from ssl_wm.console import say
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.extraction.steal import ATTACKS, StealConfig, steal
from ssl_wm.training.objectives import OBJECTIVES
from ssl_wm.training.pretrain import PretrainConfig, pretrain
from ssl_wm.training.settings import FitConfig

SHAPES = ("convnet-xs", "convnet-s", "resnet-small")


def main() -> None:
    """Read the options and train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", required=True, metavar="SPEC")
    parser.add_argument(
        "--limit", type=int, default=20_000, metavar="N", help="training images used"
    )
    parser.add_argument("--clean", required=True, metavar="SPEC", help="also robbed")
    parser.add_argument("--count", type=int, default=24, metavar="N")
    parser.add_argument("--epochs", type=int, default=4, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    told = parser.parse_args()
    images = open_images(told.images, limit=told.limit).train
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(told.seed))
    halves = [images.subset(half.sort().values) for half in order.chunk(2)]
    fit = FitConfig(epochs=told.epochs, learning_rate=2e-3, warmup_steps=20)
    victims = [told.clean]
    for number in range(told.count):
        half, shape = halves[number % 2], SHAPES[number // 2 % len(SHAPES)]
        place = told.out / f"{number:02d}"
        if number < told.count // 2:
            objective = list(OBJECTIVES)[number % len(OBJECTIVES)]
            what = f"{objective}, {shape}, half {number % 2}"
            settings = PretrainConfig(arch=shape, objective=objective, seed=number, fit=fit)
        else:
            victim, attack = (
                victims[number * 5 % len(victims)],
                list(ATTACKS)[number % len(ATTACKS)],
            )
            what = f"copy of {victim} by {attack} into {shape}, half {number % 2}"
            theft = StealConfig(attack=attack, arch=shape, seed=number, fit=fit)
        say(f"{place}: {what}")
        if not (place / "encoder.json").is_file():
            if number < told.count // 2:
                made = pretrain(half, config=settings)[0]
            else:
                made = steal(load_encoder(victim), images=half, config=theft).surrogate
            save_encoder(made, place)
        if number < told.count // 2:
            victims.append(str(place))


if __name__ == "__main__":
    sys.exit(guarded(main))
