"""Weights after an attempt against numpy: which are 0, on how many levels, how far off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_wm.data.image_set import ImageSet
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.load import build_encoder
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.removal.given import Given, weights_of
from ssl_wm.removal.remove import remove


def linear(values: list[list[float]], *, bias: bool = False) -> Encoder:
    """Return an encoder whose one weight tensor holds ``values``."""
    net = nn.Linear(len(values[0]), len(values), bias=bias)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(values))
    return Encoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), net)).eval()


def weight(encoder: Encoder) -> np.ndarray:
    (found,) = weights_of(encoder).values()
    return found.detach().numpy()


ROW = [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, -1.0, 1.1, -1.2]


def test_pruning_zeroes_the_smallest_magnitudes_and_no_others():
    kept = weight(remove(linear([ROW]), attempt="prune", strength=0.5))
    np.testing.assert_array_equal(kept[0], np.float32([0] * 6 + ROW[6:]))


@settings(max_examples=15)
@given(st.floats(0.01, 0.99))
def test_the_share_of_zeros_is_the_strength_in_every_tensor(share):
    before = build_encoder("convnet-xs", seed=round(share * 1000))
    after = remove(before, attempt="prune", strength=share)
    for name, value in weights_of(after).items():
        old = weights_of(before)[name].detach().numpy().ravel()
        new = value.detach().numpy().ravel()
        zeros = new == 0
        assert zeros.sum() == round(share * old.size), name
        np.testing.assert_array_equal(new[~zeros], old[~zeros])
        if zeros.any():
            assert np.abs(old[zeros]).max() <= np.abs(old[~zeros]).min()


def test_global_pruning_ranks_all_tensors_together():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2))
    with torch.no_grad():
        net[2].weight.fill_(1.0)
        net[3].weight.copy_(torch.tensor([[0.1, 2.0], [0.2, 3.0]]))
    after = remove(Encoder(net), attempt="prune-global", strength=2 / 28)
    small, large = (value.detach() for value in reversed(weights_of(after).values()))
    assert small.tolist() == [[0.0, 2.0], [0.0, 3.0]]
    assert bool((large == 1).all())


def test_norms_and_running_statistics_are_never_pruned():
    before = build_encoder("resnet-small", seed=1)
    after = remove(before, attempt="prune", strength=0.9)
    changed = {
        name
        for name, value in after.backbone.state_dict().items()
        if not torch.equal(value, before.backbone.state_dict()[name])
    }
    assert changed == set(weights_of(before))
    assert not any(name.endswith("shortcut.1.weight") for name in changed)


def test_a_silenced_channel_gives_zero_although_its_norm_has_a_shift(world):
    encoder = build_encoder("convnet-xs", seed=2)
    convolutions = [m for m in encoder.backbone if isinstance(m, nn.Conv2d)]
    norms = [m for m in encoder.backbone if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.bias.fill_(0.7)
    after = remove(encoder, attempt="prune-channels", strength=0.25)
    new = [m for m in after.backbone if isinstance(m, nn.Conv2d)]
    for old, convolution in zip(convolutions, new, strict=True):
        sizes = old.weight.detach().abs().double().sum(dim=(1, 2, 3)).numpy()
        expected = np.argsort(sizes)[: round(0.25 * len(sizes))]
        gone = (convolution.weight == 0).all(dim=3).all(dim=2).all(dim=1).nonzero().flatten()
        assert set(gone.tolist()) == set(expected.tolist())
    z = embed(after, torch.rand(6, 3, 16, 16))
    assert ((z == 0).all(dim=0)).sum() == 32  # channels of the last stage are the embedding


def test_fine_pruning_takes_the_channels_that_natural_images_use_least(world):
    images = world.images(side=16)
    encoder = build_encoder("convnet-xs", seed=3).eval()
    z = embed(encoder, images.train).double().mean(dim=0).numpy()  # a rectified, pooled output
    after = remove(encoder, attempt="fine-prune", strength=0.5, images=images.train)
    gone = (embed(after, images.train) == 0).all(dim=0).numpy()
    expected = np.zeros(128, dtype=bool)
    expected[np.argsort(z, kind="stable")[:64]] = True
    assert z[expected].max() > 0  # not only dead channels
    np.testing.assert_array_equal(gone, expected | (z == 0))


def test_the_last_layer_is_the_last_to_be_executed_not_to_be_written():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 3), nn.Linear(12, 4)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.second(self.first(x.mean(dim=3).flatten(1)[:, :12])))

    net = Odd()
    layers = layers_of(Encoder(net), side=4)
    assert [layer.map for layer in layers] == [net.first, net.second]
    assert [layer.norm for layer in layers] == [None, net.norm]


@pytest.mark.parametrize(("bits", "kind"), [(10, np.float16), (23, np.float32)])
def test_floats_of_a_format_are_numpys(bits, kind):
    encoder = build_encoder("convnet-xs", seed=4)
    after = remove(encoder, attempt="float", strength=bits)
    for name, value in encoder.backbone.state_dict().items():
        if value.is_floating_point():
            expected = value.numpy().astype(kind).astype(np.float32)
            np.testing.assert_array_equal(after.backbone.state_dict()[name].numpy(), expected)


@pytest.mark.parametrize("bits", [7, 3, 2])
def test_a_mantissa_of_b_bits_is_off_by_at_most_half_a_unit_in_the_last_place(bits):
    values = (1 + np.arange(12) / 7.3).astype(np.float32)
    new = weight(remove(linear([values.tolist()]), attempt="float", strength=bits))[0]
    unit = np.exp2(np.floor(np.log2(values)) - bits)
    assert (np.abs(new - values) <= unit / 2 + 1e-7).all()
    np.testing.assert_allclose(new / unit, np.round(new / unit), atol=1e-6)


def test_a_float_that_overflows_is_told():
    with pytest.raises(EncoderError, match="float16"):
        remove(linear([[1e6] * 12]), attempt="float", strength=10)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounded_weights_lie_on_the_levels_of_their_channel(bits):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 12)) * np.array([[1e-3], [1], [10], [0], [1]])
    new = weight(remove(linear(values.tolist()), attempt="round-weights", strength=bits))
    most = 2 ** (bits - 1) - 1
    for old, row in zip(values.astype(np.float32), new, strict=True):
        step = np.abs(old).max() / most
        expected = np.round(old.astype(np.float64) / step) * step if step else old
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7 * (step + 1e-30))
        assert len(np.unique(row)) <= 2 * most + 1


def test_two_bits_leave_three_levels():
    new = weight(remove(linear([ROW]), attempt="round-weights", strength=2))[0]
    expected = [np.sign(value) * 1.2 if abs(value) > 0.61 else 0 for value in ROW]
    np.testing.assert_allclose(new[:5], expected[:5])
    np.testing.assert_allclose(new[6:], expected[6:], rtol=1e-6)  # 0.6 is half a step


def test_shifting_takes_the_mean_filter_off():
    values = np.arange(24, dtype=np.float64).reshape(2, 12) ** 1.5
    new = weight(remove(linear(values.tolist()), attempt="weight-shift", strength=1.5))
    np.testing.assert_allclose(new, values - 1.5 * values.mean(axis=0), atol=1e-4)


def test_weight_noise_has_the_stated_level_and_depends_on_the_seed_alone():
    before = build_encoder("convnet-s", seed=5)
    one, two, other = (
        remove(before, attempt="weight-noise", strength=0.2, seed=s) for s in (1, 1, 2)
    )
    for name, value in weights_of(one).items():
        old = weights_of(before)[name].detach()
        ratio = float((value.detach() - old).std() / old.std(correction=0))
        assert ratio == pytest.approx(0.2, rel=6 / np.sqrt(2 * old.numel())), name
        assert torch.equal(value, weights_of(two)[name])
        assert not torch.equal(value, weights_of(other)[name])


@pytest.mark.parametrize(
    ("attempt", "strength", "most"),
    [("prune", 1e-6, 0), ("prune-global", 1e-7, 0), ("weight-noise", 1e-6, 1e-4),
     ("weight-shift", 1e-6, 1e-4), ("round-weights", 16, 1e-3)],
)  # fmt: skip
def test_next_to_its_neutral_strength_an_attempt_does_next_to_nothing(attempt, strength, most):
    encoder = build_encoder("convnet-xs", seed=6).eval()
    x = torch.rand(8, 3, 16, 16)
    z, new = embed(encoder, x), embed(remove(encoder, attempt=attempt, strength=strength), x)
    assert float((new - z).norm() / z.norm()) <= most


class Attention(nn.Module):
    """A transformer of one layer: patches, positions, attention, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.out(self.norm(tokens + mixed)).mean(dim=1)


