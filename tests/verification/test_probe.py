"""The probe is scikit-learn's logistic regression on standardised features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.verification import probe as probe_module
from ssl_wm.verification.probe import fit_probe, fit_sealed_probe, log_loss, standardised


def blobs(classes: int, seed: int, *, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return overlapping Gaussian classes (160, 5) of unequal feature scales, labels spaced."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(160) % classes
    centres = torch.randn(classes, 5, generator=generator)
    z = centres[labels] + noise * torch.randn(160, 5, generator=generator)
    return z * torch.tensor([1.0, 100.0, 0.01, 3.0, 1.0]) + 7, labels * 3 + 1


def pipeline(strength: float = 1.0) -> Pipeline:
    """Return scikit-learn's own, run until nothing changes any more."""
    model = LogisticRegression(C=strength, max_iter=20_000, tol=1e-10)
    return make_pipeline(StandardScaler(), model)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 2**32))
def test_the_probe_agrees_with_scikit_learn(classes, strength, seed):
    z, labels = blobs(classes, seed)
    test = blobs(classes, seed + 1)[0]
    ours = fit_probe(z, labels, strength=strength, tolerance=1e-5)  # both at the bottom
    oracle = pipeline(strength).fit(z.double().numpy(), labels.numpy())
    assert ours.classes.tolist() == oracle.classes_.tolist()
    predicted = ours.predict(test).numpy()
    assert (predicted == oracle.predict(test.double().numpy())).mean() > 0.98
    logits = (test.double() @ ours.weight.T + ours.bias).softmax(dim=1).numpy()
    np.testing.assert_allclose(logits, oracle.predict_proba(test.double().numpy()), atol=0.005)


def test_the_tolerance_is_tight_enough_for_an_accuracy():
    z, labels = blobs(4, 0)
    exact = pipeline().fit(z.double().numpy(), labels.numpy())
    agreement = fit_probe(z, labels).predict(z).numpy() == exact.predict(z.double().numpy())
    assert agreement.mean() > 0.98


def test_log_loss_is_numpys_in_float64_and_its_slope_is_autograds():
    z, labels = blobs(3, 1)
    x, targets = standardised(z)[0], labels.unique(return_inverse=True)[1]
    generator = torch.Generator().manual_seed(2)
    weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 5), (3,))
    )
    logits = x.double().numpy() @ weight.detach().numpy().T + bias.detach().numpy()
    chosen = logits[np.arange(160), targets.numpy()]
    plain = np.log(np.exp(logits).sum(axis=1)) - chosen
    wanted = plain.mean() + 0.5 * 0.3 * (weight.detach().numpy() ** 2).sum()
    value, slope, bias_slope = log_loss(x, targets, weight.detach(), bias.detach(), penalty=0.3)
    assert value == pytest.approx(wanted, rel=1e-6)
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, targets)
    (loss + 0.15 * weight.square().sum()).backward()
    torch.testing.assert_close(slope, weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias_slope, bias.grad, rtol=1e-5, atol=1e-6)


def test_correlated_features_are_fitted_to_the_bottom():
    generator = torch.Generator().manual_seed(0)
    turn = torch.randn(40, 40, generator=generator) * torch.logspace(0, -3, 40).unsqueeze(1)
    labels = torch.randint(5, (2000,), generator=generator)
    z = (torch.randn(5, 40, generator=generator)[labels] / 4) @ turn
    z = z + torch.randn(2000, 40, generator=generator) @ turn
    oracle = pipeline().fit(z.double().numpy(), labels.numpy())
    probe = fit_probe(z, labels)
    logits = (z.double() @ probe.weight.T + probe.bias).log_softmax(dim=1)
    theirs = torch.from_numpy(oracle.predict_log_proba(z.double().numpy()))
    losses = [-rows.gather(1, labels.unsqueeze(1)).mean() for rows in (logits, theirs)]
    assert float(losses[0] - losses[1]) < 1e-4
    assert (logits.argmax(dim=1) == theirs.argmax(dim=1)).double().mean() > 0.99


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(-12, 12))
def test_scale_and_shift_of_the_features_change_nothing(seed, exponent):
    z, labels = blobs(3, seed)
    test = blobs(3, seed + 1)[0]
    other = [x.double() * 10.0**exponent - 3 * 10.0**exponent for x in (z, test)]
    same = fit_probe(other[0], labels).predict(other[1]) == fit_probe(z, labels).predict(test)
    assert same.double().mean() > 0.98


def test_constant_features_and_rounding_noise_say_nothing():
    z, labels = blobs(3, 0)
    z = z.double()
    constant = torch.cat([z, torch.full((160, 1), 5.0, dtype=torch.float64)], dim=1)
    tiny = 1e-12 * (labels == 1).double().unsqueeze(1) + 5.0
    noise = torch.cat([z, tiny], dim=1)
    plain = fit_probe(z, labels)
    for wider in (constant, noise):
        probe = fit_probe(wider, labels)
        # a zero column regroups the sums, so the search stops at another rounding
        torch.testing.assert_close(probe.weight[:, :5], plain.weight, rtol=1e-4, atol=1e-4)
        assert probe.weight[:, 5].abs().max() == 0


def test_features_that_are_all_constant_give_the_commonest_class():
    labels = torch.tensor([0, 1, 1, 1, 2, 2] * 5)
    probe = fit_probe(torch.ones(30, 4), labels)
    assert probe.predict(
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ).tolist() == ([1] * 6)


def test_two_classes_have_a_row_each():
    z, labels = blobs(2, 0, noise=0.1)
    probe = fit_probe(z, labels)
    assert probe.weight.shape == (2, 5)
    assert torch.equal(probe.predict(z), labels)


def test_one_class_is_an_error():
    with pytest.raises(VerificationError, match="at least two classes; the labels hold 1"):
        fit_probe(torch.randn(10, 3), torch.ones(10, dtype=torch.int64))


def test_a_probe_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(probe_module, "MOST_STEPS", 1)
    with pytest.raises(VerificationError, match="did not converge in 1 steps"):
        fit_probe(*blobs(3, 0))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_probe_of_sealed_verdicts_stays_scikit_learns_stopped_at_a_thousandth(classes):
    z, labels = blobs(classes, 3)
    test = blobs(classes, 4)[0].double()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))
    model.fit(z.double().numpy(), labels.numpy())
    probe = fit_sealed_probe(z, labels)
    logits = (test @ probe.weight.T + probe.bias).softmax(dim=1).numpy()
    np.testing.assert_allclose(logits, model.predict_proba(test.numpy()), atol=1e-6)
    with pytest.raises(VerificationError, match="at least two classes"):
        fit_sealed_probe(z, torch.zeros(160, dtype=torch.int64))
