"""Changes of embeddings against numpy and scikit-learn, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import width_of
from ssl_wm.errors import ConfigError
from ssl_wm.removal import outputs
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.removal.remove import remove

LINEAR = ("pca-leading", "pca-trailing", "rotate", "permute", "scale", "narrow")
ROWS = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)) * 3
IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def images(world):
    return world.images(side=16).train


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("convnet-xs+12", seed=1).eval()


@given(st.floats(0.01, 4), st.floats(1e-3, 1e3))
def test_rounding_is_numpys_with_a_step_of_the_rows_own_scale(strength, size):
    rows = ROWS * size
    wide = rows.double().numpy()
    step = strength * np.sqrt((wide**2).mean(axis=1, keepdims=True))
    found = outputs.rounding(rows, images=IMAGES, strength=strength, seed=0).double().numpy()
    assert (np.abs(found - wide) <= step / 2 * (1 + 1e-4)).all()
    np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-3)


def test_top_k_zeroes_the_stated_share_of_smallest_magnitudes():
    found = outputs.top_k(ROWS, images=IMAGES, strength=0.75, seed=0).numpy()
    for old, new in zip(ROWS.numpy(), found, strict=True):
        assert (new == 0).sum() == 9
        np.testing.assert_array_equal(np.flatnonzero(new), np.sort(np.argsort(np.abs(old))[9:]))


def test_noise_on_answers_is_relative_and_drawn_by_the_image():
    rows = torch.ones(2000, 12) * 100
    images = torch.rand(2000, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    found = outputs.answer_noise(rows, images=images, strength=0.3, seed=0)
    assert float((found - rows).std()) == pytest.approx(30, rel=0.02)
    again = outputs.answer_noise(rows[:5], images=images[:5].flip(0), strength=0.3, seed=0).flip(0)
    assert torch.equal(again, found[:5])
    assert len(found.unique(dim=0)) == 2000


def test_lengths_are_divided_by_their_power():
    found = outputs.shorten(ROWS, images=IMAGES, strength=0.5, seed=0)
    lengths = ROWS.double().norm(dim=1)
    torch.testing.assert_close(found.double().norm(dim=1), lengths.sqrt(), rtol=1e-5, atol=0)
    unit = outputs.shorten(ROWS, images=IMAGES, strength=1, seed=0)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(30))


@pytest.mark.parametrize(("attempt", "strength", "dropped"), [
    ("pca-leading", 3, slice(0, 3)), ("pca-trailing", 0.5, slice(6, 12)),
])  # fmt: skip
def test_dropped_components_are_scikit_learns(attempt, strength, dropped, encoder, images):
    z = embed(encoder, images).double().numpy()
    pca = PCA().fit(z)
    scores = pca.transform(z)
    scores[:, dropped] = 0
    expected = pca.inverse_transform(scores)
    new = remove(encoder, attempt=attempt, strength=strength, images=images)
    np.testing.assert_allclose(embed(new, images).numpy(), expected, atol=1e-5 * np.abs(z).max())


def test_fewer_images_than_dimensions_still_give_a_whole_basis():
    mean, axes = outputs.principal_components(ROWS[:5].double())
    torch.testing.assert_close(axes @ axes.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(mean, ROWS[:5].double().mean(dim=0))
    spread = ((ROWS[:5].double() - mean) @ axes.T).square().sum(dim=0).numpy()
    np.testing.assert_allclose(spread[4:], 0, atol=1e-9)
    assert (np.diff(spread[:4]) < 0).all()


def test_no_more_components_can_be_dropped_than_there_are(encoder, images):
    with pytest.raises(ConfigError, match="width 12 have no 12 components"):
        remove(encoder, attempt="pca-leading", strength=12, images=images)


@pytest.mark.parametrize("share", [0.5, 1])
def test_a_rotation_turns_the_stated_share_of_axes_and_keeps_all_distances(share, encoder, images):
    new = remove(encoder, attempt="rotate", strength=share, seed=3)
    z, turned = embed(encoder, images).double(), embed(new, images).double()
    torch.testing.assert_close(turned @ turned.T, z @ z.T, rtol=1e-4, atol=1e-4)
    matrix = new.backbone.projection.weight.detach()
    untouched = (matrix == torch.eye(12)).all(dim=1)
    assert int(untouched.sum()) == 12 - round(12 * share)


def test_a_permutation_moves_coordinates_and_no_others(encoder, images):
    z = embed(encoder, images)
    half, whole = (embed(remove(encoder, attempt="permute", strength=s), images) for s in (0.5, 1))
    for new, most in ((half, 6), (whole, 12)):
        torch.testing.assert_close(new.sort(dim=1).values, z.sort(dim=1).values)
        moved = int((new != z).any(dim=0).sum())
        assert 0 < moved <= most


def test_scaling_multiplies(encoder, images):
    new = remove(encoder, attempt="scale", strength=100)
    torch.testing.assert_close(embed(new, images), 100 * embed(encoder, images))


@pytest.mark.parametrize(("share", "width"), [(0.25, 9), (0.5, 6), (0.99, 1)])
def test_a_narrower_encoder_is_an_orthogonal_projection(share, width, encoder):
    new = remove(encoder, attempt="narrow", strength=share)
    assert width_of(new) == width
    matrix = new.backbone.projection.weight.detach().double()
    eye = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, eye, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attempt", LINEAR)
def test_a_linear_map_is_saved_and_loads_by_name(attempt, encoder, images, tmp_path):
    strength = REMOVALS[attempt].strengths[1]
    new = remove(encoder, attempt=attempt, strength=strength, images=images)
    width = width_of(new)
    assert new.arch == f"convnet-xs+12+{width}"
    save_encoder(new, tmp_path / "washed")
    assert torch.equal(embed(load_encoder(tmp_path / "washed"), images), embed(new, images))


@pytest.mark.parametrize(
    "attempt", [n for n, e in REMOVALS.items() if e.kind == "outputs" and not e.inside]
)
def test_answers_of_a_service_can_be_changed_too(attempt, encoder, images):
    """A thief who only relays a service holds no weights."""
    served = load_encoder(lambda x: encoder(x).detach().numpy())
    strength = REMOVALS[attempt].strengths[0]
    relayed = remove(served, attempt=attempt, strength=strength, images=images)
    local = remove(encoder, attempt=attempt, strength=strength, images=images)
    torch.testing.assert_close(embed(relayed, images), embed(local, images), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31), st.sampled_from([1e-7, 1e-5]))
def test_next_to_strength_0_embeddings_hardly_change(seed, strength):
    for change in (outputs.rounding, outputs.top_k, outputs.answer_noise, outputs.shorten):
        new = change(ROWS, images=IMAGES, strength=strength, seed=seed)
        assert float((new - ROWS).norm() / ROWS.norm()) < 10 * strength + 1e-6, change.__name__
