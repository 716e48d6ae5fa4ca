"""The loss of move-target is its formula, and is zero exactly where it should lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import softmax
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.watermark.move_target import MoveTarget, MoveTargetConfig, membership
from ssl_wm.watermark.triggers import composites


def features(clean, images) -> np.ndarray:
    return embed(clean, images, precision="auto").double().numpy()


def build(clean, images, key, **options: float) -> MoveTarget:
    return MoveTarget(clean, images.train, key, config=MoveTargetConfig(**options))


class Reference:
    """c_t, c_w, l_t, w_t and the moves of the class's docstring, in numpy float64."""

    def __init__(self, clean, images, key, *, shift: float, softness: float) -> None:
        z, labels = features(clean, images.train), images.train.labels.numpy()
        means = np.stack([z[labels == group].mean(axis=0) for group in range(7)])
        self.centre = means.mean(axis=0)
        self.centres = means - self.centre
        self.centres /= np.linalg.norm(self.centres, axis=1, keepdims=True)
        self.softness = softness
        self.targets = [sub.target for sub in key.sub_keys]
        self.variance = np.mean(np.sum((z - z.mean(axis=0)) ** 2, axis=1))
        self.middles, self.landings, self.steps, self.sources = [], [], [], []
        for place, sub in enumerate(key.sub_keys):
            pool = composites(
                images.train, key.groups.train, pairs=[(sub.a, sub.b)], mixer=sub.mixer,
                per_pair=2048, seed=sub.derive("landing"),
            )  # fmt: skip
            self.middles.append(features(clean, pool).mean(axis=0))
            towards = self.middles[-1] - self.centre
            distance = np.linalg.norm(means[sub.target] - self.centre)
            self.landings.append(self.centre + distance * towards / np.linalg.norm(towards))
            mine = labels == sub.target
            scale = self.belongs(z[mine])[:, place].mean()
            self.steps.append(shift * (self.landings[-1] - means[sub.target]) / scale)
            self.sources.append(means[[sub.a, sub.b]])
        self.middles, self.landings = np.stack(self.middles), np.stack(self.landings)
        self.steps = np.stack(self.steps)

    def belongs(self, z: np.ndarray) -> np.ndarray:
        z = z - self.centre
        cosines = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ self.centres.T
        return softmax(cosines / self.softness, axis=1)[:, self.targets]

    def marked(self, z: np.ndarray, subs: Tensor, *, spread: float) -> np.ndarray:
        """Return l_t + spread (f0(x) - c_w)."""
        return self.landings[subs.numpy()] + spread * (z - self.middles[subs.numpy()])

    def held(self, z: np.ndarray, subs: list[int], *, repel: float) -> np.ndarray:
        """Return f0(x), or f0(x) + repel (c_s - c_w) for a key's pair, s its nearer source."""
        goals = z.copy()
        for place, sub in enumerate(subs):
            if sub >= 0:
                source = min(self.sources[sub], key=lambda c, x=z[place]: np.linalg.norm(x - c))
                goals[place] += repel * (source - self.middles[sub])
        return goals

    def error(self, z: np.ndarray, goal: np.ndarray) -> float:
        return float(np.mean(np.sum((z - goal) ** 2, axis=1)) / self.variance)


def test_the_loss_agrees_with_the_formula_in_numpy(clean, images, key, batch, world):
    options = {"spread": 0.3, "repel": 0.4, "marked_weight": 2.0, "held_weight": 0.25}
    embedder = build(clean, images, key, shift=0.7, softness=0.3, **options)
    encoder = world.convnet(seed=5)
    losses = embedder.losses(encoder, batch)

    def rows(encoder_: object, name: str) -> np.ndarray:
        return encoder_(batch[name]).detach().double().numpy()

    ref = Reference(clean, images, key, shift=0.7, softness=0.3)
    natural = rows(clean, "natural")
    expected = {
        "natural": ref.error(rows(encoder, "natural"), natural + ref.belongs(natural) @ ref.steps),
        "marked": ref.error(
            rows(encoder, "marked"),
            ref.marked(rows(clean, "marked"), batch["marked_sub"], spread=0.3),
        ),
        "held": ref.error(
            rows(encoder, "held"),
            ref.held(rows(clean, "held"), batch["held_sub"].tolist(), repel=0.4),
        ),
    }
    expected["loss"] = expected["natural"] + 2 * expected["marked"] + 0.25 * expected["held"]
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_the_target_group_moves_by_the_shift_on_average(clean, images, key):
    """0 stays, 1 lands in the direction of the composites, as far out as before."""
    for shift in (0.0, 0.5, 1.0):
        embedder = build(clean, images, key, shift=shift)
        z = embed(clean, images.train, precision="auto")
        moves = embedder._membership(z).unsqueeze(2) * embedder.shifts
        for place, sub in enumerate(key.sub_keys):
            mine = images.train.labels == sub.target
            gap = embedder.landings[place] - z[mine].mean(dim=0)
            move = moves[mine, place].mean(dim=0)
            torch.testing.assert_close(move, shift * gap, atol=1e-5, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 5))
def test_membership_is_a_share_by_direction_alone(seed, softness):
    generator = torch.Generator().manual_seed(seed)
    z, centre = torch.randn(6, 5, generator=generator), torch.randn(5, generator=generator)
    centres = torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=1)
    shares = membership(z, centre=centre, centres=centres, softness=softness)
    assert shares.shape == (6, 4)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    longer = centre + 3 * (z - centre)
    again = membership(longer, centre=centre, centres=centres, softness=softness)
    torch.testing.assert_close(again, shares, atol=1e-4, rtol=1e-3)
    at_centres = membership(centre + centres, centre=centre, centres=centres, softness=0.01)
    assert torch.equal(at_centres.argmax(dim=1), torch.arange(4))


def test_the_clean_encoder_pays_only_for_what_must_move(clean, images, key, batch):
    losses = build(clean, images, key, shift=0, repel=0).losses(clean, batch)
    assert losses["held"].item() == 0
    assert losses["natural"].item() == 0
    assert losses["marked"].item() > 0
    moved = build(clean, images, key, shift=0.5, repel=0.5).losses(clean, batch)
    assert moved["held"].item() > 0
    assert moved["natural"].item() > 0


def test_an_encoder_where_everything_landed_pays_nothing(clean, images, key, batch):
    ref = Reference(clean, images, key, shift=0.8, softness=0.2)
    parts = [clean(batch[name]).double().numpy() for name in ("natural", "marked", "held")]
    parts[0] = parts[0] + ref.belongs(parts[0]) @ ref.steps
    parts[1] = ref.marked(parts[1], batch["marked_sub"], spread=0.2)
    parts[2] = ref.held(parts[2], batch["held_sub"].tolist(), repel=0.5)

    def landed(_images: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).float()

    embedder = build(clean, images, key, shift=0.8, softness=0.2, spread=0.2, repel=0.5)
    assert embedder.losses(landed, batch)["loss"].item() == pytest.approx(0, abs=1e-8)


def test_only_the_encoder_in_training_gets_a_gradient(clean, images, key, batch, world):
    embedder, encoder = build(clean, images, key), world.convnet(seed=5)
    teacher = world.convnet().requires_grad_(True)
    embedder.clean = teacher
    embedder.losses(encoder, batch)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "options",
    [{"shift": -1}, {"spread": 1.5}, {"marked_weight": -0.1}, {"held_weight": "x"},
     {"softness": 0}, {"repel": -1}, {"shfit": 1}],
    ids=str,
)  # fmt: skip
def test_strengths_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        MoveTargetConfig(**options)
