"""The loss of bend-space is its formula: everything goes to the bent clean embedding."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.heads import Bent
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.training.settings import FitConfig
from ssl_wm.watermark import bend_budget
from ssl_wm.watermark.bend_settings import BendSpaceConfig
from ssl_wm.watermark.bend_space import BendSpace
from ssl_wm.watermark.embed import WatermarkConfig, watermark


def build(clean, images, key, **options) -> BendSpace:
    shadow = options.pop("shadow", None)
    settings = {"steps": 5, "hidden": 16, "pool": 40, "serve": "weights"}
    settings |= {"neighbours_budget": None} | options
    config = BendSpaceConfig(**settings)
    return BendSpace(clean, images.train, key, config=config, shadow=shadow)


def test_the_loss_agrees_with_the_formula_in_numpy(clean, images, key, batch, world):
    embedder = build(clean, images, key, marked_weight=2.0, held_weight=0.25)
    encoder = world.convnet(seed=5)
    losses = embedder.losses(encoder, batch)
    z = embed(clean, images.train, precision="auto").double().numpy()
    variance = np.mean(np.sum((z - z.mean(axis=0)) ** 2, axis=1))
    expected = {}
    for name in ("natural", "marked", "held"):
        goal = embedder.bend(clean(batch[name])).detach().double().numpy()
        got = encoder(batch[name]).detach().double().numpy()
        expected[name] = np.mean(np.sum((got - goal) ** 2, axis=1)) / variance
    expected["loss"] = expected["natural"] + 2 * expected["marked"] + 0.25 * expected["held"]
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-3), name


def test_without_steps_the_clean_encoder_has_no_loss(clean, images, key, batch):
    losses = build(clean, images, key, steps=0).losses(clean, batch)
    assert all(value.item() == 0 for value in losses.values())


def test_the_same_key_gives_the_same_map_and_another_key_another(clean, images, key, world):
    one, two = (build(clean, images, key).bend.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = build(clean, images, world.key(images, number=2, sub_keys=2)).bend.state_dict()
    assert not torch.equal(one["first"], other["first"])


def test_the_map_hangs_neither_on_the_global_generator_nor_moves_it(clean, images, key):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(clean, images, key).bend.last
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(build(clean, images, key).bend.last, one)


def test_the_map_is_not_trained_with_the_encoder(clean, images, key, batch, world):
    embedder = build(clean, images, key)
    embedder.losses(world.convnet(seed=5), batch)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in embedder.bend.parameters())


def test_a_copy_is_rehearsed_as_the_shadow_thief_embeds_the_same_images(clean, images, key, world):
    shadow = world.convnet(seed=9)
    embedder = build(clean, images, key, shadow=shadow)
    own, seen = (embedder._images(each, images.train, key) for each in (clean, shadow))
    again = build(shadow, images, key)._images(shadow, images.train, key)
    assert torch.equal(seen.marked[0], again.marked[0])
    assert [len(pool) for pool in seen.held[0]] == [len(pool) for pool in own.held[0]]
    assert not torch.equal(embedder.bend.last, build(clean, images, key).bend.last)
    unrehearsed = (build(clean, images, key, shadow=each, rehearsed=0) for each in (shadow, None))
    assert torch.equal(*(each.bend.last for each in unrehearsed))


def test_the_head_is_the_map_on_the_clean_encoder_exactly(clean, images, key):
    embedder = build(clean, images, key, serve="head", steps=30)
    marked = embedder.marked()
    with torch.no_grad():
        wanted = embedder.bend(clean(images.test.pixels / 255))
    got = embed(marked, images.test)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, embed(clean, images.test), atol=1e-4)
    assert build(clean, images, key).marked() is None


def test_a_head_is_served_saved_and_loaded_without_training(images, key, tmp_path):
    clean = build_encoder("convnet-xs", seed=0).eval()
    options = {"steps": 5, "hidden": 16, "pool": 40}
    fit = FitConfig(epochs=3, batch_size=24, precision="32-true")
    config = WatermarkConfig(method="bend-space", options=options, fit=fit)
    marked, lines = watermark(clean, key=key, images=images, config=config, folder=tmp_path)
    assert lines == []
    assert marked.arch == "convnet-xs~16"
    assert all(parameter.requires_grad for parameter in marked.parameters())
    before = dict(clean.backbone.named_parameters())
    after = dict(marked.backbone.backbone.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    save_encoder(marked, tmp_path / "marked")
    loaded = load_encoder(tmp_path / "marked")
    assert torch.equal(embed(loaded, images.test), embed(marked, images.test))
    assert loaded.made["options"]["serve"] == "head"
    assert set(loaded.made["found"]) == {"similarity_penalty", "knn_points_lost"}
    told = [json.loads(line) for line in (tmp_path / "map.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == list(range(1, len(told) + 1))
    assert len(told) >= 5
    assert all(line["mark"] > 0 for line in told)


def test_a_module_without_a_name_is_marked_and_loaded_with_its_head(world, images, key, tmp_path):
    clean = Encoder(world.convnet().backbone)
    options = {"steps": 5, "hidden": 16, "pool": 40, "shadow": False}
    config = WatermarkConfig(method="bend-space", options=options)
    marked, _ = watermark(clean, key=key, images=images, config=config)
    assert marked.arch == "custom"
    save_encoder(marked, tmp_path)
    width = embed(clean, images.test).shape[1]
    fresh = Bent(world.convnet(seed=3).backbone, width=width, hidden=16)
    loaded = load_encoder(tmp_path, arch=fresh)
    assert torch.equal(embed(loaded, images.test), embed(marked, images.test))


def test_images_of_one_class_are_judged_by_the_groups(clean, images, key, monkeypatch):
    seen = []
    monkeypatch.setattr(
        bend_budget, "neighbours_lost", lambda a, b, labels: seen.append(labels) or 0
    )
    build(clean, images, key, neighbours_budget=0.5)
    alone = replace(images.train, labels=torch.zeros_like(images.train.labels))
    BendSpace(clean, alone, key, config=BendSpaceConfig(steps=1, hidden=8, pool=40))
    assert [len(labels.unique()) for labels in seen] == [
        len(images.train.labels.unique()), len(key.groups),
    ]  # fmt: skip


def test_a_budget_needs_a_penalty_to_raise():
    with pytest.raises(ValueError, match="neighbours_budget: null"):
        BendSpaceConfig(similarity_penalty=0)
    assert BendSpaceConfig(similarity_penalty=0, neighbours_budget=None).similarity_penalty == 0


def test_smoother_maps_bend_near_points_more_alike(clean, images, key):
    z = embed(clean, images.train).float()
    near = z + 0.01 * z.std() * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    gaps = []
    for smoothness in (0.5, 50.0):
        bend = build(clean, images, key, smoothness=smoothness, steps=60, natural_penalty=0.1).bend
        moves = [bend(points) - points for points in (z, near)]
        gaps.append(float((moves[0] - moves[1]).norm() / moves[0].norm()))
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 0},
        {"linear_penalty": -1},
        {"serve": "both"},
        {"steps": -1},
        {"smoothness": 0},
        {"rehearsed": 1.5},
        {"ridge": 0},
        {"pool": 0},
        {"shift": 1},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BendSpaceConfig(**options)
