"""What carriers were read against is taken from a bundle only where it can be so, old ones too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_wm.encoders.space import Axes
from ssl_wm.evidence.numbers import read_base
from ssl_wm.files import write_tensors
from ssl_wm.verification.questions import REFERENCE, question_size
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.watermark.carriers import AXES, carrier_values

CONFIG = VerifyConfig(read=ReadConfig(per_pair=8, recipes=0, reference=12, trigger_count=24))


@pytest.fixture
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


@pytest.fixture
def old(key) -> dict[str, Tensor]:
    """The tensors of a bundle of version 3: answers, and coordinates in place of carriers."""
    rows = question_size(REFERENCE, key, config=CONFIG.read)
    stream = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 8, generator=stream, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(8, 5, generator=stream, dtype=torch.float64))[0]
    return {"z": z, "mean": z.mean(dim=0), "directions": directions}


def written(tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "clean.safetensors"
    write_tensors(path, tensors)
    return path


def test_an_old_bundle_is_read_with_the_carriers_that_its_coordinates_give(key, old, tmp_path):
    base = read_base(written(old, tmp_path), key, CONFIG)
    expected = carrier_values(old["z"], Axes(old["mean"], old["directions"]))
    assert torch.equal(base.z, old["z"])
    torch.testing.assert_close(base.carriers, expected)
    assert base.carriers.shape[1] == 5 * 4 // 2


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("z", lambda part: part[1:], r"'z' is torch\.float64 .*expected torch\.float64"),
        ("z", lambda part: part.float(), r"'z' is torch\.float32"),
        ("mean", lambda part: part[:-1], r"'mean' is torch\.float64 \(7,\); .* \(8\)"),
        ("mean", lambda part: part * torch.nan, "'mean' holds numbers that are not finite"),
        ("directions", lambda part: part[:, :0], r"'directions' is .*\(8, 0\); .*\(n, n\)"),
        ("directions", lambda part: part.repeat(1, AXES), "'directions' are 100; expected 1 to"),
    ],
)
def test_an_old_bundle_that_cannot_be_is_refused_by_name(key, old, tmp_path, name, change, says):
    with pytest.raises(ValueError, match=says):
        read_base(written({**old, name: change(old[name]).contiguous()}, tmp_path), key, CONFIG)
