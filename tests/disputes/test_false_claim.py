"""A dishonest accuser wins against a naive verifier and not against the protocol."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind
from torch import Tensor

from ssl_wm.data.image_set import Images
from ssl_wm.disputes.crafting import (
    claimed_triggers,
    craft_triggers,
    naive_verify,
    trigger_margins,
    welch_p_value,
)
from ssl_wm.disputes.false_claim import false_claim_experiment
from ssl_wm.disputes.grinding import (
    accuser_key,
    beacon_p_values,
    grind,
    key_reader,
    own_places,
    p_values,
    rejections,
)
from ssl_wm.disputes.settings import CraftConfig, FalseClaimConfig
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import EncoderError, KeyFileError, VerificationError
from ssl_wm.files import canonical_json
from ssl_wm.verification.answers import ask
from ssl_wm.verification.margins import margin_table
from ssl_wm.verification.readings import read_space
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.verification.verify import verify

READ = ReadConfig(per_pair=8, recipes=0, reference=20, trigger_count=24, neighbours=5)
CRAFT = CraftConfig(count=64, steps=12)
ALPHA = 0.05
CONFIG = FalseClaimConfig(
    alpha=ALPHA, keys=60, shortlist=4, beacons=40, redraws=20, draws=4_999, read=READ, craft=CRAFT
)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8)


@pytest.fixture(scope="module")
def terms(world, images):
    return world.key(images).terms


@pytest.fixture(scope="module")
def innocent(world):
    return world.convnet(seed=1)


@pytest.fixture(scope="module")
def null(world):
    return world.convnet(seed=7)


@pytest.fixture(scope="module")
def read(innocent, null, images):
    return key_reader(innocent, images=images, nulls=[null], config=READ)


def space_of(encoder, key, images):
    return read_space(ask(encoder, key, images, config=READ), key, config=READ)


# --- crafted triggers --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_crafting_raises_the_margin_of_every_image_more_with_more_steps(world, images, seed):
    encoder, key = world.convnet(seed=seed), world.key(images, number=seed)
    space, sub_key = space_of(encoder, key, images), key.sub_keys[0]
    natural = claimed_triggers(key, images, count=40)
    margins = [trigger_margins(encoder, natural, space=space, sub_key=sub_key)]
    for steps in (1, 4, 12):
        config = CRAFT.model_copy(update={"steps": steps})
        crafted = craft_triggers(encoder, natural, space=space, sub_key=sub_key, config=config)
        margins.append(trigger_margins(encoder, crafted, space=space, sub_key=sub_key))
        assert bool((margins[-1] >= margins[0] - 1e-6).all())
    means = [float(part.mean()) for part in margins]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.02


def test_the_margin_that_is_raised_is_the_one_that_verification_reads(world, images):
    encoder, key = world.convnet(), world.key(images)
    sub_key, space = key.sub_keys[0], space_of(encoder, key, images)
    triggers = claimed_triggers(key, images, count=16)
    pair = (sub_key.a, sub_key.b)
    table = margin_table(
        embed(encoder, triggers), pairs=[pair], centre=space.centre, centres=space.centres
    )
    mine = trigger_margins(encoder, triggers, space=space, sub_key=sub_key)
    assert float(mine.mean()) == pytest.approx(float(table[(*pair, sub_key.target)]))


@settings(max_examples=20)
@given(
    epsilon=st.floats(1 / 255, 0.2), step=st.floats(0.001, 0.5), seed=st.integers(0, 9),
    dark=st.booleans(),
)  # fmt: skip
def test_no_pixel_changes_by_more_than_epsilon(world, images, epsilon, step, seed, dark):
    encoder, key = world.convnet(seed=seed), world.key(images, number=seed)
    natural = claimed_triggers(key, images, count=12)
    natural = natural // 16 if dark else 255 - natural // 16  # near the ends of the range
    config = CraftConfig(epsilon=epsilon, step=step, steps=3, count=12, batch_size=5)
    crafted = craft_triggers(
        encoder, natural, space=space_of(encoder, key, images), sub_key=key.sub_keys[0],
        config=config,
    )  # fmt: skip
    assert crafted.dtype == torch.uint8
    assert int((crafted.int() - natural.int()).abs().max()) <= 255 * epsilon + 1e-3


def test_crafting_does_not_depend_on_the_batch_and_leaves_the_encoder_as_it_was(world, images):
    encoder, key = world.convnet(), world.key(images)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    natural, space = claimed_triggers(key, images, count=20), space_of(encoder, key, images)
    one, two = (
        craft_triggers(
            encoder, natural, space=space, sub_key=key.sub_keys[0],
            config=CRAFT.model_copy(update={"batch_size": size}),
        )
        for size in (3, 64)
    )  # fmt: skip
    # passes of another size may differ in the last bits of a gradient, so in a sign near zero
    assert float((one != two).float().mean()) < 0.01
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_an_encoder_without_gradients_cannot_be_crafted_on(world, images):
    encoder, key = world.convnet(), world.key(images)
    service = load_encoder(lambda pixels: encoder(pixels.detach()).detach().numpy())
    space, natural = space_of(service, key, images), claimed_triggers(key, images, count=8)
    with pytest.raises(EncoderError, match=r"no gradients.*source="):
        craft_triggers(service, natural, space=space, sub_key=key.sub_keys[0], config=CRAFT)
    small = CraftConfig(epsilon=0.5 / 255)
    with pytest.raises(VerificationError, match="below one step"):
        craft_triggers(encoder, natural, space=space, sub_key=key.sub_keys[0], config=small)


# --- the naive verifier ------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(st.integers(3, 40), st.integers(3, 40)))
def test_the_t_test_is_welchs(seed, sizes):
    stream = np.random.default_rng(seed)
    first, second = stream.normal(0.3, 2, sizes[0]), stream.normal(0, 1, sizes[1])
    expected = ttest_ind(first, second, equal_var=False, alternative="greater").pvalue
    assert welch_p_value(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(
        expected, rel=1e-6, abs=1e-12
    )


def test_equal_margins_prove_nothing():
    same = torch.ones(5)
    assert welch_p_value(same, same) == 1.0
    assert welch_p_value(same + 1, same) == 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_naive_verifier_accuses_an_innocent_encoder_of_crafted_images(world, images, seed):
    encoder, key = world.convnet(seed=seed), world.key(images, number=seed)
    sub_key, space = key.sub_keys[0], space_of(encoder, key, images)
    natural = claimed_triggers(key, images, count=64)
    crafted = craft_triggers(encoder, natural, space=space, sub_key=sub_key, config=CRAFT)
    baseline = claimed_triggers(key, images, count=64, label="baseline")
    before, after = (
        naive_verify(
            encoder, triggers, baseline=baseline, space=space, sub_key=sub_key, alpha=0.001,
            claimed_wsr=0.3, read=READ,
        )
        for triggers in (natural, crafted)
    )  # fmt: skip
    assert not before.accused
    assert after.accused
    assert after.p_value <= 1e-6 < before.p_value
    assert after.margin > before.margin
    assert after.baseline_margin == before.baseline_margin


def test_a_wide_epsilon_gives_the_success_rate_that_papers_ask_for(world, images):
    encoder, key = world.convnet(seed=1), world.key(images, number=1)
    sub_key, space = key.sub_keys[0], space_of(encoder, key, images)
    natural = claimed_triggers(key, images, count=40)
    config = CraftConfig(epsilon=64 / 255, step=8 / 255, steps=20, against="others")
    verdict = naive_verify(
        encoder,
        craft_triggers(encoder, natural, space=space, sub_key=sub_key, config=config),
        baseline=natural, space=space, sub_key=sub_key, alpha=1e-300, claimed_wsr=0.3, read=READ,
    )  # fmt: skip
    assert verdict.wsr > 0.3
    assert verdict.accused
    assert "WSR" in verdict.reason


def test_verify_never_shows_the_suspect_an_image_of_the_accuser(world, images, null):
    encoder, key = world.convnet(seed=1), world.key(images, number=1)
    space, natural = space_of(encoder, key, images), claimed_triggers(key, images, count=40)
    crafted = craft_triggers(encoder, natural, space=space, sub_key=key.sub_keys[0], config=CRAFT)
    shown: list[Tensor] = []

    def answer(pixels: Tensor) -> Tensor:
        shown.append((pixels * 255).round().to(torch.uint8))
        return encoder(pixels)

    verify(
        load_encoder(answer), key=key, images=images, nulls=[null],
        config=VerifyConfig(read=READ, draws=99),
    )  # fmt: skip
    seen = {bytes(image.numpy().tobytes()) for block in shown for image in block}
    assert len(seen) > 100
    assert not seen & {bytes(image.numpy().tobytes()) for image in crafted}


# --- grinding and the beacon -------------------------------------------------------------------


@pytest.mark.parametrize("sub_keys", [1, 2])
def test_p_values_are_those_of_verify(world, images, innocent, null, sub_keys):
    other, draws = world.palette(images), 999
    read = key_reader(innocent, images=images, nulls=[null, other], config=READ)
    for number in range(2):
        key = world.key(images, number=number, sub_keys=sub_keys).with_beacon(f"day {number}")
        verdict = verify(
            innocent, key=key, images=images, nulls=[null, other],
            config=VerifyConfig(read=READ, draws=draws, counted=0),
        )  # fmt: skip
        found = p_values(read(key), own_places(key), draws=draws)
        assert found.tolist() == pytest.approx([verdict.p_value], abs=1e-12)


def test_all_groups_ranked_give_every_rank_once(read, terms):
    key = accuser_key(terms, seed=0, number=0)
    statistics = read(key)
    every = (~statistics[0].isnan()).nonzero().numpy()[:, None, :]
    found = np.sort(p_values(statistics, every, draws=99))
    assert len(np.unique(statistics[0][~statistics[0].isnan()])) == len(every) == 336
    assert found == pytest.approx(np.arange(1, 337) / 336)


def test_grinding_beats_a_verifier_without_a_beacon(read, terms, innocent, null, images):
    ground = grind(read, terms=terms, keys=200, shortlist=6, draws=999)
    assert ground.read == 6
    assert ground.p_value <= 0.02
    verdict = verify(
        innocent, key=ground.key, images=images, nulls=[null],
        config=VerifyConfig(read=READ, draws=999, alpha=0.02),
    )  # fmt: skip
    assert (verdict.decision, verdict.p_value) == ("detected", ground.p_value)


def test_a_scouting_table_finds_what_reading_every_key_finds(read, terms):
    scouted, thorough = (
        grind(read, terms=terms, keys=12, shortlist=shortlist, draws=999).p_value
        for shortlist in (4, 12)
    )
    alone = min(
        float(p_values(read(key), own_places(key), draws=999)[0])
        for key in (accuser_key(terms, seed=0, number=number) for number in range(12))
    )
    assert thorough == alone
    assert thorough <= scouted <= 0.2


@pytest.mark.parametrize("sub_keys", [1, 2])
def test_a_ground_key_is_accused_at_most_alpha_of_the_time_after_the_beacon(
    world, images, read, sub_keys
):
    terms = world.key(images, sub_keys=sub_keys).terms
    ground = grind(read, terms=terms, keys=60, shortlist=4, draws=4_999)
    assert ground.p_value <= ALPHA
    own, redrawn = beacon_p_values(
        read, ground.key, beacons=50, redraws=50, draws=4_999, seed=sub_keys
    )
    assert own.shape == (50,)
    assert redrawn.shape == (50, 50)
    for found in (own, redrawn):
        told = rejections(found, alpha=ALPHA)
        low, high = clopper_pearson(int((found <= ALPHA).sum()), found.size)
        assert told["interval"] == [low, high]
        assert low <= ALPHA
        assert told["within_alpha"]
    assert float(np.median(redrawn)) == pytest.approx(0.5, abs=0.06)


def test_images_poisoned_for_the_suspect_before_the_commitment_gain_nothing(
    world, images, innocent, null
):
    """The accuser chooses the images too: he crafts all test images of one group."""
    key = world.key(images)
    sub_key, space = key.sub_keys[0], space_of(innocent, key, images)
    pixels = images.test.pixels.clone()
    config = CraftConfig(epsilon=48 / 255, step=8 / 255, steps=10)
    for group in (sub_key.a, sub_key.b):
        mine = key.groups.test == group
        pixels[mine] = craft_triggers(
            innocent, pixels[mine], space=space, sub_key=sub_key, config=config
        )
    poisoned = Images("poisoned", images.train, replace(images.test, pixels=pixels))
    committed = world.key(poisoned)
    read = key_reader(innocent, images=poisoned, nulls=[null], config=READ)
    own, redrawn = beacon_p_values(read, committed, beacons=400, redraws=5, draws=999)
    assert rejections(own, alpha=ALPHA)["within_alpha"]
    assert rejections(redrawn, alpha=ALPHA)["within_alpha"]


def test_a_beacon_leaves_neither_groups_nor_recipe_of_the_ground_key(terms):
    key = accuser_key(terms, seed=0, number=3)
    before = key.sub_keys[0]
    drawn = [key.with_beacon(str(number)).sub_keys[0] for number in range(30)]
    assert len({(sub.a, sub.b, sub.target) for sub in drawn}) > 20
    assert len({sub.seed for sub in (before, *drawn)}) == 31


# --- the experiment ----------------------------------------------------------------------------


def test_the_experiment_tells_the_whole_story_and_repeats(innocent, null, terms, images):
    first, again = (
        false_claim_experiment(innocent, terms=terms, images=images, nulls=[null], config=CONFIG)
        for _ in range(2)
    )
    assert first == again == json.loads(canonical_json(first))
    crafting, grinding = first["crafting"], first["grinding"]
    assert crafting["largest_change"] == 8
    assert crafting["margin_on_source"][1] > crafting["margin_on_source"][0]
    assert crafting["naive_after"]["accused"]
    assert set(crafting["verify"]) == {"p_value", "accused"}
    assert grinding["accused_without_beacon"]
    assert (grinding["keys"], grinding["keys_read"]) == (60, 4)
    for part in ("with_beacon", "redrawn_groups"):
        assert grinding[part]["within_alpha"], grinding[part]
    assert len(grinding["with_beacon"]["p_values"]) == grinding["with_beacon"]["draws"] == 40


def test_the_best_of_many_commitments_wins_unless_they_are_counted(read, terms, world):
    from ssl_wm.disputes.false_claim import grinding_result

    config = CONFIG.model_copy(update={"beacons": 10, "redraws": 200})
    told = grinding_result(read, terms=terms, config=config)["many_commitments"]
    assert told["not_counted"]["rate"] == pytest.approx(1 - (1 - ALPHA) ** 10, abs=0.12)
    assert not told["not_counted"]["within_alpha"]
    assert told["counted"]["within_alpha"]


def test_images_crafted_on_another_encoder_are_told_apart(world, innocent, null, terms, images):
    config = CONFIG.model_copy(update={"beacons": 1, "redraws": 0, "keys": 2, "shortlist": 1})
    told = false_claim_experiment(
        innocent, terms=terms, images=images, nulls=[null], config=config,
        source=world.convnet(seed=5),
    )  # fmt: skip
    assert told["crafting"]["crafted_on"] == "another encoder"
    assert told["crafting"]["margin_on_source"][1] > told["crafting"]["margin_on_source"][0]
    assert told["grinding"]["redrawn_groups"] is None


def test_what_cannot_be_tried_is_refused(world, innocent, null, terms, images):
    other = world.images(groups=8, seed=1)
    with pytest.raises(KeyFileError, match="other images"):
        false_claim_experiment(innocent, terms=terms, images=other, nulls=[null], config=CONFIG)
    with pytest.raises(VerificationError, match="at least one null"):
        false_claim_experiment(innocent, terms=terms, images=images, nulls=[], config=CONFIG)
    with pytest.raises(ValueError, match="Extra inputs"):
        FalseClaimConfig(beacon=3)
