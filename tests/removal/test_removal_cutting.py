"""An encoder cut short answers with what the dropped layers were given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.heads import Bent, pooled
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import EncoderError
from ssl_wm.removal.remove import RemovalConfig, remove
from ssl_wm.training.settings import FitConfig

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def two_convolutions() -> tuple[Encoder, nn.Conv2d]:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    net = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
    return Encoder(net, preprocessing=PLAIN).eval(), first


def test_the_answer_is_the_mean_of_what_the_dropped_layer_takes():
    encoder, first = two_convolutions()
    after = remove(encoder, attempt="cut-layers", strength=1)
    with torch.no_grad():
        by_hand = F.conv2d(IMAGES, first.weight, first.bias).clamp(min=0).mean(dim=(2, 3))
        torch.testing.assert_close(after(IMAGES), by_hand)
        assert after(IMAGES).shape == (6, 4)
        assert encoder(IMAGES).shape == (6, 5)


def test_a_head_that_bends_the_space_comes_off_with_its_two_layers():
    """The default mark as it is served: whoever holds the weights has the clean encoder back."""
    clean = build_encoder("convnet-xs", seed=1)
    head = Bent(clean.backbone, width=128, hidden=16)
    nn.init.normal_(head.last.weight)
    marked = Encoder(head, preprocessing=clean.preprocessing).eval()
    images = torch.rand(4, 3, 16, 16)
    assert not torch.allclose(embed(marked, images), embed(clean, images))
    back = remove(marked, attempt="cut-layers", strength=2)
    assert torch.equal(embed(back, images), embed(clean, images))


def test_what_is_cut_off_is_neither_run_nor_trained_and_the_rest_can_be(world):
    images = world.images(side=16).train
    encoder = build_encoder("convnet-xs", seed=2)
    after = remove(encoder, attempt="cut-layers", strength=3)
    assert len(layers_of(after, side=16)) == len(layers_of(encoder, side=16)) - 3
    short = RemovalConfig(fit=FitConfig(epochs=1, batch_size=32, weight_decay=0.0))
    tuned = remove(
        encoder, attempt="cut-layers+ftal", strength=[3, 1e-2], images=images, config=short
    )
    changed = {
        name
        for (name, one), two in zip(
            after.backbone.named_parameters(), tuned.backbone.parameters(), strict=True
        )
        if not torch.equal(one, two)
    }
    kept = {layer.map for layer in layers_of(after, side=16)}
    for name, part in after.backbone.named_modules():
        if isinstance(part, nn.Conv2d):
            assert (f"{name}.weight" in changed) == (part in kept), name


def test_two_cuts_of_one_encoder_have_two_digests():
    encoder = build_encoder("convnet-xs", seed=0)
    cut = [remove(encoder, attempt="cut-layers", strength=s) for s in (1, 2)]
    assert len({encoder_digest(each) for each in (encoder, *cut)}) == 3


def test_a_cut_encoder_is_named_and_what_it_is_built_of_again(tmp_path):
    encoder = build_encoder("convnet-xs~16", seed=0)
    cut = remove(encoder, attempt="cut-layers", strength=3)
    assert (cut.arch, build_encoder(cut.arch).arch) == ("convnet-xs~16^3", "convnet-xs~16^3")
    twice = remove(cut, attempt="cut-layers", strength=1)
    straight = remove(encoder, attempt="cut-layers", strength=4)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(embed(twice, images), embed(straight, images))
    save_encoder(cut, tmp_path)
    assert torch.equal(embed(load_encoder(tmp_path), images), embed(cut, images))


def test_tokens_are_averaged_too():
    tokens = torch.arange(24.0).view(2, 4, 3)
    torch.testing.assert_close(pooled(tokens, batch=2), tokens.mean(dim=1))


@pytest.mark.parametrize("dropped", [2, 9])
def test_an_encoder_keeps_at_least_one_layer(dropped):
    with pytest.raises(EncoderError, match="at most 1 can be dropped"):
        remove(two_convolutions()[0], attempt="cut-layers", strength=dropped)
