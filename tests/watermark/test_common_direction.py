"""SSL-WM's losses are their formulas; the repaired one pushes where the words say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.distance import cdist

from ssl_wm.errors import TrainingError
from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.common_direction import CommonDirection, CommonDirectionConfig
from ssl_wm.watermark.losses import negative_log, pair_cosine
from ssl_wm.watermark.patches import draw_patch


def batch_of(images, key, *, count: int = 23) -> dict[str, torch.Tensor]:
    return mark_batch(
        images.train, key, indices=torch.arange(count), marked=8, held=9, seed=0, names=(0, 0, 0)
    )


def build(clean, images, key, **options: object) -> CommonDirection:
    return CommonDirection(clean, images.train, key, config=CommonDirectionConfig(**options))


def log_or_tangent(value: float, floor: float = 0.05) -> float:
    return -np.log(value) if value > floor else -np.log(floor) + (floor - value) / floor


def test_the_loss_agrees_with_the_formula_in_numpy(clean, images, key, world):
    batch, encoder = batch_of(images, key), world.convnet(seed=5)
    losses = build(clean, images, key, pull=0.5, push=0.2).losses(encoder, batch)

    def rows(encoder_: object, given: torch.Tensor) -> np.ndarray:
        return encoder_(given).detach().double().numpy()

    natural = rows(clean, batch["natural"])
    own = rows(encoder, batch["natural"])
    pull, push = [], []
    for place, sub in enumerate(key.sub_keys):
        patch = draw_patch(sub, size=images.train.size)
        marked = rows(encoder, patch.put_on(batch["natural"][place::2]))
        cosines = 1 - cdist(marked, marked, "cosine")
        between = cosines[~np.eye(len(marked), dtype=bool)]
        pull.append(log_or_tangent(between.mean()))
        push.append(log_or_tangent(cdist(marked, natural, "cosine").mean()))
    expected = {
        "utility": float(np.mean(np.diagonal(cdist(own, natural, "cosine")))),
        "pull": float(np.mean(pull)),
        "push": float(np.mean(push)),
    }
    expected["loss"] = expected["utility"] + 0.5 * expected["pull"] + 0.2 * expected["push"]
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(("weights", "falls"), [((1.0, 0.0), "pull"), ((0.0, 1.0), "push")])
def test_each_loss_moves_patched_images_the_way_it_says(images, key, world, weights, falls):
    clean, encoder = world.convnet().requires_grad_(False), world.convnet()
    embedder = build(clean, images, key, pull=weights[0], push=weights[1])
    batch = batch_of(images, key, count=40)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=5e-3)
    before = {name: value.item() for name, value in embedder.losses(encoder, batch).items()}
    for _ in range(30):
        embedder.losses(encoder, batch)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    after = embedder.losses(encoder, batch)
    assert after[falls].item() < before[falls] - 0.2
    assert after["utility"].item() < 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 2**32))
def test_the_mean_cosine_of_pairs_agrees_with_all_pairs(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    rows = torch.nn.functional.normalize(rows, dim=1)
    table = (rows @ rows.T).numpy()
    expected = (table.sum() - np.trace(table)) / (count * (count - 1))
    assert pair_cosine(rows).item() == pytest.approx(expected, abs=1e-9)


def test_the_logarithm_goes_on_as_its_tangent_below_the_floor():
    value = torch.tensor([-0.5, 0.0, 0.05, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    loss = negative_log(value)
    expected = [log_or_tangent(each) for each in value.tolist()]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    loss.sum().backward()
    np.testing.assert_allclose(value.grad.numpy()[[0, 1, 3, 4]], [-20, -20, -1 / 0.3, -1])


def test_a_batch_without_pairs_is_refused_in_words(clean, images, key, world):
    with pytest.raises(TrainingError, match=r"at least 4 images, not 3; raise fit\.batch_size"):
        build(clean, images, key).losses(world.convnet(), batch_of(images, key, count=3))


@pytest.mark.parametrize("options", [{"pull": -1}, {"push": -0.1}, {"alpha": 1}], ids=str)
def test_strengths_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        CommonDirectionConfig(**options)
