"""Each family mixes as the paper says, with secret geometry, for images of any shape."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from ssl_wm.errors import ConfigError
from ssl_wm.watermark.autoencoder import Autoencoder
from ssl_wm.watermark.mixers import (
    MIXERS,
    AutoencoderBlend,
    CropPaste,
    PixelMerge,
    Stripes,
    describe_mixer,
    draw_mixer,
    other_mixers,
)

A = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4) / 100
B = A + 0.5


@functools.cache
def autoencoder() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder().eval().requires_grad_(False)


def stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def columns(image: Tensor) -> list[list[float]]:
    """Return the columns of the first channel of the first image."""
    return [[round(value, 6) for value in column] for column in image[0, 0].T.tolist()]


# --- each family by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "left"), [(0.5, 2), (0.25, 1), (0.9, 3), (0.01, 1)])
def test_crop_paste_puts_a_window_of_b_beside_a_window_of_a(cut, left):
    a, b = columns(A), columns(B)
    starts = set()
    for seed in range(40):
        mixed = columns(CropPaste(True, cut).mix(A, B, generator=generator(seed)))
        first, second = a.index(mixed[0]), b.index(mixed[left])
        assert mixed[:left] == a[first : first + left]
        assert mixed[left:] == b[second : second + 4 - left]
        starts.add((first, second))
    assert len(starts) == (5 - left) * (left + 1)  # every pair of windows comes up


def test_a_horizontal_seam_is_a_vertical_one_turned():
    for seed in range(5):
        upright = CropPaste(True, 0.5).mix(A, B, generator=generator(seed))
        lying = CropPaste(False, 0.5).mix(
            A.transpose(2, 3), B.transpose(2, 3), generator=generator(seed)
        )
        assert torch.equal(lying.transpose(2, 3), upright)


def test_each_image_of_a_batch_has_its_own_windows_the_same_in_all_channels():
    a = torch.rand(64, 3, 6, 6, generator=generator())
    mixed = CropPaste(False, 0.5).mix(a, a, generator=generator())
    starts = []
    for image, source in zip(mixed, a, strict=True):
        found = [
            s for s in range(4) if torch.equal(image[:, :3], source[:, s : s + 3])
        ]  # fmt: skip
        assert len(found) == 1
        starts += found
    assert set(starts) == {0, 1, 2, 3}


def test_pixel_merge_is_the_weighted_mean():
    mixed = PixelMerge(0.25).mix(A, B, generator=generator())
    torch.testing.assert_close(mixed, 0.25 * A + 0.75 * B)
    assert mixed[0, 1, 2, 3].item() == pytest.approx(0.25 * 0.11 + 0.75 * 0.61)


@pytest.mark.parametrize(
    ("mixer", "pattern"),
    [
        (Stripes(True, 4, 0.0), "ABAB"),
        (Stripes(True, 2, 0.5), "ABBA"),
        (Stripes(True, 1, 0.0), "AAAA"),
        (Stripes(True, 4, 0.9), "BABA"),
        (Stripes(True, 2, 0.0), "AABB"),
    ],
)
def test_stripes_take_turns(mixer, pattern):
    sources = {"A": columns(A), "B": columns(B)}
    expected = [sources[name][place] for place, name in enumerate(pattern)]
    assert columns(mixer.mix(A, B, generator=generator())) == expected
    lying = Stripes(False, mixer.count, mixer.shift)
    turned = lying.mix(A.transpose(2, 3), B.transpose(2, 3), generator=generator())
    assert columns(turned.transpose(2, 3)) == expected


def test_five_stripes_are_the_papers_three_of_a_and_two_of_b():
    mixed = Stripes(True, 5, 0.0).mix(
        torch.zeros(1, 3, 2, 10), torch.ones(1, 3, 2, 10), generator=generator()
    )
    assert columns(mixed) == [[v, v] for v in (0, 0, 1, 1, 0, 0, 1, 1, 0, 0)]


def test_the_autoencoder_blend_decodes_the_blended_codes():
    a, b = torch.rand(2, 3, 3, 8, 8, generator=generator())
    model = autoencoder()
    code = 0.3 * model.down(a) + 0.7 * model.down(b)
    expected = model.up(code).clamp(0, 1)
    mixed = AutoencoderBlend(0.3, model).mix(a, b, generator=generator())
    torch.testing.assert_close(mixed, expected)
    assert not mixed.requires_grad
    torch.testing.assert_close(AutoencoderBlend(0.7, model).mix(b, a, generator=generator()), mixed)


# --- all families ------------------------------------------------------------------------------


SIZES = st.sampled_from([(1, 1), (1, 6), (6, 1), (2, 2), (3, 5), (7, 4), (9, 9)])
FAMILIES = st.sampled_from(list(MIXERS))


@settings(max_examples=120, deadline=None)
@given(FAMILIES, st.integers(0, 2**32), SIZES, st.integers(1, 3))
def test_composites_are_images_of_the_same_shape_and_repeat(family, seed, size, batch):
    mixer = draw_mixer(family, stream(seed), autoencoder=autoencoder())
    a, b = torch.rand(2, batch, 3, *size, generator=generator(seed % 1000)).round(decimals=1)
    kept = a.clone(), b.clone()
    mixed = mixer.mix(a, b, generator=generator(1))
    assert mixed.shape == a.shape
    assert mixed.dtype == torch.float32
    assert float(mixed.min()) >= 0
    assert float(mixed.max()) <= 1 + 1e-6
    assert torch.equal(mixed, mixer.mix(a, b, generator=generator(1)))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


@given(FAMILIES, st.integers(0, 2**32))
def test_geometry_follows_from_the_stream_alone(family, seed):
    torch.manual_seed(seed)
    one = draw_mixer(family, stream(seed), autoencoder=autoencoder())
    torch.manual_seed(seed + 1)
    assert one == draw_mixer(family, stream(seed), autoencoder=autoencoder())
    assert json.loads(json.dumps(describe_mixer(one))) == describe_mixer(one)


def test_geometry_spreads_over_its_whole_range_near_an_even_mix():
    for family, even in (("crop-paste", "cut"), ("pixel-merge", "share"), ("autoencoder", "share")):
        drawn = [draw_mixer(family, stream(seed), autoencoder=autoencoder()) for seed in range(300)]
        values = [getattr(mixer, even) for mixer in drawn]
        assert min(values) >= 0.42
        assert max(values) <= 0.58
        assert np.histogram(values, bins=4, range=(0.42, 0.58))[0].min() > 45
    stripes = [draw_mixer("stripes", stream(seed)) for seed in range(300)]
    assert {mixer.count for mixer in stripes} == {4, 5, 6, 7}
    assert all(0 <= mixer.shift <= 1 for mixer in stripes)
    for kind in ("crop-paste", "stripes"):
        upright = [draw_mixer(kind, stream(seed)).vertical for seed in range(300)]
        assert 110 < sum(upright) < 190


@pytest.mark.parametrize("with_autoencoder", [True, False])
@pytest.mark.parametrize("family", list(MIXERS))
def test_the_other_mixers_are_all_others_and_the_same_one_turned(family, with_autoencoder):
    model = autoencoder() if with_autoencoder or family == "autoencoder" else None
    mixer = draw_mixer(family, stream(0), autoencoder=model)
    others = other_mixers(family, mixer, stream(1), autoencoder=model)
    families = {name for name in MIXERS if model or name != "autoencoder"} - {family}
    turned = {f"{family}, turned"} if family in ("crop-paste", "stripes") else set()
    assert set(others) == families | turned
    assert mixer not in others.values()
    for name in families:
        assert type(others[name]) is MIXERS[name]
    for name in turned:
        same = describe_mixer(mixer) | {"vertical": not mixer.vertical}
        assert describe_mixer(others[name]) == same


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown mixer 'stripe'; did you mean 'stripes'"):
        draw_mixer("stripe", stream(0))


def test_the_blend_without_its_autoencoder_is_an_error():
    with pytest.raises(ValueError, match="autoencoder"):
        draw_mixer("autoencoder", stream(0))
