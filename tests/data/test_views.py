"""Views: each image draws its own, within the stated limits, and as torchvision would."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from ssl_wm.data.views import (
    GREY,
    RGB_TO_YIQ,
    ViewConfig,
    augment,
    colour_maps,
    hue_rotation,
    random_crop_flip,
)

STILL = ViewConfig(
    min_scale=1, flip=0, jitter=1, brightness=0, contrast=0, saturation=0, hue=0, grey=0
)
WILD = ViewConfig(
    min_scale=0.05, jitter=1, brightness=1, contrast=1, saturation=1, hue=0.5, grey=0.3
)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 8, size: int = 8, *, seed: int = 1, low=0.0, high=1.0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=stream(seed)) * (high - low) + low


def view(images: torch.Tensor, *, seed: int = 0, **settings: float) -> torch.Tensor:
    config = STILL.model_copy(update=settings)
    return augment(images, config=config, generator=stream(seed))


def test_with_every_strength_at_zero_a_view_is_the_image():
    images = noise()
    torch.testing.assert_close(view(images), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        view(images, jitter=0, brightness=1, contrast=1, saturation=1, hue=0.5),
        images, atol=1e-5, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("config", [ViewConfig(), WILD, STILL])
@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (1, 1)])
def test_a_view_has_the_images_shape_and_stays_in_zero_to_one(config, shape):
    images = torch.randint(0, 256, (40, 3, *shape), dtype=torch.uint8, generator=stream())
    images[0], images[1] = 0, 255
    seen = augment(images, config=config, generator=stream(1))
    assert seen.shape == images.shape
    assert seen.dtype == torch.float32
    assert seen.isfinite().all()
    assert 0 <= seen.min() <= seen.max() <= 1


def test_uint8_and_float_images_give_the_same_view_and_stay_unchanged():
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=stream())
    floats = images / 255
    kept = floats.clone()
    torch.testing.assert_close(
        augment(images, config=WILD, generator=stream(3)),
        augment(floats, config=WILD, generator=stream(3)),
    )
    assert torch.equal(floats, kept)


def test_the_generator_alone_decides_the_views():
    images = noise()
    one = augment(images, config=ViewConfig(), generator=stream(4))
    torch.manual_seed(77)
    assert torch.equal(one, augment(images, config=ViewConfig(), generator=stream(4)))
    assert not torch.equal(one, augment(images, config=ViewConfig(), generator=stream(5)))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_scale": 0.2},
        {"brightness": 0.4},
        {"contrast": 0.4},
        {"saturation": 0.4},
        {"hue": 0.1},
    ],
    ids=str,
)
def test_each_image_draws_its_own_parameters(settings):
    images = noise(1).expand(32, -1, -1, -1)
    views = view(images, **settings).flatten(1)
    assert len(views.unique(dim=0)) == len(images)
    assert torch.pdist(views, p=math.inf).min() > 1e-6


def test_a_view_has_full_precision_below_autocast():
    images = noise()
    expected = augment(images, config=WILD, generator=stream(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, config=WILD, generator=stream(2)), expected)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_images_are_mirrored_as_often_as_asked(probability):
    images = noise(2000, 4)
    views = view(images, flip=probability, jitter=0)
    mirrored = (views - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    same = (views - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (mirrored ^ same).all()
    spread = math.sqrt(probability * (1 - probability) / len(images))
    assert abs(mirrored.float().mean() - probability) <= 4 * spread


def crops(config: ViewConfig, *, count: int = 4000) -> dict[str, np.ndarray]:
    """Measure drawn crops on images whose colours are their coordinates, from 0 to 1."""
    size = 32
    steps = (torch.arange(size) + 0.5) / size
    x, y = steps.expand(size, size), steps.view(-1, 1).expand(size, size)
    images = torch.stack([x, y, x]).expand(count, -1, -1, -1)
    seen = random_crop_flip(images, config=config, generator=stream(6)).double().numpy()
    middle = slice(size // 2 - 1, size // 2 + 1)
    column, row = seen[:, 0, 0, middle], seen[:, 1, middle, 0]
    return {
        "width": np.abs(column[:, 1] - column[:, 0]) * size,
        "height": (row[:, 1] - row[:, 0]) * size,
        "x": column.mean(axis=1),
        "y": row.mean(axis=1),
    }


@pytest.mark.parametrize("least", [0.2, 0.6])
def test_crops_follow_the_stated_distribution_and_lie_inside_the_image(least):
    drawn = crops(ViewConfig(min_scale=least))
    w, h = drawn["width"], drawn["height"]
    area, ratio = w * h, w / h
    assert least - 1e-3 <= area.min() <= area.max() <= 1 + 1e-3
    assert 3 / 4 - 1e-3 <= ratio.min() <= ratio.max() <= 4 / 3 + 1e-3
    small = area < 3 / 4  # every ratio fits, so these are drawn once
    assert stats.kstest(area[small], "uniform", args=(least, 3 / 4 - least)).pvalue > 1e-3
    limit = np.minimum(math.log(4 / 3), -np.log(area))
    whole = area > 1 - 1e-3
    assert whole.mean() < 0.02
    assert stats.kstest((np.log(ratio) / limit)[~whole], "uniform", args=(-1, 2)).pvalue > 1e-3
    for centre, side in ((drawn["x"], w), (drawn["y"], h)):
        assert (centre - side / 2).min() > -1e-3
        assert (centre + side / 2).max() < 1 + 1e-3
        free = side < 0.98
        place = ((centre - side / 2) / (1 - side))[free]
        assert stats.kstest(place, "uniform").pvalue > 1e-3


def test_crops_have_the_moments_of_torchvisions_random_resized_crop():
    ours = crops(ViewConfig(min_scale=0.2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.zeros(1, 1, 1).expand(3, 256, 256)
        drawn = [RandomResizedCrop.get_params(image, [0.2, 1], [3 / 4, 4 / 3]) for _ in range(4000)]
    y, x, height, width = (np.array(drawn, dtype=float) / 256).T
    theirs = {"width": width, "height": height, "x": x + width / 2, "y": y + height / 2}
    for name, values in theirs.items():
        assert abs(ours[name].mean() - values.mean()) < 0.01
        assert abs(ours[name].std() - values.std()) < 0.01


def one_view(pixels: np.ndarray, draws: dict[str, float], order: list[int]) -> np.ndarray:
    """Apply the jitter to one image (3, n) step by step: the independent reference."""
    grey = np.array(GREY)

    def brightness(x):
        return x * draws["brightness"]

    def contrast(x):
        return draws["contrast"] * x + (1 - draws["contrast"]) * (grey @ x).mean()

    def saturation(x):
        return draws["saturation"] * x + (1 - draws["saturation"]) * (grey @ x)

    def hue(x):
        y, i, q = np.array(RGB_TO_YIQ) @ x
        chroma = (i + 1j * q) * np.exp(2j * np.pi * draws["turns"])
        return np.linalg.solve(np.array(RGB_TO_YIQ), np.stack([y, chroma.real, chroma.imag]))

    if draws["jitter"]:
        for index in order:
            pixels = (brightness, contrast, saturation, hue)[index](pixels)
    if draws["grey"]:
        pixels = np.tile(grey @ pixels, (3, 1))
    return pixels.clip(0, 1)


def test_the_colour_maps_equal_the_operations_done_one_after_another():
    count, images = 64, noise(64, 5)
    config = ViewConfig(
        min_scale=1, flip=0, jitter=0.7, brightness=0.5, contrast=0.6, saturation=0.7, hue=0.3,
        grey=0.3,
    )  # fmt: skip
    generator = stream(9)
    matrix, offset = colour_maps(images.mean((2, 3)), config=config, generator=generator)
    seen = (matrix @ images.flatten(2) + offset.unsqueeze(2)).clamp(0, 1)
    again = stream(9)
    u = {
        name: torch.rand(count, generator=again).double().numpy()
        for name in ("saturation", "contrast", "brightness", "hue")
    }
    order = torch.rand(count, 4, generator=again).argsort(dim=1).tolist()
    jitter, grey = (torch.rand(count, generator=again).numpy() for _ in range(2))
    assert 30 < (jitter < 0.7).sum() < 60
    assert 8 < (grey < 0.3).sum() < 32
    for index in range(count):
        draws = {
            name: 1 + getattr(config, name) * (2 * u[name][index] - 1)
            for name in ("saturation", "contrast", "brightness")
        }
        draws["turns"] = config.hue * (2 * u["hue"][index] - 1)
        draws["jitter"], draws["grey"] = jitter[index] < 0.7, grey[index] < 0.3
        expected = one_view(images[index].flatten(1).double().numpy(), draws, order[index])
        np.testing.assert_allclose(seen[index].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.4},
        {"contrast": 0.4},
        {"saturation": 0.4},
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    ],
    ids=str,
)
def test_the_jitter_has_the_moments_of_torchvisions(settings):
    image = noise(1, 3, low=0.3, high=0.5)  # far from 0 and 1, where clamping would differ
    ours = view(image.expand(2000, -1, -1, -1), **settings).flatten(1)
    jitter = ColorJitter(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.cat([jitter(image).flatten(1) for _ in range(2000)])
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.01
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.005


@pytest.mark.parametrize("turns", [0.0, 1.0, -1.0])
def test_no_turn_and_a_full_turn_of_the_hue_are_the_identity(turns):
    expected = torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(hue_rotation(torch.full((2,), turns)), expected, atol=1e-5, rtol=0)


def test_turns_of_the_hue_add_up_and_keep_grey_and_brightness():
    one, two = torch.rand(20, generator=stream()), torch.rand(20, generator=stream(1))
    torch.testing.assert_close(
        hue_rotation(one) @ hue_rotation(two), hue_rotation(one + two), atol=1e-4, rtol=0
    )
    colours, luma = noise(20, 1).flatten(1).unsqueeze(2), torch.tensor(GREY)
    turned = hue_rotation(one) @ colours
    torch.testing.assert_close(luma @ turned, luma @ colours, atol=1e-4, rtol=0)
    greys = torch.ones(20, 3, 1)
    torch.testing.assert_close(hue_rotation(one) @ greys, greys, atol=1e-4, rtol=0)
    assert (turned - colours).abs().max() > 0.1


def test_grey_is_really_grey_and_as_bright_as_the_image():
    images = noise(30)
    views = view(images, grey=1)
    assert torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, 0], views[:, 2])
    luma = (torch.tensor(GREY).view(3, 1, 1) * images).sum(dim=1)
    torch.testing.assert_close(views[:, 0], luma, atol=1e-5, rtol=0)
    jittered = augment(images, config=WILD.model_copy(update={"grey": 1}), generator=stream())
    assert torch.equal(jittered[:, 0], jittered[:, 2])


@pytest.mark.parametrize(("setting", "share"), [("grey", 0.2), ("jitter", 0.8)])
def test_jitter_and_grey_strike_as_often_as_asked(setting, share):
    images = noise(2000, 2)
    changed = {"grey": {}, "jitter": {"brightness": 0.4}}[setting]
    views = view(images, **{setting: share}, **changed)
    struck = (views - images).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert abs(struck.float().mean() - share) < 4 * math.sqrt(share * (1 - share) / 2000)


@pytest.mark.parametrize("wrong", [{"min_scale": 0}, {"flip": 1.1}, {"hue": 0.6}, {"blur": 1}])
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        ViewConfig(**wrong)
