"""BadEncoder's three terms, and none's one, are their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.distance import cosine

from ssl_wm.encoders.embeddings import embed
from ssl_wm.watermark.bad_encoder import BadEncoder, BadEncoderConfig
from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.patches import draw_patch
from ssl_wm.watermark.unmarked import Unmarked, UnmarkedConfig


@pytest.fixture(scope="module")
def batch(images, key):
    return mark_batch(
        images.train, key, indices=torch.arange(23), marked=8, held=9, seed=0, names=(0, 0, 0)
    )


def build(clean, images, key, **options: object) -> BadEncoder:
    return BadEncoder(clean, images.train, key, config=BadEncoderConfig(**options))


def far(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.mean([cosine(a, b) for a, b in zip(one, two, strict=True)]))


def test_the_loss_agrees_with_the_formula_in_numpy(clean, images, key, batch, world):
    options = {"references": 5, "reference_weight": 0.5, "utility_weight": 2.0}
    embedder, encoder = build(clean, images, key, **options), world.convnet(seed=5)
    losses = embedder.losses(encoder, batch)

    def rows(encoder_: object, given: torch.Tensor) -> np.ndarray:
        return encoder_(given).detach().double().numpy()

    references = embedder.references
    patched, goals = [], []
    for place, image in enumerate(batch["natural"]):
        patch = draw_patch(key.sub_keys[place % 2], size=images.train.size)
        patched.append(patch.put_on(image.unsqueeze(0))[0])
        goals.append(references[5 * (place % 2) + (place // 2) % 5])
    expected = {
        "marked": far(rows(encoder, torch.stack(patched)), rows(encoder, torch.stack(goals))),
        "reference": far(rows(encoder, references), rows(clean, references)),
        "utility": far(rows(encoder, batch["natural"]), rows(clean, batch["natural"])),
    }
    expected["loss"] = expected["marked"] + 0.5 * expected["reference"] + 2 * expected["utility"]
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_references_are_different_images_of_each_sub_keys_target(clean, images, key):
    embedder = build(clean, images, key, references=5)
    known = {bytes(image.numpy()): int(label) for image, label in
             zip(images.train.pixels, images.train.labels, strict=True)}  # fmt: skip
    found = [known[bytes(image.numpy())] for image in embedder.references]
    assert found == [sub.target for sub in key.sub_keys for _ in range(5)]
    assert len({bytes(image.numpy()) for image in embedder.references}) == 10
    assert torch.equal(embedder.references, build(clean, images, key, references=5).references)


def test_a_group_smaller_than_the_references_gives_what_it_has(clean, images, key, batch, world):
    embedder = build(clean, images, key, references=99)
    assert len(embedder.references) == 24
    assert torch.isfinite(embedder.losses(world.convnet(seed=5), batch)["loss"])


def test_another_key_has_other_references(clean, images, key, world):
    other = world.key(images, number=2, sub_keys=2)
    ours, theirs = build(clean, images, key), build(clean, images, other)
    assert not torch.equal(ours.references, theirs.references)


def test_training_sends_patched_images_to_the_target_and_leaves_the_rest(images, key, world):
    clean, encoder = world.convnet(), world.convnet()
    embedder = build(clean.requires_grad_(False), images, key, references=4)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    first = None
    for step in range(20):
        batch = mark_batch(
            images.train, key, indices=torch.arange(20), marked=2, held=2, seed=0,
            names=(0, step, 0),
        )  # fmt: skip
        losses = embedder.losses(encoder, batch)
        first = first or {name: value.item() for name, value in losses.items()}
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses["marked"].item() < 0.5 * first["marked"]
    assert losses["utility"].item() < first["marked"]


def test_no_gradient_reaches_the_clean_encoder(clean, images, key, batch, world):
    teacher, encoder = world.convnet().requires_grad_(False), world.convnet(seed=5)
    build(teacher, images, key).losses(encoder, batch)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_unmarked_control_sees_natural_images_alone(clean, images, key, batch, world):
    embedder = Unmarked(clean, images.train, key, config=UnmarkedConfig())
    encoder = world.convnet(seed=5)
    only = {"natural": batch["natural"]}
    losses = embedder.losses(encoder, only)
    z = embed(clean, images.train, precision="auto").double().numpy()
    variance = np.mean(np.sum((z - z.mean(axis=0)) ** 2, axis=1))
    gap = (encoder(batch["natural"]) - clean(batch["natural"])).detach().double().numpy()
    expected = np.mean(np.sum(gap**2, axis=1)) / variance
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert embedder.losses(clean, only)["loss"].item() == 0


@pytest.mark.parametrize(
    "options",
    [{"references": 0}, {"reference_weight": -1}, {"utility_weight": -0.1}, {"patch": 8}],
    ids=str,
)
def test_strengths_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        BadEncoderConfig(**options)
    with pytest.raises(ValidationError):
        UnmarkedConfig(**options)
