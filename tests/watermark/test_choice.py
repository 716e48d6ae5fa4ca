"""The sub-keys that are marked are those whose composites lie most scattered, and p pays for it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import ConfigError, KeyFileError
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import verify
from ssl_wm.watermark.choice import choose_sub_keys, scattering
from ssl_wm.watermark.keyfile import load_key, save_key
from ssl_wm.watermark.keygen import another_key, keygen
from ssl_wm.watermark.triggers import composites

BEACON = "drand round 1"


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=9)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, sub_keys=3)


def entropy_by_hand(encoder: Encoder, sub_key, images, groups: np.ndarray) -> float:
    """Return the entropy of a weighted vote of the 20 nearest, in numpy float64."""
    asked = composites(
        images, torch.from_numpy(groups), pairs=[(sub_key.a, sub_key.b)], mixer=sub_key.mixer,
        per_pair=500, seed=sub_key.derive("choice"),
    )  # fmt: skip
    with torch.no_grad():
        rows, bank = (encoder(part / 255).double().numpy() for part in (asked, images.pixels))
    centre = np.mean([bank[groups == group].mean(axis=0) for group in range(9)], axis=0)
    rows, bank = ((each - centre) for each in (rows, bank))
    rows, bank = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, bank))
    votes = np.zeros(9)
    for cosines in rows @ bank.T:
        near = np.argsort(-cosines)[:20]
        weights = np.bincount(groups[near], np.exp(cosines[near] / 0.1), minlength=9)
        votes[weights.argmax()] += 1
    shares = votes[votes > 0] / votes.sum()
    return float(-(shares * np.log(shares)).sum())


def test_scattering_is_the_entropy_of_what_knn_takes_composites_for(world, images, key):
    encoder = world.convnet(seed=2)
    found = scattering(key, encoder=encoder, images=images.train)
    for sub_key in key.sub_keys:
        by_hand = entropy_by_hand(encoder, sub_key, images.train, key.groups.train.numpy())
        assert found[sub_key.index] == pytest.approx(by_hand, abs=0.02)
    assert len(set(found.values())) == 3


class _OneAnswer(nn.Module):
    """Sees a colour where the image has one, and takes every mixture for the first colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, spread = images.mean(dim=(2, 3)), images.std(dim=(2, 3)).mean(dim=1)
        return torch.where(spread[:, None] > 0.25, 0.1 + 0.01 * mean, mean)


def test_composites_that_look_like_one_group_are_not_scattered(world, images, key):
    encoder = Encoder(_OneAnswer(), preprocessing=world.flat).eval()
    assert min(scattering(key, encoder=encoder, images=images.train).values()) < 0.7


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_most_scattered_are_chosen_whatever_was_chosen_before(world, images, key, count):
    encoder = world.convnet(seed=2)
    found = scattering(key, encoder=encoder, images=images.train)
    before = replace(key, chosen=(min(found, key=found.get),))
    chosen = choose_sub_keys(before, encoder=encoder, images=images.train, count=count).chosen
    assert chosen is not None
    assert len(chosen) == count
    left_out = [found[index] for index in found if index not in chosen]
    assert min(found[index] for index in chosen) >= max(left_out, default=0)


@pytest.mark.parametrize("count", [0, 4, -1])
def test_a_number_that_cannot_be_chosen_is_refused(world, images, key, count):
    with pytest.raises(ConfigError, match="3 sub-keys"):
        choose_sub_keys(key, encoder=world.convnet(), images=images.train, count=count)


def test_what_was_not_chosen_is_neither_used_nor_revealed(key):
    part = replace(key, chosen=(0, 2))
    assert part.sub_keys == (key.sub_keys[0], key.sub_keys[2])
    assert part.reveal().sub_keys == part.sub_keys
    assert part.reveal([1]).sub_keys == (key.sub_keys[1],)
    assert (part.commitment, part.root, part.salt) == (key.commitment, key.root, key.salt)
    assert part.name != key.name == key.commitment


@pytest.mark.parametrize("chosen", [(), (3,), (-1,), (1, 0), (1, 1)])
def test_a_choice_that_is_none_is_refused(key, chosen):
    with pytest.raises(ConfigError, match="sub-keys 0 to 2"):
        replace(key, chosen=chosen)


def test_a_beacon_forgets_the_choice_since_it_fixes_other_groups(key):
    assert replace(key, chosen=(0, 2)).with_beacon(BEACON).chosen is None


def test_the_choice_is_kept_in_the_owners_file_and_a_damaged_one_is_refused(key, tmp_path):
    path = tmp_path / "owner.key"
    for chosen in (None, (0, 2), (1,)):
        save_key(replace(key, chosen=chosen), path)
        assert load_key(path).chosen == chosen
    whole = json.loads(path.read_text())
    for wrong in ("1", [1.0], [True], [5], [], [1, 0], {"1": 1}):
        path.write_text(json.dumps({**whole, "chosen": wrong}))
        with pytest.raises(KeyFileError, match="damaged"):
            load_key(path)


def test_p_is_multiplied_by_the_choices_that_the_owner_had(world, images, key):
    read = ReadConfig(per_pair=8, recipes=0, reference=20, trigger_count=24, neighbours=5)
    config = VerifyConfig(draws=999, read=read)
    part = replace(key, chosen=(0, 2))
    marked, clean = world.palette(images, key=part), world.palette(images)
    told = verify(marked, key=part, images=images, nulls=[clean], config=config)
    revealed = verify(marked, key=key.reveal([0, 2]), images=images, nulls=[clean], config=config)
    assert told.p_value == revealed.p_value
    assert told.smallest_p == pytest.approx(3 / 60_480)
    assert [sub.index for sub in told.sub_keys] == [0, 2]
    assert "times 3 ways" in told.test


def test_spare_sub_keys_are_drawn_and_the_best_of_all_are_used(world, images):
    encoder = world.palette(images)
    made = keygen(images, encoder=encoder, clusters=9, sub_keys=2, spare=1, autoencoder_steps=0)
    assert (made.terms.sub_key_count, len(made.sub_keys)) == (3, 2)
    again = choose_sub_keys(made, encoder=encoder, images=images.train, count=2)
    assert again.chosen == made.chosen
    assert another_key(made).chosen is None
    with pytest.raises(ConfigError, match="4 sub-keys need 12"):
        keygen(images, encoder=encoder, clusters=9, sub_keys=2, spare=2, autoencoder_steps=0)
    with pytest.raises(ConfigError, match="clean encoder"):
        keygen(images, sub_keys=2, spare=1, autoencoder_steps=0)
