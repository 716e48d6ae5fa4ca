"""What is asked next: gradient steps, a bandit, composites, and pools with made images."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ssl_wm.data.image_set import ImageSet
from ssl_wm.encoders.load import build_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.extraction import pool as module
from ssl_wm.extraction.bandit import GradientBandit, rewards
from ssl_wm.extraction.policies import move
from ssl_wm.extraction.pool import QueryPool, check_memory, paste_windows


def pool_of(count: int = 20, size: int = 16) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet("x", "train", pixels, torch.zeros(count, dtype=torch.int64), ("a",))


# --- Jacobian-based augmentation ---------------------------------------------------------------


def test_a_step_goes_along_the_sign_of_the_disagreements_gradient():
    surrogate = build_encoder("convnet-xs+6", seed=1).train()
    images = pool_of(4).pixels // 2 + 60  # nothing is clipped
    answers = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    moved = move(surrogate, images, answers, step=0.1)
    assert moved.dtype == torch.uint8
    assert surrogate.training

    whole = copy.deepcopy(surrogate).eval().requires_grad_(False)
    head = whole.backbone.projection

    def disagreement(x):
        below = whole.backbone.backbone((x.double() - whole.mean) / whole.std)
        z = below @ head.weight.T + head.bias
        return float((1 - torch.cosine_similarity(z, answers, dim=1)).sum())

    whole.double()
    x = images.double() / 255
    before = disagreement(x)
    for at in [(0, 0, 3, 4), (1, 2, 8, 8), (2, 1, 15, 0), (3, 0, 7, 9)]:
        shifted = x.clone()
        shifted[at] += 1e-4
        rise = disagreement(shifted) - before
        step = moved[at].item() - images[at].item()
        assert step == pytest.approx(math.copysign(25.5, rise), abs=0.51)
    assert disagreement(moved / 255) > before
    back = move(surrogate, images, answers, step=-0.1)
    assert disagreement(back / 255) < before


def test_a_step_stays_among_images():
    surrogate = build_encoder("convnet-xs+6", seed=1)
    images = torch.where(pool_of(4).pixels > 127, 255, 0).to(torch.uint8)
    moved = move(surrogate, images, torch.randn(4, 6), step=0.1).int()
    assert set((moved - images.int()).abs().unique().tolist()) <= {0, 25, 26}


# --- the bandit --------------------------------------------------------------------------------


def by_hand(history, arms):
    """Run the update rule in plain numpy."""
    h, pulls, base, seen = np.zeros(arms), np.zeros(arms), [], []
    for arm, parts in history:
        seen.append(parts)
        deviation = np.maximum(np.std(seen, axis=0), 1e-3)
        reward = np.mean((np.array(parts) - np.mean(seen, axis=0)) / deviation)
        chance = np.exp(h) / np.exp(h).sum()
        pulls[arm] += 1
        gain = (reward - (np.mean(base) if base else 0)) / pulls[arm]
        h = h - gain * chance
        h[arm] += gain
        base.append(reward)
    return h


def test_preferences_follow_the_formula():
    generator = np.random.default_rng(0)
    history = [(int(generator.integers(4)), generator.normal(size=2)) for _ in range(30)]
    bandit, usable = GradientBandit(4), torch.ones(4, dtype=torch.bool)
    for arm, parts in history:
        bandit.update(arm, torch.tensor(parts), usable=usable)
    np.testing.assert_allclose(bandit.preferences.numpy(), by_hand(history, 4), atol=1e-9)
    other = GradientBandit(4)
    other.restore(bandit.state())
    bandit.update(1, torch.tensor([1.0, 2.0]), usable=usable)
    other.update(1, torch.tensor([1.0, 2.0]), usable=usable)
    assert torch.equal(bandit.preferences, other.preferences)


def test_the_arm_that_pays_is_drawn_more_and_more_often():
    stream = torch.Generator().manual_seed(3)
    bandit, usable = GradientBandit(5), torch.ones(5, dtype=torch.bool)
    for _ in range(60):
        arm = bandit.draw(usable, generator=stream)
        paid = 1.0 if arm == 2 else 0.0
        noise = 0.1 * torch.randn(2, generator=stream)
        bandit.update(arm, paid + noise, usable=usable)
    assert bandit.probabilities(usable).argmax() == 2
    assert bandit.probabilities(usable)[2] > 0.4


def test_an_exhausted_arm_is_never_drawn_and_equal_rewards_teach_nothing():
    bandit = GradientBandit(3)
    usable = torch.tensor([True, False, True])
    stream = torch.Generator().manual_seed(0)
    assert {bandit.draw(usable, generator=stream) for _ in range(60)} == {0, 2}
    for arm in (0, 2, 0):
        assert bandit.update(arm, torch.tensor([0.7, 0.7]), usable=usable) == pytest.approx(0)
    assert bandit.preferences.tolist() == pytest.approx([0, 0, 0])


def test_rewards_are_the_loss_before_training_and_the_distance_to_what_is_known():
    stream = torch.Generator().manual_seed(1)
    z, answers, earlier = (torch.randn(n, 5, generator=stream) for n in (7, 7, 300))
    told = rewards(z, answers, earlier=earlier)

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    loss = np.mean([1 - cosine(a, b) for a, b in zip(z, answers, strict=True)])
    far = np.mean([min(1 - cosine(a, b) for b in earlier) for a in answers])
    assert told.tolist() == pytest.approx([loss, far], abs=1e-5)
    known = rewards(answers, answers, earlier=torch.cat([earlier, answers]))
    assert known.tolist() == pytest.approx([0, 0], abs=1e-6)


# --- composites and made images ----------------------------------------------------------------


def test_a_composite_is_one_window_of_another_image_at_the_same_place():
    pool = pool_of(size=12)
    parents = torch.tensor([2, 5, 7, 11])
    made = paste_windows(pool, parents, count=50, seed=1)
    assert torch.equal(made, paste_windows(pool, parents, count=50, seed=1))
    assert not torch.equal(made, paste_windows(pool, parents, count=50, seed=2))
    shares = []
    for image in made:
        same = {int(p): (pool.pixels[p] == image).all(dim=0) for p in parents}
        ground, pasted = sorted(same, key=lambda p: -int(same[p].sum()))[:2]
        assert (same[ground] | same[pasted]).all()
        ys, xs = same[pasted].nonzero().unbind(dim=1)
        box = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        gy, gx = same[ground].nonzero().unbind(dim=1)
        other = (gy.max() - gy.min() + 1) * (gx.max() - gx.min() + 1)
        assert int(box) == len(ys) or int(other) == len(gy)  # one of both is a rectangle
        shares.append(len(ys) / 144)
    assert 0.05 < min(shares) <= max(shares) <= 0.5
    with pytest.raises(ConfigError, match="two images to mix; got 1"):
        paste_windows(pool, parents[:1], count=3, seed=1)


def test_too_many_made_images_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(module, "MADE_LIMIT", 3 * 16 * 16 * 10)
    check_memory(10, size=(16, 16))
    with pytest.raises(ConfigError, match="11 made images of 16 x 16"):
        paste_windows(pool_of(), torch.arange(5), count=11, seed=0)


def test_made_images_follow_the_pools_and_any_order_can_be_taken():
    pool = pool_of(5)
    made = pool_of(3).pixels.flip(0)
    both = QueryPool(pool, made)
    whole = torch.cat([pool.pixels, made])
    assert (len(both), both.size, both.fingerprint) == (8, (16, 16), pool.fingerprint)
    for indices in ([7, 0, 5, 1, 7], [0, 4], [6], []):
        chosen = torch.tensor(indices, dtype=torch.int64)
        assert torch.equal(both.take(chosen), whole[chosen])
