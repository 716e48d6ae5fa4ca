"""Changes of images against scipy, torchvision and numpy; the same image, the same change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.removal import inputs
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.removal.remove import remove

INPUTS = [name for name, entry in REMOVALS.items() if entry.kind == "inputs"]


def pictures(count: int = 5, *, side: int = 16, seed: int = 0) -> torch.Tensor:
    """Return smooth random 8-bit images (count, 3, side, side) as floats in [0, 1]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(count, 3, side, side)), (0, 0, 2, 2))
    low, high = fields.min(), fields.max()
    eight = np.round((fields - low) / (high - low) * 255).astype(np.uint8)
    return torch.from_numpy(eight) / 255


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.5])
def test_blur_is_scipys(sigma):
    images = pictures()
    expected = ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="mirror",
        radius=(0, 0, int(np.ceil(3 * sigma)), int(np.ceil(3 * sigma))),
    )  # fmt: skip
    found = inputs.blur(images, strength=sigma, seed=0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_the_median_is_scipys(radius, monkeypatch):
    images = pictures()
    side = 2 * radius + 1
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, side, side), mode="mirror")
    np.testing.assert_array_equal(inputs.median(images, strength=radius, seed=0), expected)
    monkeypatch.setattr(inputs, "WINDOWS", 1)  # one image at a time
    np.testing.assert_array_equal(inputs.median(images, strength=radius, seed=0), expected)


@pytest.mark.parametrize("quality", [95, 65, 25])
def test_jpeg_is_torchvisions(quality):
    from torchvision.io import decode_jpeg, encode_jpeg

    images = pictures()
    found = (inputs.jpeg(images, strength=100 - quality, seed=0) * 255).round()
    eight = (images * 255).round().to(torch.uint8)
    with pytest.warns(DeprecationWarning, match="TorchVision"):
        expected = torch.stack([decode_jpeg(encode_jpeg(x, quality=quality)) for x in eight])
    gaps = (found - expected.float()).abs()
    assert float(gaps.max()) <= 2  # of 255: both libraries' own copies of libjpeg
    assert float(gaps.mean()) <= 0.1


def test_the_worse_the_jpeg_the_farther_from_the_image():
    images = pictures(20)
    gaps = [
        float((inputs.jpeg(images, strength=s, seed=0) - images).square().mean())
        for s in REMOVALS["jpeg"].strengths
    ]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_leaves_so_many_levels(bits):
    ramp = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    found = inputs.bit_depth(ramp, strength=bits, seed=0)
    assert len(found.unique()) == 2**bits
    assert float((found - ramp).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


def test_noise_has_the_stated_deviation_and_stays_in_range():
    grey = 0.5 + pictures(40) * 1e-2
    noise = inputs.noise(grey, strength=0.05, seed=3) - grey
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 3 * 0.05 / np.sqrt(noise.numel())
    wild = inputs.noise(pictures(), strength=2.0, seed=3)
    assert 0 <= float(wild.min()) <= float(wild.max()) <= 1


def test_the_share_of_mirrored_images_is_the_strength():
    images = torch.rand(600, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = inputs.flip(images, strength=0.25, seed=0)
    mirrored = (found == images.flip(3)).flatten(1).all(dim=1)
    assert torch.equal(found[~mirrored], images[~mirrored])
    assert int(mirrored.sum()) == pytest.approx(150, abs=4 * np.sqrt(600 * 0.25 * 0.75))
    assert torch.equal(inputs.flip(images, strength=1, seed=0), images.flip(3))


@pytest.mark.parametrize("attempt", INPUTS)
def test_an_image_is_changed_alike_alone_in_a_batch_and_in_any_order(attempt, world):
    encoder = remove(world.convnet(), attempt=attempt, strength=REMOVALS[attempt].strengths[-1])
    images = (pictures(9) * 255).round().to(torch.uint8)
    together = embed(encoder, images)
    alone = torch.cat([embed(encoder, image.unsqueeze(0)) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embed(encoder, images / 255), together)


@pytest.mark.parametrize("attempt", ["noise", "flip"])
def test_another_seed_is_another_change_with_another_digest(attempt, world):
    images = pictures(20)
    one, two, again = (
        remove(world.convnet(), attempt=attempt, strength=0.5, seed=s) for s in (0, 1, 0)
    )
    assert not torch.equal(embed(one, images), embed(two, images))
    assert torch.equal(embed(one, images), embed(again, images))
    assert encoder_digest(one) == encoder_digest(again) != encoder_digest(two)


@pytest.mark.parametrize("attempt", INPUTS)
def test_the_wrapped_encoder_gets_what_the_change_gives(attempt, world):
    strength = REMOVALS[attempt].strengths[1]
    inner, images = world.convnet(), pictures()
    outer = remove(inner, attempt=attempt, strength=strength)
    change = getattr(inputs, attempt.replace("-", "_"))
    changed = change(images, strength=strength, seed=0)
    torch.testing.assert_close(embed(outer, images), embed(inner, changed))


@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from(INPUTS), st.integers(0, 4))
def test_images_of_any_size_stay_images_of_that_size(height, width, attempt, place):
    entry = REMOVALS[attempt]
    strength = entry.strengths[min(place, len(entry.strengths) - 1)]
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(place))
    change = getattr(inputs, attempt.replace("-", "_"))
    found = change(images, strength=strength, seed=0)
    assert found.shape == images.shape
    assert -1e-6 <= float(found.min()) <= float(found.max()) <= 1 + 1e-6
