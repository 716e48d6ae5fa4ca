"""Two keys, two encoders: who was first is told where it can be, and nowhere else."""

from __future__ import annotations

import copy
import json
from itertools import product

import pytest

from ssl_wm.disputes.ambiguity import CLAIMS, ambiguity_matrix, conclude, told_order
from ssl_wm.encoders.load import encoder_digest
from ssl_wm.errors import ConfigError, VerificationError
from ssl_wm.files import canonical_json, plain
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import verify

READ = ReadConfig(per_pair=8, recipes=0, reference=20, trigger_count=24, neighbours=5)
CONFIG = VerifyConfig(read=READ, draws=9_999)
NAMES = tuple(f"{who} in {where}" for who in ("owner", "rival") for where in
              ("owner_model", "disputed"))  # fmt: skip
SHOWN = {"owner": "yes", "rival": "yes"}


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=8)


@pytest.fixture(scope="module")
def clean(world, images):
    return world.palette(images)


@pytest.fixture(scope="module")
def keys(world, images, clean):
    """Two keys on different groups, each committed to a clean encoder, each with a beacon."""
    drawn = (
        world.key(images, number=number, encoder=encoder_digest(clean)).with_beacon("noon")
        for number in range(50)
    )
    owner = next(drawn)
    mine = {owner.sub_keys[0].a, owner.sub_keys[0].b, owner.sub_keys[0].target}
    rival = next(
        key for key in drawn
        if not mine & {key.sub_keys[0].a, key.sub_keys[0].b, key.sub_keys[0].target}
    )  # fmt: skip
    return owner, rival


def marked_twice(world, images, first, second):
    encoder = world.palette(images, key=first)
    encoder.backbone.shifts += world.palette(images, key=second).backbone.shifts
    return encoder


@pytest.fixture(scope="module")
def encoders(world, images, keys):
    owner, rival = keys
    return {
        "none": world.palette(images),
        "owner": world.palette(images, key=owner),
        "rival": world.palette(images, key=rival),
        "both": marked_twice(world, images, owner, rival),
    }


@pytest.mark.parametrize(
    ("mine", "copy_", "conclusion"),
    [
        ("owner", "both", "owner prior"),  # the ambiguity attack
        ("owner", "owner", "owner prior"),
        ("both", "both", "undecided"),
        ("both", "owner", "undecided"),
        ("both", "rival", "rival prior"),
        ("owner", "rival", "rival alone"),
        ("owner", "none", "no claim"),
        ("both", "none", "no claim"),
        ("none", "both", "owner unproven"),
        ("rival", "owner", "owner unproven"),
    ],
)
def test_who_was_first(images, clean, keys, encoders, mine, copy_, conclusion):
    told = ambiguity_matrix(
        owner_model=encoders[mine], disputed=encoders[copy_], owner_key=keys[0],
        rival_key=keys[1], images=images, owner_nulls=[clean], rival_nulls=[clean], config=CONFIG,
    )  # fmt: skip
    assert (told.conclusion, told.reason) == (conclusion, CLAIMS[conclusion])
    for name in NAMES:
        who, _, where = name.partition(" in ")
        carried = mine if where == "owner_model" else copy_
        assert (told.found[name] == "detected") == (carried in (who, "both")), name
    assert told.committed == SHOWN
    assert told.cautions == ()
    assert told.order == "not told: both dates are needed"


def test_the_four_verdicts_are_those_of_verify(images, clean, keys, encoders):
    model, disputed = encoders["owner"], encoders["both"]
    told = ambiguity_matrix(
        owner_model=model, disputed=disputed, owner_key=keys[0], rival_key=keys[1],
        images=images, owner_nulls=[clean], rival_nulls=[clean], config=CONFIG,
    ).to_dict()  # fmt: skip
    for (who, key), (where, encoder) in product(
        zip(("owner", "rival"), keys, strict=True),
        (("owner_model", model), ("disputed", disputed)),
    ):
        alone = verify(encoder, key=key, images=images, nulls=[clean], config=CONFIG)
        assert told["verdicts"][f"{who} in {where}"] == alone.to_dict()
    text = canonical_json(plain(told)).decode()
    assert json.loads(text)["conclusion"] == "owner prior"
    assert not any(key.secret.hex() in text for key in keys)


def test_dates_are_told_and_decide_nothing(images, clean, keys, encoders):
    told = [
        ambiguity_matrix(
            owner_model=encoders["owner"], disputed=encoders["both"], owner_key=keys[0],
            rival_key=keys[1], images=images, owner_nulls=[clean], rival_nulls=[clean],
            config=CONFIG, owner_date=owner, rival_date=rival,
        )
        for owner, rival in (("2025-01-01", "2024-01-01"), ("2024-01-01", "2025-01-01"))
    ]  # fmt: skip
    assert [each.order for each in told] == [
        "the rival committed first",
        "the owner committed first",
    ]
    assert {each.conclusion for each in told} == {"owner prior"}


