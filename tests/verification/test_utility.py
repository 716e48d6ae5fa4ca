"""Utility is the share of test images that the readers get right."""

from __future__ import annotations

import pytest
import torch

from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.utility import utility

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(120) % 4
CENTRES = torch.randn(4, 6, generator=GENERATOR)


def features(noise: float) -> torch.Tensor:
    return CENTRES[LABELS] + noise * torch.randn(120, 6, generator=GENERATOR)


def test_a_perfect_encoder_scores_one_and_a_blind_one_about_chance():
    assert utility(features(0.01), LABELS, features(0.01), LABELS) == {"linear": 1.0, "knn": 1.0}
    noise = torch.randn(240, 6, generator=GENERATOR)
    blind = utility(noise[:120], LABELS, noise[120:], LABELS)
    assert all(0.05 < share < 0.45 for share in blind.values())


@pytest.mark.parametrize("k", [1, 20, 500])
def test_scores_are_the_shares_of_right_answers(k):
    train, test = features(1.0), features(1.0)
    score = utility(train, LABELS, test, LABELS, k=k)
    right = fit_probe(train, LABELS).predict(test) == LABELS
    assert score["linear"] == pytest.approx(int(right.sum()) / 120)
    near = knn_predict(test, train, LABELS, k=k) == LABELS
    assert score["knn"] == pytest.approx(int(near.sum()) / 120)
    assert 0.2 < score["linear"] < 1
