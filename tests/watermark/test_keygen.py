"""keygen puts together what a key needs, and only its secret is random."""

from __future__ import annotations

import pytest
import torch

from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError, DataError
from ssl_wm.watermark.keygen import another_key, keygen


def test_labels_are_the_groups_when_no_encoder_is_given(world):
    images = world.images(groups=4)
    key = keygen(images, autoencoder_steps=0)
    assert (key.groups.kind, len(key.groups), key.terms.autoencoder) == ("labels", 4, None)
    assert (key.terms.encoder, key.beacon) == (None, "")
    key.check_images(images)


def test_clusters_of_the_encoder_are_the_groups_when_one_is_given(world):
    images = world.images(groups=6)
    key = keygen(images, encoder=world.palette(images), clusters=6, autoencoder_steps=0)
    assert (key.groups.kind, len(key.groups)) == ("clusters", 6)
    again = keygen(images, encoder=world.palette(images), clusters=6, autoencoder_steps=0)
    assert torch.equal(key.groups.train, again.groups.train)
    assert key.terms.statement == again.terms.statement


def test_the_commitment_names_the_clean_encoder_whose_clusters_were_taken(world):
    """Against a rival who makes a key for the encoder after it was stolen."""
    images = world.images(groups=6)
    clean = world.palette(images)
    key = keygen(images, encoder=clean, clusters=6, autoencoder_steps=0)
    assert key.statement["encoder"] == encoder_digest(clean)
    other = world.palette(images, key=key)
    assert encoder_digest(other) != encoder_digest(clean)


@pytest.mark.parametrize(("groups", "sub_keys"), [(3, 1), (8, 1), (9, 3)])
def test_three_sub_keys_are_taken_where_the_groups_suffice(world, groups, sub_keys):
    key = keygen(world.images(groups=groups), autoencoder_steps=0)
    assert len(key.sub_keys) == sub_keys
    assert len(keygen(world.images(groups=9), sub_keys=2, autoencoder_steps=0).sub_keys) == 2


def test_only_the_secret_differs_between_two_keys(world):
    images = world.images(groups=4)
    keys = []
    for _ in range(2):
        torch.manual_seed(0)
        keys.append(keygen(images, families=("autoencoder", "stripes"), autoencoder_steps=2))
    one, two = keys
    assert one.secret != two.secret
    assert one.terms.content == two.terms.content
    assert one.commitment != two.commitment
    assert one.terms.autoencoder is not None
    same = keygen(
        images, families=("autoencoder", "stripes"), autoencoder_steps=2, secret=one.secret
    )
    assert same.commitment == one.commitment


def test_another_key_has_the_same_terms_and_a_secret_of_its_own(world):
    key = keygen(world.images(groups=4), autoencoder_steps=0, secret=world.secret(0))
    one, two = another_key(key.with_beacon("b")), another_key(key)
    assert one.terms is two.terms is key.terms
    assert len({key.secret, one.secret, two.secret}) == 3
    assert len({key.root, one.root, two.root}) == 3
    assert one.beacon == ""


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"sub_keys": 2}, ConfigError, "2 sub-keys need 6 groups"),
        ({"families": ("mosaic",)}, ConfigError, "unknown mixer 'mosaic'"),
        ({"families": ("autoencoder",)}, ConfigError, "needs an autoencoder"),
    ],
    ids=["sub-keys", "family", "no autoencoder"],
)
def test_a_key_that_cannot_work_is_refused(world, settings, error, says):
    with pytest.raises(error, match=says):
        keygen(world.images(groups=4), autoencoder_steps=0, **settings)


def test_too_few_images_are_refused(world):
    with pytest.raises(DataError, match="at least 8"):
        keygen(world.images(groups=4, test=5), autoencoder_steps=0)
