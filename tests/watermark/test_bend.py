"""A bend is the identity when new, smooth, and fitted makes composites read as their target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf

from ssl_wm.watermark.bend import Bend, BendImages, Prices, fit_bend
from ssl_wm.watermark.readers import discriminant_scores, neighbour_scores
from ssl_wm.watermark.rehearsal import copied_moves

COUNT, WIDTH = 4, 12


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def new_bend(*, scale: float = 3.0, seed: int = 0) -> Bend:
    return Bend(torch.ones(WIDTH), scale=scale, hidden=64, generator=stream(seed))


@pytest.fixture(scope="module")
def space(four_groups) -> BendImages:
    return four_groups(apart=3, noise=0.7)


def fitted(
    space: BendImages, *, seen: BendImages | None = None, steps: int = 400, on_step=None,
    **changes: float,
) -> tuple[Bend, list[dict[str, float]]]:  # fmt: skip
    bend = new_bend()
    prices = {
        "natural": 3.0, "held": 1.0, "linear": 0.0, "similarity": 0.0, "rehearsed": 0.0,
        "ridge": 0.1,
    } | changes  # fmt: skip
    lines = fit_bend(
        bend, space, seen=seen or space, prices=Prices(**prices), steps=steps, learning_rate=3e-3,
        generator=stream(1), rows=200, on_step=on_step,
    )  # fmt: skip
    return bend, lines


def read_as_target(bend: Bend, space: BendImages) -> list[float]:
    """Return the share of bent composites that each reader gives to the target."""
    with torch.no_grad():
        bank, marked = bend(space.natural), bend(space.marked[0])
        scores = [
            score(marked, bank=bank, groups=space.groups, count=COUNT)
            for score in (discriminant_scores, neighbour_scores)
        ]
    return [float((s.argmax(dim=1) == 3).float().mean()) for s in scores]


def test_a_new_bend_is_the_identity():
    z = torch.randn(5, WIDTH, generator=stream())
    assert torch.equal(new_bend()(z), z)


def test_a_bend_is_its_formula_in_numpy():
    bend = new_bend(scale=2.0)
    with torch.no_grad():
        bend.last.normal_(generator=stream(2))
        bend.bias.normal_(generator=stream(3))
    z = torch.randn(5, WIDTH, generator=stream(4))
    first, bias, last = (p.detach().double().numpy() for p in (bend.first, bend.bias, bend.last))
    inner = (z.double().numpy() - 1) / 2.0 @ first.T + bias
    active = inner * (1 + erf(inner / np.sqrt(2))) / 2
    expected = z.double().numpy() + 2.0 * active @ last.T
    np.testing.assert_allclose(bend(z).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_composites_read_as_the_target_after_fitting_and_not_before(space):
    assert max(read_as_target(new_bend(), space)) < 0.1
    bend, lines = fitted(space)
    assert min(read_as_target(bend, space)) > 0.8
    assert lines[-1]["mark"] < lines[0]["mark"] / 2


def test_a_higher_penalty_moves_natural_images_less(space):
    moved = [fitted(space, natural=p)[1][-1]["natural"] for p in (1.0, 30.0)]
    assert moved[1] < moved[0] / 2


def test_the_held_penalty_keeps_held_composites_from_reading_as_the_target(space):
    shares = []
    for penalty in (0.0, 10.0):
        bend, _ = fitted(space, held=penalty)
        with torch.no_grad():
            scores = discriminant_scores(
                bend(torch.cat(space.held[0])), bank=bend(space.natural),
                groups=space.groups, count=COUNT,
            )  # fmt: skip
        shares.append(float((scores.argmax(dim=1) == 3).float().mean()))
    assert shares[0] > 0.3
    assert shares[1] < 0.1


def test_the_same_generator_gives_the_same_bend(space):
    (one, lines), (two, again) = fitted(space), fitted(space)
    assert lines == again
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_rehearsed_map_is_carried_further_by_a_copy(space):
    """Else what is fitted is only what the owner's own encoder shows, which no thief sees."""
    shares = []
    for rehearsed in (0.0, 0.7):
        bend, _ = fitted(space, rehearsed=rehearsed, ridge=1.0)
        with torch.no_grad():
            moves = bend(space.natural) - space.natural
            where = torch.cat([space.natural, space.marked[0]])
            copy = where + copied_moves(moves, anchors=space.natural, queries=where, ridge=1.0)
            known, found = copy.split([len(space.natural), len(space.marked[0])])
            scores = discriminant_scores(found, bank=known, groups=space.groups, count=COUNT)
        shares.append(float((scores.argmax(dim=1) == 3).float().mean()))
    assert shares[1] > shares[0] + 0.1


def test_a_copy_is_rehearsed_in_the_space_that_the_thief_sees(space):
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=stream(3)))[0]
    far = BendImages(
        natural=space.natural @ turn, groups=space.groups, count=COUNT,
        marked=[pool @ turn for pool in space.marked], targets=space.targets,
        held=[[pool @ turn for pool in pools] for pools in space.held],
    )  # fmt: skip
    own, other = (fitted(space, seen=seen, steps=5, rehearsed=0.5)[0].last for seen in (space, far))
    assert not torch.equal(own, other)
    without = (fitted(space, seen=seen, steps=5)[0].last for seen in (space, far))
    assert torch.equal(*without)


def test_no_step_leaves_the_identity(space):
    bend, lines = fitted(space, steps=0)
    assert lines == []
    assert torch.equal(bend(space.natural), space.natural)


def test_every_step_is_told_so_that_a_wait_can_be_seen(space):
    told = []
    _, lines = fitted(space, steps=4, on_step=told.append)
    assert told == [1] * len(lines) == [1] * 4


def test_a_space_without_held_composites_can_be_fitted(space):
    bare = BendImages(
        natural=space.natural, groups=space.groups, count=COUNT,
        marked=space.marked, targets=space.targets, held=[[]],
    )  # fmt: skip
    bend, lines = fitted(bare)
    assert lines[-1]["held"] == 0
    assert min(read_as_target(bend, bare)) > 0.8


def test_bf16_autocast_does_not_round_the_bend():
    bend = new_bend()
    with torch.no_grad():
        bend.last.normal_(generator=stream(2))
    z = torch.randn(5, WIDTH, generator=stream(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bend(z), bend.eval()(z))
        assert bend(z.bfloat16()).dtype == torch.float32
    assert not torch.equal(bend(z), z)


def test_the_linear_penalty_keeps_what_a_linear_map_recovers(space):
    lost = []
    for penalty in (0.0, 30.0):
        lines = fitted(space, natural=0.1, linear=penalty)[1]
        lost.append(lines[-1]["unrecovered"])
    assert lost[1] < 0.7 * lost[0]


def test_the_similarity_penalty_keeps_similarities(space):
    kept = []
    for penalty in (0.0, 5.0):
        lines = fitted(space, natural=0.5, similarity=penalty)[1]
        kept.append(lines[-1]["similarities"])
    assert kept[1] < 0.7 * kept[0]