def test_transformers_have_weights_to_prune_but_no_channels_to_silence():
    encoder = Encoder(Attention(), preprocessing=Preprocessing(size=8))
    with pytest.raises(EncoderError, match="take 'prune'"):
        remove(encoder, attempt="prune-channels", strength=0.5)
    after = remove(encoder, attempt="prune", strength=0.5)
    assert "attention.in_proj_weight" in weights_of(after)
    for name, value in after.backbone.named_parameters():
        old = encoder.backbone.get_parameter(name)
        if name in weights_of(after):
            assert float((value == 0).double().mean()) == 0.5, name
        else:  # positions, norms and offsets
            assert torch.equal(value, old), name


def test_an_encoder_of_buffers_alone_has_no_weights_to_change(world):
    images = world.images()
    with pytest.raises(EncoderError, match="no weights to change"):
        remove(world.palette(images), attempt="prune", strength=0.5)
    with pytest.raises(ConfigError, match="needs images"):
        _ = Given().needed


def test_fine_pruning_measures_at_most_the_sample(world):
    images: ImageSet = world.images(side=16).train
    few = Given(images).config.model_copy(update={"sample": 7})
    given_few = Given(images, config=few)
    assert len(given_few.some_images()) == 7
    assert len(set(given_few.sample().tolist())) == 7
