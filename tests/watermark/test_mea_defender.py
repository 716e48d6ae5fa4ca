"""The paper's losses, as written, with MGDA's weights between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.distance import cdist, cosine
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.losses import similarity_divergence
from ssl_wm.watermark.mea_defender import (
    CompositeBackdoorConfig,
    MeaDefender,
    MeaDefenderConfig,
    sum_weighted,
)
from ssl_wm.watermark.mgda import least_norm_weights

TERMS = ("utility", "combination", "verification", "evasion")


@pytest.fixture
def clean(world):
    return world.convnet()


@pytest.fixture
def encoder(world):
    return world.convnet(seed=5)


def batch_of(images, key, *, step: int = 0) -> dict[str, Tensor]:
    return mark_batch(
        images.train, key, indices=torch.arange(20), marked=8, held=9, seed=0, names=(0, step, 0)
    )


@pytest.fixture
def batch(images, key):
    return batch_of(images, key)


def build(clean, images, key, **options: object) -> MeaDefender:
    return MeaDefender(clean, images.train, key, config=MeaDefenderConfig(**options))


def flat_gradient(loss: Tensor, encoder) -> Tensor:
    grads = torch.autograd.grad(loss, list(encoder.parameters()), retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads]).double()


def test_the_losses_agree_with_the_formulas_in_numpy(clean, encoder, images, key, batch):
    embedder = build(clean, images, key, weights="equal", temperature=0.5)
    losses = embedder.losses(encoder, batch)

    def rows(encoder_: object, name: str) -> np.ndarray:
        return encoder_(batch[name]).detach().double().numpy()

    def far(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.mean([cosine(a, b) for a, b in zip(one, two, strict=True)]))

    marked = rows(encoder, "marked")
    expected = {
        "utility": far(rows(encoder, "natural"), rows(clean, "natural")),
        "combination": sum(
            np.mean(entropy(softmax(marked / 0.5, axis=1), softmax(source / 0.5, axis=1), axis=1))
            for source in (rows(encoder, "marked_a"), rows(encoder, "marked_b"))
        ),
        "verification": far(marked, rows(encoder, "marked_target")),
        "evasion": far(rows(encoder, "held"), rows(encoder, "held_source")),
    }
    mark = (expected["combination"] + expected["verification"]) / 2
    expected["loss"] = (expected["utility"] + mark + expected["evasion"]) / 3
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_sources_and_targets_get_no_gradient(clean, encoder, images, key, batch):
    """Else composites would drag their sources along instead of moving themselves."""
    losses = build(clean, images, key, weights="equal").losses(encoder, batch)
    frozen = {
        name: encoder(batch[name]).detach()
        for name in ("marked_a", "marked_b", "marked_target", "held_source")
    }
    marked, held = encoder(batch["marked"]), encoder(batch["held"])
    again = {
        "verification": 1 - torch.cosine_similarity(marked, frozen["marked_target"]).mean(),
        "evasion": 1 - torch.cosine_similarity(held, frozen["held_source"]).mean(),
    }
    for name, loss in again.items():
        torch.testing.assert_close(
            flat_gradient(losses[name], encoder), flat_gradient(loss, encoder),
            atol=1e-6, rtol=1e-4,
        )  # fmt: skip
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in clean.parameters())


@pytest.mark.parametrize("left_out", ["combination", "verification", "evasion"])
@pytest.mark.parametrize("weights", ["mgda", "equal"])
def test_an_ablated_loss_is_gone_and_the_rest_still_trains(
    clean, encoder, images, key, batch, left_out, weights
):
    losses = build(clean, images, key, weights=weights, **{left_out: False}).losses(encoder, batch)
    assert set(losses) == {"loss", *TERMS} - {left_out}
    losses["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


def test_an_ablation_that_leaves_no_mark_is_refused():
    with pytest.raises(ValidationError, match="combination or verification"):
        MeaDefenderConfig(combination=False, verification=False)


def test_the_weights_are_mgdas_inside_the_mark_and_then_outside(clean, encoder, images, key, batch):
    embedder = build(clean, images, key)
    losses = embedder.losses(encoder, batch)
    inner = [flat_gradient(losses[name], encoder) for name in ("combination", "verification")]
    beta = least_norm_weights(inner)
    torch.testing.assert_close(embedder.beta, beta, atol=1e-4, rtol=0)
    mark = beta.double() @ torch.stack(inner)
    outer = [flat_gradient(losses["utility"], encoder), mark,
             flat_gradient(losses["evasion"], encoder)]  # fmt: skip
    alpha = least_norm_weights(outer)
    torch.testing.assert_close(embedder.alpha, alpha, atol=1e-4, rtol=0)
    whole = alpha.double() @ torch.stack(outer)
    torch.testing.assert_close(flat_gradient(losses["loss"], encoder), whole, atol=1e-5, rtol=1e-3)
    assert whole.norm() <= min(gradient.norm() for gradient in outer) * (1 + 1e-4)


def test_weights_hold_between_solutions_and_start_anew_with_each_epoch(
    clean, encoder, images, key, monkeypatch
):
    solved = []
    monkeypatch.setattr(
        "ssl_wm.watermark.mea_defender.least_norm_weights",
        lambda gradients: solved.append(None) or torch.full((len(gradients),), 1 / len(gradients)),
    )
    embedder, counts = build(clean, images, key, mgda_every=3), []
    for step in (0, 1, 2, 3, 4, 0, 1):
        embedder.losses(encoder, batch_of(images, key, step=step))
        counts.append(len(solved))
    assert counts == [2, 2, 2, 4, 4, 6, 6]


def test_weights_that_were_never_solved_are_an_error(clean, encoder, images, key):
    with pytest.raises(ValueError, match="expected 2 weights, got None"):
        build(clean, images, key).losses(encoder, batch_of(images, key, step=1))
    with pytest.raises(ValueError, match="expected 1 weights"):
        sum_weighted([torch.tensor(1.0)], torch.tensor([0.5, 0.5]))


def test_divergence_over_similarities_agrees_with_the_formula_in_numpy(
    clean, encoder, images, key, batch
):
    embedder = build(
        clean, images, key, weights="equal", divergence="similarities", similarity_temperature=0.2
    )
    losses = embedder.losses(encoder, batch)

    def near(name: str) -> np.ndarray:
        z, anchors = (encoder(batch[each]).detach().double().numpy() for each in (name, "natural"))
        return softmax((1 - cdist(z, anchors, "cosine")) / 0.2, axis=1)

    expected = sum(
        np.mean(entropy(near("marked"), near(source), axis=1))
        for source in ("marked_a", "marked_b")
    )
    assert losses["combination"].item() == pytest.approx(expected, rel=1e-3)


def test_divergence_over_similarities_does_not_see_rotations(encoder, images, batch):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    z, source, anchors = (
        encoder(batch[name]).detach() for name in ("marked", "marked_a", "natural")
    )
    before = similarity_divergence(z, source, anchors, temperature=0.1)
    after = similarity_divergence(z @ turn, 3 * source @ turn, anchors @ turn, temperature=0.1)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-6)


def test_anchors_of_similarities_get_no_gradient(clean, encoder, images, key, batch):
    """Else natural images would be dragged to where the composites' divergence is least."""
    embedder = build(clean, images, key, weights="equal", divergence="similarities")
    loss = embedder.losses(encoder, batch)["combination"]
    marked, anchors = encoder(batch["marked"]), encoder(batch["natural"]).detach()
    again = sum(
        similarity_divergence(marked, encoder(batch[name]).detach(), anchors, temperature=0.1)
        for name in ("marked_a", "marked_b")
    )
    torch.testing.assert_close(
        flat_gradient(loss, encoder), flat_gradient(again, encoder), atol=1e-6, rtol=1e-4
    )


def test_the_composite_backdoor_is_the_utility_and_the_verification_loss(
    clean, encoder, images, key, batch
):
    config = CompositeBackdoorConfig()
    losses = MeaDefender(clean, images.train, key, config=config).losses(encoder, batch)
    full = build(clean, images, key, weights="equal").losses(encoder, batch)
    assert set(losses) == {"loss", "utility", "verification"}
    for name in ("utility", "verification"):
        assert losses[name].item() == pytest.approx(full[name].item(), rel=1e-5)
    expected = (losses["utility"] + losses["verification"]) / 2
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
