"""Defences against independent formulas in numpy float64, and what each must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.encoders.serving import defences as d
from ssl_wm.encoders.serving.settings import B4bConfig, DefenceConfig
from ssl_wm.encoders.serving.shield import Shield
from ssl_wm.rng import torch_stream

ROWS = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decimals", [0, 1, 3])
def test_rounding_is_numpys(decimals):
    expected = np.round(ROWS.double().numpy(), decimals).astype(np.float32)
    np.testing.assert_array_equal(d.round_off(ROWS, decimals=decimals).numpy(), expected)


@given(st.integers(1, 20), st.integers(0, 2**31))
def test_top_k_keeps_exactly_the_k_largest_also_with_ties(k, seed):
    rows = torch.randint(-3, 4, (6, 12), generator=torch.Generator().manual_seed(seed)).float()
    kept = d.keep_largest(rows, k=k).numpy()
    for before, after in zip(rows.numpy(), kept, strict=True):
        sizes = np.sort(np.abs(before))[::-1]
        np.testing.assert_array_equal(np.sort(np.abs(after))[::-1][:k], sizes[:k])
        assert (np.abs(after) > 0).sum() <= k
        changed = before != after
        assert (after[changed] == 0).all()


def test_unit_length_is_numpys_and_keeps_zero():
    rows = torch.cat([ROWS, torch.zeros(1, 12)])
    wide = ROWS.double().numpy()
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(d.unit_length(rows)[:-1].numpy(), expected, rtol=1e-5, atol=1e-7)
    assert d.unit_length(rows)[-1].abs().sum() == 0


def test_a_rotation_keeps_all_lengths_and_angles():
    q = d.random_rotation(12, generator=torch_stream(0, "q")).double()
    torch.testing.assert_close(q @ q.T, torch.eye(12, dtype=torch.float64), atol=1e-6, rtol=0)


def test_rotations_are_uniform_not_only_orthogonal():
    """Without the signs of R the diagonal of Q would lean to one side."""
    stream = torch_stream(0, "many")
    corner = [float(d.random_rotation(3, generator=stream)[0, 0]) for _ in range(2000)]
    assert abs(np.mean(corner)) < 4 * np.sqrt(1 / 3 / 2000)
    assert abs(np.mean(np.square(corner)) - 1 / 3) < 0.03


def test_buckets_are_the_signs_as_binary_digits():
    planes = d.hash_planes(12, bits=7, generator=torch_stream(0, "p"))
    signs = ROWS.double().numpy() @ planes.double().numpy() > 0
    expected = (signs * 2 ** np.arange(7)).sum(axis=1)
    np.testing.assert_array_equal(d.hash_buckets(ROWS, planes=planes).numpy(), expected)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(1, 39))
def test_coverage_is_the_same_however_queries_are_grouped(buckets, cut):
    nothing = torch.zeros(16, dtype=torch.bool)
    whole, seen = d.coverage_after(torch.tensor(buckets), seen=nothing)
    first, middle = d.coverage_after(torch.tensor(buckets[:cut], dtype=torch.int64), seen=nothing)
    second, end = d.coverage_after(torch.tensor(buckets[cut:], dtype=torch.int64), seen=middle)
    assert torch.equal(whole, torch.cat([first, second]))
    assert torch.equal(seen, end)
    assert not nothing.any()
    assert whole.tolist() == [len(set(buckets[: i + 1])) / 16 for i in range(len(buckets))]


def test_b4b_noise_is_the_papers_formula():
    lam, alpha, beta = 1e-6, 1.0, 0.8
    shares = np.linspace(0, 1, 11)
    expected = lam * (np.exp(np.log(alpha / lam) * shares / beta) - 1)
    found = d.b4b_sigma(torch.from_numpy(shares), lam=lam, alpha=alpha, beta=beta)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-18)
    at_beta = d.b4b_sigma(
        torch.tensor([beta], dtype=torch.float64), lam=lam, alpha=alpha, beta=beta
    )
    assert float(at_beta) == pytest.approx(alpha - lam)


def test_noise_has_the_deviation_asked_for_in_each_row():
    rows, sigma = torch.zeros(3, 20_000), torch.tensor([0.0, 0.5, 2.0])
    noisy = d.add_noise(rows, sigma=sigma, generator=torch_stream(0, "n"))
    assert noisy[0].abs().max() == 0
    np.testing.assert_allclose(noisy[1:].std(dim=1).numpy(), [0.5, 2.0], rtol=0.03)


def shield(**settings) -> Shield:
    return Shield(DefenceConfig(**settings), width=12, secret=b"x" * 32)


def test_without_a_defence_answers_are_untouched():
    assert shield().apply(ROWS, account="alice") is ROWS
    assert not shield().is_on


def test_each_account_has_its_own_map_and_keeps_it():
    one, again = shield(rotate=True), shield(rotate=True)
    alice, bob = one.apply(ROWS, account="alice"), one.apply(ROWS, account="bob")
    assert torch.equal(alice, again.apply(ROWS, account="alice"))
    assert not torch.allclose(alice, bob, atol=0.1)
    torch.testing.assert_close(alice @ alice.T, bob @ bob.T, atol=1e-4, rtol=1e-4)
    other = Shield(DefenceConfig(rotate=True), width=12, secret=b"y" * 32)
    assert not torch.allclose(alice, other.apply(ROWS, account="alice"), atol=0.1)


def test_noise_is_new_at_each_request_so_that_it_can_be_averaged_but_not_subtracted():
    one = shield(noise=0.1)
    first, second = one.apply(ROWS, account="alice"), one.apply(ROWS, account="alice")
    assert not torch.equal(first, second)
    assert float((first - ROWS).std()) == pytest.approx(0.1, rel=0.15)


def test_b4b_spares_who_asks_little_and_one_account_does_not_pay_for_another():
    one = shield(b4b=B4bConfig(bits=4))
    near = ROWS[:1].expand(200, -1)
    assert (one.apply(near, account="alice") - near).abs().max() < 1e-4
    assert one.coverage("alice") == 1 / 16
    wide = torch.randn(500, 12, generator=torch_stream(0, "wide"))
    one.apply(wide, account="bob")
    assert one.coverage("bob") > 0.8
    assert float((one.apply(ROWS, account="bob") - ROWS).std()) > 0.5
    assert (one.apply(near, account="alice") - near).abs().max() < 1e-4


def test_rounding_is_the_last_step_so_that_answers_are_round():
    mixed = shield(noise=0.1, rotate=True, normalise=True, top_k=5, rounding=2)
    rows = mixed.apply(ROWS, account="alice")
    assert torch.equal(rows, d.round_off(rows, decimals=2))
    assert int((rows != 0).sum(dim=1).max()) <= 5
    assert mixed.is_on


def test_settings_name_the_defences_in_the_order_of_their_use():
    config = DefenceConfig(rounding=2, b4b=B4bConfig(), normalise=True)
    assert config.active == ("b4b", "normalise", "rounding")
    with pytest.raises(ValueError, match="above 'lam'"):
        B4bConfig(lam=2.0)
