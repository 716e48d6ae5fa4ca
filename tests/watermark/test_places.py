"""Carriers of the places: values, the head that adds them, and what they are good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, wrap
from ssl_wm.encoders.places import has_places
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.encoders.space import smooth_products
from ssl_wm.encoders.zoo import cut_short
from ssl_wm.errors import ConfigError
from ssl_wm.verification.carried import carried_ranks, carried_shares
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import base_of, clean_base, verify
from ssl_wm.watermark.bend_settings import BendSpaceConfig
from ssl_wm.watermark.bend_space import BendSpace
from ssl_wm.watermark.carriers import own_carriers
from ssl_wm.watermark.keygen import keygen
from ssl_wm.watermark.places import carrier_places, carrying, place_values

READ = {"per_pair": 8, "recipes": 0, "reference": 60, "trigger_count": 24, "neighbours": 5}
CONFIG = VerifyConfig(read=ReadConfig(**READ), draws=999)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8, train=60, side=16)


@pytest.fixture(scope="module")
def clean():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(),
            nn.Conv2d(10, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
    return Encoder(net).eval()


@pytest.fixture(scope="module")
def key(world, images, clean):
    bound = {"carriers": 2, "carriers_in": "places", "encoder": encoder_digest(clean)}
    return world.key(images, number=4, sub_keys=2, **bound)


def inside(clean, pixels):
    x = (pixels.float() / 255 - clean.mean) / clean.std
    with torch.no_grad():
        return clean.backbone[:4](x).flatten(2).transpose(1, 2).double()


def test_coordinates_are_the_whitened_principal_ones_of_all_places(clean, images):
    places = carrier_places(clean, images.train)
    assert places.before == "4"
    rows = inside(clean, images.train.pixels).flatten(0, 1)
    q = (rows - places.axes.mean) @ places.axes.directions
    covariance = torch.cov(q.T, correction=0)
    assert torch.allclose(covariance, torch.eye(len(covariance), dtype=q.dtype), atol=1e-4)
    largest = np.linalg.eigvalsh(np.cov(rows.numpy().T, bias=True))[-1]
    assert float(places.axes.directions[:, 0].norm()) == pytest.approx(largest**-0.5, rel=1e-4)


def test_a_carrier_is_the_mean_over_places_of_a_smooth_product(clean, images):
    places = carrier_places(clean, images.train)
    some = images.test.pixels[:7]
    q = (inside(clean, some) - places.axes.mean) @ places.axes.directions
    expected = torch.stack([smooth_products(each).mean(dim=0) for each in q])
    assert torch.allclose(place_values(clean, some, places).double(), expected, atol=1e-4)


def test_the_head_adds_what_the_answers_do_not_tell_along_orthogonal_directions(clean, images, key):
    marked = carrying(clean, images.train, key, strength=0.3)
    z = embed(clean, images.train).double()
    moves = embed(marked, images.train).double() - z
    spread = z.var(dim=0, correction=0).sum()
    moved = (moves - moves.mean(dim=0)).square().sum(dim=1).mean()
    assert float((moved / spread).sqrt()) == pytest.approx(0.3, rel=1e-3)
    rows = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    left = moves - rows @ torch.linalg.lstsq(rows, moves).solution
    assert torch.allclose(left, moves, atol=1e-3 * float(moves.abs().max()))
    along = marked.backbone.along.weight.detach().double()
    gram = along.T @ along
    assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-6 * float(gram.max()))
    values = place_values(clean, images.train, carrier_places(clean, images.train)).double()
    own = [place for places in own_carriers(key, count=values.shape[1]) for place in places]
    rest = values[:, own] - rows @ torch.linalg.lstsq(rows, values[:, own]).solution
    assert torch.allclose(moves, rest @ along.T, atol=1e-3 * float(moves.abs().max()))


def test_no_strength_and_no_carriers_leave_the_encoder_alone(world, clean, images, key):
    assert carrying(clean, images.train, key, strength=0) is clean
    without = world.key(images, number=4, sub_keys=2)
    embedder = BendSpace(clean, images.train, without, config=BendSpaceConfig(steps=0, pool=8))
    assert embedder.clean is clean


def test_more_carriers_than_dimensions_are_refused(world, images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    narrow = Encoder(net).eval()
    bound = {"carriers": 2, "carriers_in": "places", "encoder": encoder_digest(narrow)}
    key = world.key(images, number=4, sub_keys=2, **bound)
    with pytest.raises(ConfigError, match="carried: 0"):
        carrying(narrow, images.train, key, strength=0.3)


def test_an_encoder_with_the_carriers_is_detected_by_them_and_the_clean_one_is_not(
    clean, images, key
):
    settings = BendSpaceConfig(steps=0, pool=8)
    marked = BendSpace(clean, images.train, key, config=settings).marked()
    verdict = verify(marked, key=key, images=images, nulls=[clean], config=CONFIG)
    found = {test.name: test for test in verdict.tests}
    assert found["C"].p_value < 1e-4
    assert verdict.decision == "detected"
    again = verify(clean, key=key, images=images, nulls=[clean], config=CONFIG)
    assert {test.name: test.p_value for test in again.tests}["C"] == 1


def test_carriers_are_read_of_the_clean_encoders_places(clean, images, key):
    base = clean_base([clean], key, images, config=CONFIG)
    assert base is not None
    assert torch.equal(base.carriers, base_of(clean, key, images, config=CONFIG.read).carriers)
    cut = Encoder(cut_short(clean, dropped=2), preprocessing=clean.preprocessing)
    shares = carried_shares(embed(cut, images.train), _base_on(clean, images))
    assert shares.shape == (base.carriers.shape[1],)
    assert len(carried_ranks(shares, [[0, 1]])[0]) == 2


def _base_on(clean, images):
    from ssl_wm.verification.carried import Base

    places = carrier_places(clean, images.train)
    return Base(embed(clean, images.train), place_values(clean, images.train, places))


def test_keygen_takes_places_where_there_are_some(images, clean):
    convolutional = build_encoder("convnet-xs").eval()
    flat = wrap(lambda x: x.mean(dim=(2, 3)))
    assert has_places(convolutional, side=16)
    assert not has_places(flat, side=16)
    drawn = {"clusters": 6, "autoencoder_steps": 0}
    assert keygen(images, encoder=clean, **drawn).terms.carriers_in == "places"
    assert keygen(images, encoder=clean, carriers=0, **drawn).terms.carriers_in == "answers"
    asked = keygen(images, encoder=clean, carriers_in="answers", **drawn)
    assert "carriers_in" not in asked.terms.content
    with pytest.raises(ConfigError, match="--carriers-in answers"):
        keygen(images, encoder=flat, carriers_in="places", **drawn)
