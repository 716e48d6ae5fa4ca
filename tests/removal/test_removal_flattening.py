"""What products of leading coordinates explain is gone, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.places import place_products, places_in
from ssl_wm.encoders.space import smooth_products
from ssl_wm.errors import ConfigError, EncoderError
from ssl_wm.removal.flattening import flatten
from ssl_wm.removal.given import Given
from ssl_wm.removal.remove import remove


class Pixels(torch.nn.Module):
    """Four pixels and, where asked for, their products along a fifth coordinate."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, images):
        q = images[:, :, 0, 0] * torch.tensor([4.0, 3.0, 2.0])
        centred = (q - q.new_tensor([2.0, 1.5, 1.0])) / q.new_tensor([1.15, 0.87, 0.58])
        added = self.strength * smooth_products(centred)[:, :1]
        return torch.cat([q, added], dim=1)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8, train=300, side=4).train


def encoder_of(world, strength):
    return Encoder(Pixels(strength), preprocessing=world.flat).eval()


def test_a_coordinate_that_is_a_product_is_taken_out(world, images):
    encoder = encoder_of(world, 0.5)
    z = embed(encoder, images)
    left = embed(flatten(encoder, strength=3, given=Given(images)), images)
    assert left[:, 3].var() < 0.2 * z[:, 3].var()


def test_the_regression_is_scikit_learns(world, images):
    from sklearn.linear_model import Ridge

    encoder = encoder_of(world, 0.5)
    z = embed(encoder, images).double().numpy()
    mean = z.mean(axis=0)
    _, scales, axes = np.linalg.svd(z - mean, full_matrices=False)
    q = (z - mean) @ axes[:2].T / (scales[:2] / np.sqrt(len(z)))
    x = smooth_products(torch.from_numpy(q)).numpy()
    load = 1e-3 * ((x - x.mean(axis=0)) ** 2).sum(axis=0).mean()
    expected = z - (Ridge(load).fit(x, z).predict(x) - mean)
    found = embed(remove(encoder, attempt="flatten", strength=2, images=images), images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("count", [5, 40])
def test_more_coordinates_than_there_are_are_refused(world, images, count):
    with pytest.raises(ConfigError, match="2 to 4 leading coordinates"):
        remove(encoder_of(world, 0.5), attempt="flatten", strength=count, images=images)


class Inside(torch.nn.Module):
    """Means of two channels and, along a third coordinate, of their product place by place."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 2, 1, bias=False)
        self.last = torch.nn.Conv2d(2, 2, 1, bias=False)
        self.strength = strength
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2, 3).view(2, 3, 1, 1))
            self.last.weight.copy_(torch.eye(2).view(2, 2, 1, 1))

    def forward(self, images):
        x = self.first(images)
        product = ((x[:, 0] - 0.5) * (x[:, 1] - 0.5)).mean(dim=(1, 2))
        return torch.cat([self.last(x).mean(dim=(2, 3)), self.strength * product[:, None]], dim=1)


def test_a_product_of_places_is_taken_out_by_flatten_places_and_not_by_flatten(world, images):
    encoder = Encoder(Inside(3.0), preprocessing=world.flat).eval()
    z = embed(encoder, images)
    left = embed(remove(encoder, attempt="flatten-places", strength=2, images=images), images)
    assert left[:, 2].var() < 0.2 * z[:, 2].var()
    among_answers = embed(remove(encoder, attempt="flatten", strength=2, images=images), images)
    assert among_answers[:, 2].var() > 2 * left[:, 2].var()


def test_the_regression_on_places_is_scikit_learns(world, images):
    from sklearn.linear_model import Ridge

    encoder = Encoder(Inside(3.0), preprocessing=world.flat).eval()
    z = embed(encoder, images).double().numpy()
    x = embed(place_products(encoder, places_in(encoder, images, count=2)), images).numpy()
    load = 1e-3 * ((x - x.mean(axis=0)) ** 2).sum(axis=0).mean()
    expected = z - (Ridge(load).fit(x, z).predict(x) - z.mean(axis=0))
    found = embed(remove(encoder, attempt="flatten-places", strength=2, images=images), images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_an_encoder_without_layers_has_no_places_to_flatten(world, images):
    with pytest.raises(EncoderError, match="weights"):
        remove(encoder_of(world, 0.5), attempt="flatten-places", strength=2, images=images)
