"""Heads: a projection and a residual network behind any backbone, by name and by formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from ssl_wm.encoders.heads import Bent
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.errors import EncoderError


def bent(*, random: bool = True) -> Bent:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Bent(backbone, width=12, hidden=5)
        if random:
            nn.init.normal_(head.last.weight)
    return head


def test_a_new_bent_head_changes_nothing():
    x = torch.rand(4, 3, 8, 8)
    head = bent(random=False)
    assert torch.equal(head(x), head.backbone(x))


def test_a_bent_head_is_its_formula_in_numpy():
    head, x = bent(), torch.rand(4, 3, 8, 8)
    z = head.backbone(x).double().numpy()
    first, offset, last = (
        each.detach().double().numpy()
        for each in (head.first.weight, head.first.bias, head.last.weight)
    )
    inner = z @ first.T + offset
    expected = z + inner * (1 + erf(inner / np.sqrt(2))) / 2 @ last.T
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_bf16_autocast_does_not_round_the_head():
    head, x = bent(), torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), bent()(x))


def test_a_head_by_name_lies_on_the_plain_architectures_weights(tmp_path):
    names = ("convnet-xs", "convnet-xs+64~16")
    plain, headed = (build_encoder(name, seed=3).eval() for name in names)
    x = torch.rand(2, 3, 32, 32)
    assert headed.arch == "convnet-xs+64~16"
    assert headed(x).shape == (2, 64)
    below = headed.backbone.backbone.backbone.state_dict()
    assert all(
        torch.equal(value, below[name]) for name, value in plain.backbone.state_dict().items()
    )
    save_encoder(headed, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(x), headed(x))


@pytest.mark.parametrize("name", ["convnet-xs~0", "convnet-xs~65537", "convnet-xs+0"])
def test_a_head_of_no_sane_size_is_refused(name):
    with pytest.raises(EncoderError, match="must be 1 to 65536"):
        build_encoder(name)
