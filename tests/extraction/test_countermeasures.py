"""Counter-moves: repeats divide noise, accounts are mapped back, noise is shrunk out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from ssl_wm.errors import DataError
from ssl_wm.extraction.countermeasures import (
    average_repeats,
    denoise,
    learn_unmapping,
    merge_accounts,
)
from ssl_wm.extraction.queries import Ledger, TransferSet


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(width: int, *, seed: int = 5) -> torch.Tensor:
    return torch.linalg.qr(gaussian(width, width, seed=seed)).Q


def low_rank(count: int = 400, width: int = 64, rank: int = 5, *, seed: int = 0) -> torch.Tensor:
    signal = gaussian(count, rank, seed=seed) @ gaussian(rank, width, seed=seed + 1)
    return (signal + 3 * gaussian(width, seed=seed + 2)).float()


def test_repeats_are_averaged_and_the_left_noise_is_told():
    clean = gaussian(200, 32)
    noisy = clean + 0.8 * gaussian(16, 200, 32, seed=1)
    averaged = average_repeats(noisy.float())
    torch.testing.assert_close(averaged.rows, noisy.mean(dim=0).float(), atol=1e-5, rtol=1e-5)
    assert averaged.noise == pytest.approx(0.2, rel=0.02)
    error = (averaged.rows - clean).square().mean().sqrt()
    assert error.item() == pytest.approx(averaged.noise, rel=0.03)


@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3)])
def test_a_single_answer_is_no_repeat(shape):
    with pytest.raises(DataError, match="R at least 2"):
        average_repeats(torch.zeros(shape))


@given(st.integers(1, 24), st.integers(0, 1000), st.booleans())
def test_a_known_orthogonal_map_is_found_to_1e_5(width, seed, centred):
    source = gaussian(3 * width + 2, width, seed=seed).float()
    known, offset = turn(width, seed=seed + 1), gaussian(width, seed=seed + 2) * centred
    target = (source.double() @ known + offset).float()
    unmap = learn_unmapping(source, target, centred=centred)
    assert unmap.rank == width
    torch.testing.assert_close(unmap.matrix, known, atol=1e-5, rtol=0)
    torch.testing.assert_close(unmap.matrix @ unmap.matrix.T, torch.eye(width).double())
    torch.testing.assert_close(unmap(source), target, atol=1e-4, rtol=1e-4)
    assert unmap.residual < 1e-9


def test_a_shuffle_with_flipped_signs_is_undone_exactly():
    answers = gaussian(40, 12).float()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    signs = torch.tensor([1.0, -1.0] * 6)
    unmap = learn_unmapping(answers[:, order] * signs, answers)
    assert set(unmap.matrix.round(decimals=5).abs().unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(unmap(answers[:, order] * signs), answers, atol=1e-5, rtol=1e-5)


def test_the_residual_is_what_an_orthogonal_map_cannot_explain():
    source, target = gaussian(60, 8), gaussian(60, 8, seed=1)
    unmap = learn_unmapping(source, target)
    rest = (source @ unmap.matrix - target).square().sum() / target.square().sum()
    assert unmap.residual == pytest.approx(rest.item())
    for seed in range(20):
        other = (source @ turn(8, seed=seed) - target).square().sum() / target.square().sum()
        assert other >= rest


@pytest.mark.parametrize(
    ("source", "target"),
    [((5, 3), (5, 4)), ((5, 3), (4, 3)), ((0, 3), (0, 3)), ((3,), (3,))],
)
def test_answers_to_other_images_teach_no_map(source, target):
    with pytest.raises(DataError, match="same images"):
        learn_unmapping(torch.zeros(source), torch.zeros(target))


def account(indices: list[int], answers: torch.Tensor, *, pool: str = "p") -> TransferSet:
    chosen = torch.tensor(indices)
    return TransferSet(chosen, answers[chosen], Ledger(len(indices)), pool)


def test_two_accounts_become_one_transfer_set_in_the_first_ones_coordinates():
    answers = gaussian(100, 10).float()
    other = (answers.double() @ turn(10)).float()
    merged = merge_accounts(account([*range(60)], answers), account([*range(40, 100)], other))
    assert merged.indices.tolist() == [*range(100)]
    torch.testing.assert_close(merged.embeddings, answers, atol=1e-4, rtol=1e-4)
    assert merged.ledger == Ledger(120)


def test_too_few_shared_images_are_refused_as_they_do_not_fix_the_map():
    answers = gaussian(100, 10).float()
    other = (answers.double() @ turn(10)).float()
    with pytest.raises(DataError, match="5 shared images determine 5 of 10"):
        merge_accounts(account([*range(60)], answers), account([*range(55, 100)], other))
    with pytest.raises(DataError, match="share no image"):
        merge_accounts(account([1, 2], answers), account([3, 4], other))
    with pytest.raises(DataError, match="same pool"):
        merge_accounts(account([1], answers), account([1], other, pool="q"))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_noise_on_low_rank_answers_is_lowered_and_beats_plain_components(sigma, known):
    clean = low_rank()
    noisy = clean + sigma * gaussian(*clean.shape, seed=9).float()
    found = denoise(noisy, noise=sigma if known else None)
    assert found.rank == 5
    assert found.noise == pytest.approx(sigma, rel=0.05)

    def error(rows):
        return float((torch.as_tensor(rows) - clean).square().mean().sqrt())

    assert error(found.rows) < 0.4 * error(noisy)
    plain = PCA(5).fit(noisy.numpy())
    projected = plain.inverse_transform(plain.transform(noisy.numpy()))
    assert error(found.rows) < 1.001 * error(projected)


def test_denoising_turns_with_the_answers():
    noisy = low_rank() + 0.5 * gaussian(400, 64, seed=9).float()
    turned = (noisy.double() @ turn(64)).float()
    expected = denoise(noisy).rows.double() @ turn(64)
    torch.testing.assert_close(denoise(turned).rows, expected.float(), atol=1e-3, rtol=1e-3)


def test_answers_without_noise_stay_as_they_are():
    clean = low_rank()
    for found in (denoise(clean), denoise(clean, noise=0.0), denoise(clean, noise=1e-6)):
        torch.testing.assert_close(found.rows, clean, atol=1e-3, rtol=1e-3)


def test_more_coordinates_than_images_are_denoised_too():
    clean = low_rank(60, 300, 2)
    noisy = clean + 0.5 * gaussian(60, 300, seed=9).float()
    found = denoise(noisy)
    assert found.rank == 2
    assert found.noise == pytest.approx(0.5, rel=0.1)
    assert (found.rows - clean).square().mean() < 0.1 * (noisy - clean).square().mean()


@pytest.mark.parametrize("rows", [torch.zeros(1, 4), torch.zeros(4), torch.full((3, 2), np.nan)])
def test_what_cannot_be_denoised_is_refused(rows):
    with pytest.raises(DataError, match="finite answers"):
        denoise(rows)
    with pytest.raises(DataError, match="0 or more"):
        denoise(torch.rand(4, 2), noise=-1.0)