@pytest.mark.parametrize(
    ("owner", "rival", "says"),
    [
        ("2025-01-01", "2025-01-01T00:00:00Z", "same time"),
        ("2025-01-01T01:00:00+02:00", "2025-01-01T00:00:00", "owner committed first"),
        (None, "2025-01-01", "both dates are needed"),
    ],
)
def test_the_order_of_dates(owner, rival, says):
    assert says in told_order(owner, rival)


@pytest.mark.parametrize("dates", [("yesterday", None), ("2025-01-01", "1/2/2025")])
def test_what_is_no_date_is_refused(dates):
    with pytest.raises(ConfigError, match=r"ISO text such as 2025-01-31"):
        told_order(*dates)


@pytest.mark.parametrize("who", ["owner", "rival"])
def test_verdicts_against_another_clean_encoder_than_committed_do_not_count(
    world, images, clean, keys, encoders, who
):
    """The rival who brings a null encoder made to suit him gains nothing."""
    other = copy.deepcopy(clean)
    other.backbone.scale += 1
    told = ambiguity_matrix(
        owner_model=encoders["both"], disputed=encoders["both"], owner_key=keys[0],
        rival_key=keys[1], images=images, config=CONFIG,
        owner_nulls=[other if who == "owner" else clean],
        rival_nulls=[other if who == "rival" else clean],
    )  # fmt: skip
    assert told.committed == {**SHOWN, who: "no"}
    assert told.found[f"{who} in disputed"] == "detected"
    assert told.conclusion == ("owner unproven" if who == "owner" else "owner prior")
    assert f"verdicts of the {who} do not count" in told.reason
    assert any(f"that the {who} shows is not the one" in text for text in told.cautions)


def test_keys_without_beacon_or_committed_encoder_are_cautioned_about(world, images, clean):
    owner, rival = world.key(images, number=0), world.key(images, number=1)
    model = world.palette(images, key=owner)
    told = ambiguity_matrix(
        owner_model=model, disputed=model, owner_key=owner, rival_key=rival, images=images,
        owner_nulls=[clean], rival_nulls=[clean], config=CONFIG,
    )  # fmt: skip
    assert told.committed == {"owner": "not committed", "rival": "not committed"}
    assert sum("no beacon" in text for text in told.cautions) == 2
    assert sum("did not commit" in text for text in told.cautions) == 2
    with pytest.raises(VerificationError, match="at least one null"):
        ambiguity_matrix(
            owner_model=model, disputed=model, owner_key=owner, rival_key=rival, images=images,
            owner_nulls=[clean], rival_nulls=[], config=CONFIG,
        )  # fmt: skip


def test_a_rival_with_other_images_is_judged_by_his_own(world, clean, keys, encoders, images):
    theirs = world.images(groups=8, seed=3)
    rival = world.key(theirs, number=5)
    told = ambiguity_matrix(
        owner_model=encoders["owner"], disputed=encoders["owner"], owner_key=keys[0],
        rival_key=rival, images=images, rival_images=theirs, owner_nulls=[clean],
        rival_nulls=[clean], config=CONFIG,
    )  # fmt: skip
    assert told.conclusion == "owner prior"
    assert told.verdicts["rival in disputed"]["facts"]["images"] == rival.fingerprints


def test_every_pattern_of_verdicts_has_a_conclusion_and_the_thief_wins_none_he_should_not():
    states = ("detected", "not_detected", "inconclusive")
    for decisions in product(states, repeat=4):
        found = dict(zip(NAMES, decisions, strict=True))
        claim, reason = conclude(found, committed=SHOWN)
        assert reason.startswith(CLAIMS[claim])
        own, disputed, theirs, _ = decisions
        if claim == "owner prior":
            assert (own, disputed, theirs) == ("detected", "detected", "not_detected")
        if claim == "rival prior":
            assert decisions == ("detected", "not_detected", "detected", "detected")
        if claim == "rival alone":
            assert decisions == ("detected", "not_detected", "not_detected", "detected")
        if claim == "unresolved":
            assert "inconclusive" in decisions
            assert all(
                (name in reason) == (decision == "inconclusive") for name, decision in found.items()
            )
    assert {
        conclude(dict(zip(NAMES, each, strict=True)), committed=SHOWN)[0]
        for each in product(states, repeat=4)
    } == set(CLAIMS)
