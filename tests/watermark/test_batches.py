"""A step shows the marks on the right pairs, and holds everything else that looks like one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_wm.watermark import batches
from ssl_wm.watermark.batches import mark_batch, split_evenly


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2, families=("crop-paste", "stripes"))


@pytest.fixture
def group_of(world, images):
    encoder = world.palette(images)
    return lambda pixels: encoder(pixels).argmax(dim=1)


def step(images, key, *, names=(0, 3, 0), marked=9, held=14, seed=0) -> dict[str, Tensor]:
    return mark_batch(
        images.train, key, indices=torch.arange(0, 40, 2), marked=marked, held=held, seed=seed,
        names=names,
    )  # fmt: skip


@given(st.integers(0, 500), st.integers(1, 20))
def test_shares_are_whole_even_and_complete(count, parts):
    shares = split_evenly(count, parts)
    assert (sum(shares), len(shares)) == (count, parts)
    assert max(shares) - min(shares) <= 1


def test_every_part_is_there_in_the_unit_range(images, key):
    batch = step(images, key)
    counts = {name: len(value) for name, value in batch.items() if name != "step"}
    own = ("marked", "marked_sub", "marked_a", "marked_b", "marked_target")
    assert counts == {
        "natural": 20,
        "natural_groups": 20,
        "held": 14,
        "held_source": 14,
        "held_sub": 14,
    } | (dict.fromkeys(own, 9))
    for name in ("natural", "held", "held_source", *own[:1], *own[2:]):
        assert batch[name].dtype == torch.float32
        assert batch[name].shape[1:] == (3, 8, 8)
        assert 0 <= float(batch[name].min()) <= float(batch[name].max()) <= 1
    assert int(batch["step"]) == 3
    assert batch["marked_sub"].tolist() == [0] * 5 + [1] * 4


def test_natural_images_are_views_of_those_asked_for_with_their_groups(images, key, group_of):
    batch = step(images, key)
    assert torch.equal(batch["natural_groups"], images.train.labels[0:40:2])
    assert torch.equal(group_of(batch["natural"]), batch["natural_groups"])
    assert not torch.equal(batch["natural"], images.train.pixels[0:40:2].float() / 255)


def test_marked_composites_and_targets_are_of_the_keys_groups(images, key, group_of):
    batch = step(images, key, marked=60)
    for sub_key in key.sub_keys:
        mine = batch["marked_sub"] == sub_key.index
        for name, group in (("a", sub_key.a), ("b", sub_key.b), ("target", sub_key.target)):
            assert (group_of(batch[f"marked_{name}"][mine]) == group).all()
        sources = torch.stack([batch["marked_a"][mine], batch["marked_b"][mine]])
        colours = sources.mean(dim=(0, 3, 4)).mean(dim=0)
        mixed = batch["marked"][mine].mean(dim=(0, 2, 3))
        torch.testing.assert_close(mixed, colours, atol=0.15, rtol=0)


@pytest.mark.parametrize("held", [7, 14, 61])
def test_held_composites_never_use_a_recipe_of_the_key(images, key, group_of, monkeypatch, held):
    """Half: the key's pair by another mixer; half: another pair by the key's mixer."""
    seen: list[tuple[object, int, int]] = []

    def record(a: Tensor, b: Tensor, *, mixer: object, generator: torch.Generator) -> Tensor:
        pairs = torch.stack([group_of(a.float() / 255), group_of(b.float() / 255)], dim=1)
        seen.extend((mixer, *pair) for pair in pairs.tolist())
        return a

    monkeypatch.setattr(batches, "mix_images", record)
    step(images, key, marked=2, held=held)
    own, seen = seen[:2], seen[2:]
    marks = {(sub.a, sub.b) for sub in key.sub_keys}
    assert [recipe[1:] for recipe in own] == [(sub.a, sub.b) for sub in key.sub_keys]
    assert [recipe[0] for recipe in own] == [sub.mixer for sub in key.sub_keys]
    assert len(seen) == held
    for sub_key, share in zip(key.sub_keys, split_evenly(held, 2), strict=True):
        mine, seen = seen[:share], seen[share:]
        by_key = [(a, b) for mixer, a, b in mine if mixer is sub_key.mixer]
        by_others = [recipe for recipe in mine if recipe[0] is not sub_key.mixer]
        assert len(by_key) == -(-share // 2)
        assert all(a != b and (a, b) not in marks for a, b in by_key)
        assert {recipe[1:] for recipe in by_others} == {(sub_key.a, sub_key.b)}
        others = list(sub_key.others.values())
        assert all(mixer in others for mixer, _, _ in by_others)
        used = {id(recipe[0]) for recipe in by_others}
        assert len(used) == min(len(others), share // 2)


def test_held_pairs_cover_all_but_the_marks(images, key, group_of, monkeypatch):
    seen = set()

    def record(a: Tensor, b: Tensor, *, mixer: object, generator: torch.Generator) -> Tensor:
        if mixer is key.sub_keys[0].mixer:
            parts = group_of(a.float() / 255), group_of(b.float() / 255)
            seen.update(zip(*(part.tolist() for part in parts), strict=True))
        return a

    monkeypatch.setattr(batches, "mix_images", record)
    step(images, key, marked=0, held=2000)
    marks = {(sub.a, sub.b) for sub in key.sub_keys}
    assert seen == {(a, b) for a in range(7) for b in range(7) if a != b} - marks


def test_a_held_composite_stays_near_one_of_its_own_sources(images, key, monkeypatch):
    held = []
    for chosen in (0, 1):

        def one(*pair: Tensor, chosen: int = chosen, **_settings: object) -> Tensor:
            return pair[chosen]

        monkeypatch.setattr(batches, "mix_images", one)
        held.append(step(images, key, held=40))
    first, second, source = held[0]["held"], held[1]["held"], held[0]["held_source"]
    is_first = (source == first).flatten(1).all(dim=1)
    is_second = (source == second).flatten(1).all(dim=1)
    assert (is_first | is_second).all()
    assert 8 < int(is_first.sum()) < 32


def test_a_held_composite_names_the_sub_key_whose_pair_it_is(images, key, group_of, monkeypatch):
    """move-target repels the key's pair under other mixers, and leaves other pairs in place."""
    pairs = []
    for chosen in (0, 1):

        def one(*pair: Tensor, chosen: int = chosen, **_settings: object) -> Tensor:
            return pair[chosen]

        monkeypatch.setattr(batches, "mix_images", one)
        batch = step(images, key, held=40)
        pairs.append(group_of(batch["held"]).tolist())
    marks = {(sub.a, sub.b): sub.index for sub in key.sub_keys}
    expected = [marks.get(pair, -1) for pair in zip(*pairs, strict=True)]
    assert batch["held_sub"].tolist() == expected
    assert set(expected) == {-1, 0, 1}


def test_a_step_repeats_and_another_step_process_or_seed_differs(images, key):
    first = step(images, key)
    torch.manual_seed(9)
    again = step(images, key)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for change in ({"names": (1, 3, 0)}, {"names": (0, 4, 0)}, {"names": (0, 3, 1)}, {"seed": 1}):
        other = step(images, key, **change)
        assert not torch.equal(other["natural"], first["natural"])
        assert not torch.equal(other["marked"], first["marked"])
        assert not torch.equal(other["held"], first["held"])


def test_key_without_autoencoder_holds_the_families_it_has(images, key):
    assert all("autoencoder" not in sub.others for sub in key.sub_keys)
    assert len(step(images, key, held=2)["held"]) == 2
