"""Rank the same key by several functions of the same answers, as a Markdown table.

    python scripts/compare_statistics.py --images digits --key owner.key --null clean marked stolen

The margin; the margin minus its target's mean over pairs; minus its pair's mean over targets (the
contrast, which verify uses); minus both; the nearness, from natural images alone (verify
--natural-only); contrast and nearness in the evened space (verify --space evened); and these two
with the nulls fitted (--centring fitted). Several --null may be given, folders of them too. Ranks
of the sub-keys among all keys, then the joint p, and in brackets how many standard deviations of
random joint keys the key lies above their mean, which goes on where p has reached its least.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_wm.cli.terminal import guarded
from ssl_wm.commands.claims import spread
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import load_encoder
from ssl_wm.verification.answers import ask
from ssl_wm.verification.centring import centred
from ssl_wm.verification.margins import contrasts
from ssl_wm.verification.once import once
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.verification.statistics import (
    joint_p_value,
    joint_statistic,
    rank_p_value,
    standardise,
)
from ssl_wm.watermark.keyfile import load_key


def off_target(tables: Tensor) -> Tensor:
    """Return tables (S, G, G, G) minus each target's mean over pairs."""
    flat = tables.flatten(1, 2)
    return (flat - flat.nanmean(dim=1, keepdim=True)).view_as(tables)


FUNCTIONS = {
    "margin": lambda tables: tables,
    "minus the target's mean": off_target,
    "minus the pair's mean (contrast)": contrasts,
    "minus both": lambda tables: contrasts(off_target(tables)),
}


def main() -> None:
    """Read the options, then each encoder, and print one row for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, metavar="SPEC")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE")
    parser.add_argument("--null", required=True, action="append", metavar="SPEC")
    parser.add_argument("--per-pair", type=int, default=64, metavar="N")
    parser.add_argument("--draws", type=int, default=9_999_999, metavar="N")
    parser.add_argument("suspects", nargs="+", metavar="SUSPECT")
    told = parser.parse_args()
    key, images = load_key(told.key), open_images(told.images)
    config = ReadConfig(per_pair=told.per_pair, recipes=0, precision="auto")
    ways = [
        config.model_copy(update={"natural_only": natural, "space": space})
        for space in ("plain", "evened") for natural in (False, True)
    ]  # fmt: skip

    def tables(spec: str) -> list[Tensor]:
        asked = once(ask(load_encoder(spec), key, images, config=config))
        return [read_margins(asked, key, config=each).tables for each in ways]

    nulls = [tables(str(spec)) for spec in spread(told.null)]
    triples = np.array([[sub.a, sub.b, sub.target] for sub in key.sub_keys])
    heads = [
        "encoder", *FUNCTIONS, "nearness (natural images alone)", "contrast, evened",
        "nearness, evened", "contrast, evened, fitted", "nearness, evened, fitted",
    ]  # fmt: skip
    print("|".join(["", *heads, ""]), "|".join(["", *["---"] * len(heads), ""]), sep="\n")
    for suspect in told.suspects:
        own, cells = tables(suspect), [Path(suspect).name]
        for way, function, centring in [
            *((0, function, "mean") for function in FUNCTIONS.values()),
            *((way, contrasts, "mean") for way in (1, 2, 3)),
            *((way, contrasts, "fitted") for way in (2, 3)),
        ]:
            others = torch.stack([function(null[way]) for null in nulls])
            values = centred(function(own[way]), others, centring=centring)
            ranks = [
                rank_p_value(table, (a, b, t))[1]
                for table, (a, b, t) in zip(values, triples.tolist(), strict=True)
            ]
            units = torch.stack([standardise(table) for table in values])
            p_value, sample = joint_p_value(units, triples, draws=told.draws, seed=0)
            above = joint_statistic(units, triples[None])[0] - sample.mean()
            away = above / max(sample.std(), 1e-12)
            ranked = ", ".join(f"{rank:,}" for rank in ranks)
            cells.append(f"{ranked}: {p_value:.1e} ({away:.1f})")
        print("|".join(["", *cells, ""]), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
