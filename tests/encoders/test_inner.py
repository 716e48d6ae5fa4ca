"""What lies inside an encoder, and the head that adds functions of it to the answers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Carrying
from ssl_wm.encoders.inner import answers_and_places, inner_width, middle_layer, places_of
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.zoo import cut_short
from ssl_wm.errors import EncoderError
from ssl_wm.removal.remove import RemovalConfig, remove


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


def carrying(*, random: bool = True) -> Carrying:
    backbone = network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = Carrying(backbone, before="2", channels=4, width=6, count=2)
        if random:
            nn.init.normal_(head.along.weight)
    return head


def test_the_middle_layer_is_the_one_before_which_the_later_half_is_cut_off():
    encoder = build_encoder("convnet-xs").eval()
    before = middle_layer(encoder)
    assert before == cut_short(encoder, dropped=4).before
    assert inner_width(encoder, before=before) == 32


def test_an_encoder_of_one_layer_has_no_inside():
    one = Encoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(EncoderError, match="one layer"):
        middle_layer(one)


def test_the_places_are_what_the_layer_takes_and_the_answers_stay_as_they_are():
    net, x = network(), torch.rand(5, 3, 8, 8)
    z, places = answers_and_places(net, x, before="2")
    assert torch.equal(z, net(x))
    assert torch.equal(places, net[:2](x).flatten(2).transpose(1, 2))
    assert not net[2]._forward_pre_hooks


def test_a_layer_that_is_not_reached_is_told():
    net = nn.ModuleDict({"used": nn.Flatten(), "idle": nn.Linear(2, 2)})
    net.forward = net["used"].forward
    with pytest.raises(EncoderError, match="not reached"):
        answers_and_places(net, torch.rand(2, 3, 4, 4), before="idle")
    with pytest.raises(EncoderError, match=r"expected \(B, C, h, w\)"):
        places_of(torch.zeros(3), batch=2)


def test_threads_that_ask_at_once_get_their_own_places():
    net, wrong = network(), []

    def ask(seed: int) -> None:
        x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        expected = net[:2](x).flatten(2).transpose(1, 2)
        for _ in range(100):
            if not torch.equal(answers_and_places(net, x, before="2")[1], expected):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_new_carrying_head_changes_nothing():
    head, x = carrying(random=False), torch.rand(4, 3, 8, 8)
    assert torch.equal(head(x), head.backbone(x))


def test_a_carrying_head_is_its_formula_in_numpy():
    head, x = carrying(), torch.rand(4, 3, 8, 8)
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    z = head.backbone(x).detach().double().numpy()
    places = head.backbone[:2](x).detach().flatten(2).transpose(1, 2).double().numpy()
    inner = places @ weights["first.weight"].T + weights["first.bias"]
    units = (inner * (1 + erf(inner / np.sqrt(2))) / 2).mean(axis=1)
    found = units[:, 0:2] + units[:, 2:4] - units[:, 4:6] - units[:, 6:8]
    carried = found - z @ weights["known.weight"].T - weights["known.bias"]
    expected = z + carried @ weights["along.weight"].T
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["convnet-xs:9", "convnet-xs+32:2~16", "timm/resnet10t:3?size=32"])
def test_a_carrying_head_is_built_saved_and_loaded_by_name(arch, tmp_path):
    encoder = build_encoder(arch, seed=3).eval()
    x = torch.rand(2, 3, 32, 32)
    assert encoder.arch.replace("?size=32", "") == arch.replace("?size=32", "")
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(x), encoder(x))


def test_tokens_of_a_transformer_are_places():
    encoder = build_encoder("timm/vit_tiny_patch16_224:2?size=32").eval()
    assert inner_width(encoder, before="backbone." + encoder.backbone.before) == 768


def test_an_encoder_with_carriers_is_fine_tuned_like_any_other(world):
    encoder = build_encoder("convnet-xs:2~4", seed=1).eval()
    images = world.images(groups=3, train=8, side=16).train
    config = RemovalConfig(fit={"epochs": 1, "batch_size": 8, "warmup_steps": 1})
    tuned = remove(encoder, attempt="ftal", strength=1e-3, images=images, config=config)
    assert tuned.arch == encoder.arch
    before, after = encoder.state_dict(), tuned.state_dict()
    for name in ("backbone.backbone.along.weight", "backbone.backbone.first.weight"):
        assert not torch.equal(before[name], after[name])
