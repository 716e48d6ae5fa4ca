"""A stream depends on its seed and its names alone, and never on global state."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.rng import derive_seed, numpy_stream, torch_stream

SEEDS = st.integers() | st.binary()
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(), max_size=4)


def reference(seed: int | bytes, names: list[str | int]) -> int:
    """SHA-256 over length-prefixed parts, its first 63 bits."""
    digest = hashlib.sha256()
    for part in [seed, *names]:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return int(digest.hexdigest()[:16], 16) // 2


@given(SEEDS, NAMES)
def test_streams_of_saved_runs_stay_what_they_were(seed, names):
    assert derive_seed(seed, *names) == reference(seed, names)
    assert 0 <= derive_seed(seed, *names) < 2**63


def test_streams_of_known_names_never_change():
    assert derive_seed(0) == 6172788626349976278
    assert derive_seed(b"secret", "pair", 1, 2) == 203025301879972915


def test_draws_of_known_streams_never_change():
    """Composites of a key, and so its verdicts, follow from these draws."""
    draws = torch.randint(1000, (4,), generator=torch_stream(0, "x"))
    assert draws.tolist() == [677, 425, 272, 371]
    assert numpy_stream(0, "x").integers(1000, size=4).tolist() == [982, 884, 567, 925]


@given(SEEDS, NAMES, NAMES)
def test_other_names_give_other_streams(seed, one, two):
    same = [str(name) for name in one] == [str(name) for name in two]
    assert (derive_seed(seed, *one) == derive_seed(seed, *two)) == same


@given(st.text(min_size=2, max_size=6).filter(str.isascii), st.integers(1, 5))
def test_names_do_not_run_into_each_other(text, cut):
    assert derive_seed(0, text) != derive_seed(0, text[:cut], text[cut:])


def test_a_stream_repeats_and_another_differs():
    for make, draw in (
        (torch_stream, lambda stream: torch.rand(5, generator=stream)),
        (numpy_stream, lambda stream: stream.random(5)),
    ):
        first, again, other = make(7, "views", 1), make(7, "views", 1), make(7, "views", 2)
        values = draw(first)
        assert (values == draw(again)).all()
        assert (values != draw(other)).all()
        assert (values != draw(first)).all()


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = torch.rand(3, generator=torch_stream(0, "x")), numpy_stream(0, "x").random(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(torch.rand(3, generator=torch_stream(0, "x")), one[0])
    assert (numpy_stream(0, "x").random(3) == one[1]).all()


def test_draws_of_many_streams_are_uniform():
    draws = np.array([numpy_stream(3, "s", index).random() for index in range(2000)])
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square, 9 degrees, p = 0.001
