"""Carriers: coordinates, values, the draw, and the layer that adds them."""

import math

import numpy as np
import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.heads import Bent
from ssl_wm.encoders.space import leading_axes
from ssl_wm.errors import ConfigError
from ssl_wm.rng import torch_stream
from ssl_wm.watermark import carriers
from ssl_wm.watermark.bend import Bend
from ssl_wm.watermark.carriers import (
    EACH,
    Carriers,
    axes_of,
    axis_pairs,
    carrier_values,
    own_carriers,
)


def cloud(rows=400, width=6, seed=0):
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(size=(rows, width)) * np.arange(width, 0, -1) + 3.0)


def test_the_coordinates_are_whitened_principal_components():
    from sklearn.decomposition import PCA

    z = cloud()
    axes = leading_axes(z, count=3)
    ours = ((z - axes.mean) @ axes.directions).numpy()
    theirs = PCA(3, whiten=True).fit_transform(z.numpy()) * math.sqrt(400 / 399)
    for column in range(3):
        sign = np.sign((ours[:, column] * theirs[:, column]).sum())
        assert np.allclose(ours[:, column], sign * theirs[:, column], atol=1e-9)


def test_a_direction_without_variance_is_no_coordinate():
    flat = torch.cat([cloud(width=2), torch.zeros(400, 2, dtype=torch.float64)], dim=1)
    assert leading_axes(flat, count=20).directions.shape == (4, 2)


def test_each_carrier_is_the_smooth_product_of_its_two_coordinates():
    z = cloud(rows=50)
    axes = leading_axes(z, count=4)
    q = ((z - axes.mean) @ axes.directions).numpy()

    def even(u):
        return u * math.erf(u / math.sqrt(2))

    values = carrier_values(z, axes).numpy()
    assert values.shape == (50, 6)
    for place, (i, j) in enumerate(axis_pairs(axes).tolist()):
        expected = [even(a + b) - even(a - b) for a, b in zip(q[:, i], q[:, j], strict=True)]
        assert np.allclose(values[:, place], expected, atol=1e-12)
        far = np.minimum(np.abs(q[:, i]), np.abs(q[:, j]))
        assert (np.abs(values[:, place]) <= 2 * far + 0.5).all()


def test_a_sub_key_draws_different_carriers_and_all_alike(world):
    counts = np.zeros(10)
    for number in range(400):
        key = world.tiny_key(number, groups=9, sub_keys=3, carriers=EACH, encoder="e" * 64)
        for places in own_carriers(key, count=10):
            assert len(set(places)) == EACH
            counts[places] += 1
    expected = counts.sum() / 10
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_revealed_sub_keys_name_the_same_carriers(world):
    key = world.tiny_key(0, groups=9, sub_keys=3, carriers=EACH, encoder="e" * 64)
    whole = own_carriers(key, count=190)
    assert own_carriers(key.reveal([1]), count=190) == [whole[1]]


def test_too_few_carriers_leave_none_to_draw(world):
    key = world.tiny_key(0, groups=9, sub_keys=3, carriers=EACH, encoder="e" * 64)
    assert own_carriers(key, count=EACH) == [[] for _ in key.sub_keys]


def carriers_of(z, places=(0, 2, 5), strength=0.3):
    return Carriers(
        leading_axes(z, count=4), places, z, strength=strength,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


def test_the_layer_adds_the_values_along_orthogonal_directions():
    z = cloud()
    layer = carriers_of(z)
    along = layer.last[:, :3].T
    expected = carrier_values(z, leading_axes(z, count=4))[:, [0, 2, 5]] @ along
    assert torch.allclose(layer(z), expected, atol=1e-9)
    gram = along @ along.T
    assert torch.allclose(gram, torch.eye(3, dtype=gram.dtype) * gram[0, 0], atol=1e-9)


def test_strength_is_the_move_against_the_spread():
    z = cloud()
    moves = carriers_of(z)(z)
    moved = (moves - moves.mean(dim=0)).square().sum(dim=1).mean()
    spread = z.var(dim=0, correction=0).sum()
    assert float((moved / spread).sqrt()) == pytest.approx(0.3, rel=1e-6)


def test_more_carriers_than_dimensions_are_refused():
    with pytest.raises(ConfigError, match="carried: 0"):
        carriers_of(cloud(width=4)[:, :2], places=range(3))


def test_the_served_head_answers_as_the_map_with_its_carriers():
    z = cloud().float()
    bend = Bend(
        z.mean(dim=0), scale=20.0, hidden=8, generator=torch.Generator().manual_seed(0),
        carriers=carriers_of(z.double()),
    )  # fmt: skip
    with torch.no_grad():
        bend.last.normal_(std=0.1)
    head = Bent(torch.nn.Flatten(), width=6, hidden=bend.units)
    bend.write_to(head)
    assert bend.units == 8 + 4 * 3
    assert torch.allclose(head(z.view(-1, 6, 1, 1)), bend(z), atol=1e-4)


def test_a_trained_map_leaves_its_carriers_alone():
    z = cloud().float()
    layer = carriers_of(z.double())
    bend = Bend(z.mean(dim=0), scale=20.0, hidden=8, generator=torch.Generator(), carriers=layer)
    assert {name for name, _ in bend.named_parameters()} == {"first", "bias", "last"}


def test_coordinates_come_from_a_public_sample_of_the_training_images(images, clean, monkeypatch):
    monkeypatch.setattr(carriers, "SAMPLE", 40)
    one, two = (axes_of(clean, images.train) for _ in range(2))
    assert torch.equal(one.directions, two.directions)
    order = torch.randperm(len(images.train), generator=torch_stream(0, "axes"))[:40]
    z = embed(clean, images.train.subset(order.sort().values), precision="auto")
    assert torch.equal(one.mean, z.double().mean(dim=0))
