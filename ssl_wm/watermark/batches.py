"""What an embedder sees in one step: natural images, own composites, held composites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ssl_wm.data.views import ViewConfig, augment
from ssl_wm.rng import torch_stream
from ssl_wm.watermark.triggers import draw_members, mix_images

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.mixers import Mixer
    from ssl_wm.watermark.subkeys import SubKey

MILD = ViewConfig(crop=0.5, min_scale=0.6, jitter=0.0, grey=0.0)


def mark_batch(
    images: ImageSet,
    key: WatermarkKey,
    *,
    indices: Tensor,
    marked: int,
    held: int,
    seed: int,
    names: tuple[int, ...],
) -> Batch:
    """Return one step's images for marking an encoder.

    Args:
        images: training images.
        key: the watermark key.
        indices: (N,) natural images of this step.
        marked: composites that carry the mark, shared among the sub-keys.
        held: composites that must stay where the clean encoder puts them.
        seed: of all draws.
        names: (epoch, step, rank), the names of this step's streams.

    Returns:
        ``natural`` (N, 3, H, W) float in [0, 1], mildly cropped and flipped, and their groups
        ``natural_groups`` (N,); ``marked`` (M, 3, H, W) with ``marked_sub`` (M,), the sub-key
        of each, the sources ``marked_a``, ``marked_b`` and a target sample
        ``marked_target``, each (M, 3, H, W); ``held`` (K, 3, H, W) and the source that each
        should stay near, ``held_source`` (K, 3, H, W), with ``held_sub`` (K,), the sub-key whose
        pair it is, or -1 where it is another pair; ``step``, the step's number.
    """
    generator = torch_stream(seed, "mark", *names)
    groups = key.groups.train
    natural = augment(images.take(indices), config=MILD, generator=generator)
    own = [
        _own(images, groups, sub_key, count=share, generator=generator)
        for sub_key, share in zip(
            key.sub_keys, split_evenly(marked, len(key.sub_keys)), strict=True
        )
    ]
    others = [
        _held(images, key, sub_key, count=share, generator=generator)
        for sub_key, share in zip(key.sub_keys, split_evenly(held, len(key.sub_keys)), strict=True)
    ]
    batch = {name: torch.cat([part[name] for part in own]) for name in own[0]}
    batch |= {name: torch.cat([part[name] for part in others]) for name in others[0]}
    step = torch.tensor(names[1])
    return batch | {"natural": natural, "natural_groups": groups[indices], "step": step}


def split_evenly(count: int, parts: int) -> list[int]:
    """Return ``parts`` whole numbers that sum to ``count`` and differ by at most one.

    >>> split_evenly(8, 3)
    [3, 3, 2]
    """
    return [count // parts + (part < count % parts) for part in range(parts)]


def _own(
    images: ImageSet, groups: Tensor, sub_key: SubKey, *, count: int, generator: Generator
) -> Batch:
    a, b, target = (
        images.take(draw_members(groups, group, count=count, generator=generator))
        for group in (sub_key.a, sub_key.b, sub_key.target)
    )
    mixed = mix_images(a, b, mixer=sub_key.mixer, generator=generator)
    return {
        "marked": mixed.float() / 255,
        "marked_sub": torch.full((count,), sub_key.index),
        "marked_a": a.float() / 255,
        "marked_b": b.float() / 255,
        "marked_target": target.float() / 255,
    }


def _held(
    images: ImageSet, key: WatermarkKey, sub_key: SubKey, *, count: int, generator: Generator
) -> Batch:
    """Half: the key's pair under the other mixers; half: other pairs under the key's mixer."""
    groups, marks = key.groups.train, {(other.a, other.b) for other in key.sub_keys}
    recipes: list[tuple[int, int, Mixer]] = []
    mixers = list(sub_key.others.values())
    for place in range(count):
        if place % 2 and mixers:
            recipes.append((sub_key.a, sub_key.b, mixers[(place // 2) % len(mixers)]))
        else:
            a, b = _other_pair(len(key.groups), marks, generator=generator)
            recipes.append((a, b, sub_key.mixer))
    firsts = torch.cat([_one(groups, a, generator) for a, _, _ in recipes])
    seconds = torch.cat([_one(groups, b, generator) for _, b, _ in recipes])
    first, second = images.take(firsts), images.take(seconds)
    mixed = torch.empty_like(first)
    for mixer in [sub_key.mixer, *mixers]:
        places = torch.tensor([p for p, recipe in enumerate(recipes) if recipe[2] is mixer])
        if len(places):
            mixed[places] = mix_images(
                first[places], second[places], mixer=mixer, generator=generator
            )
    either = torch.rand(count, generator=generator) < 0.5
    source = torch.where(either.view(-1, 1, 1, 1), first, second)
    pairs = [(a, b) == (sub_key.a, sub_key.b) for a, b, _ in recipes]
    return {
        "held": mixed.float() / 255,
        "held_source": source.float() / 255,
        "held_sub": torch.where(torch.tensor(pairs, dtype=torch.bool), sub_key.index, -1),
    }


def _one(groups: Tensor, group: int, generator: Generator) -> Tensor:
    return draw_members(groups, group, count=1, generator=generator)


def _other_pair(
    count: int, marks: set[tuple[int, int]], *, generator: Generator
) -> tuple[int, int]:
    """Return a random pair that no sub-key marks; mixers of two sub-keys may look alike."""
    while True:
        a, b = torch.randint(count, (2,), generator=generator).tolist()
        if a != b and (a, b) not in marks:
            return a, b
