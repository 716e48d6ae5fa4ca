"""Groups are a public partition with enough images in each part."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from ssl_wm.data.image_set import Images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import DataError
from ssl_wm.watermark.groups import cluster_groups, label_groups


def test_label_groups_are_the_classes(world):
    images = world.images(groups=4)
    groups = label_groups(images)
    assert (groups.kind, groups.names, len(groups)) == ("labels", images.train.class_names, 4)
    assert torch.equal(groups.of("train"), images.train.labels)
    assert torch.equal(groups.of("test"), images.test.labels)


def test_clusters_find_the_classes_of_a_good_encoder(world):
    images = world.images(groups=6)
    groups = cluster_groups(images, encoder=world.palette(images), count=6)
    assert (groups.kind, len(groups), groups.names[5]) == ("clusters", 6, "cluster 5")
    for split in ("train", "test"):
        part = groups.of(split)
        assert part.dtype == torch.int64
        assert adjusted_rand_score(getattr(images, split).labels, part) == 1
    translation = {}
    for split in ("train", "test"):
        pairs = zip(getattr(images, split).labels.tolist(), groups.of(split).tolist(), strict=True)
        translation.setdefault(split, dict(pairs))
    assert translation["train"] == translation["test"]


def test_clusters_are_spherical_centred_and_repeat(world):
    """Rows near one direction from the mean belong together, however long; seeds are fixed."""
    images = world.images(groups=4)
    encoder = world.palette(images)
    encoder.backbone.offset += 3e4
    torch.manual_seed(5)
    groups = cluster_groups(images, encoder=encoder, count=4)
    torch.manual_seed(6)
    again = cluster_groups(images, encoder=encoder, count=4)
    assert torch.equal(groups.train, again.train)
    assert torch.equal(groups.test, again.test)
    assert adjusted_rand_score(images.train.labels, groups.train) == 1
    z = embed(encoder, images.train).double()
    unit = torch.nn.functional.normalize(z - z.mean(dim=0), dim=1)
    sums = torch.stack([unit[groups.train == g].sum(dim=0) for g in range(4)])
    nearest = (unit @ torch.nn.functional.normalize(sums, dim=1).T).argmax(dim=1)
    assert torch.equal(nearest, groups.train)


def test_a_group_too_small_to_draw_from_is_named_with_a_way_out(world):
    images = world.images(groups=3, test=8)
    label_groups(images)
    short = Images("colours", images.train, images.test.subset(torch.arange(23)))
    with pytest.raises(DataError, match=r"'colour 2' has 7 test images; .* at least 8 .*--no-la"):
        label_groups(short)
    no_train = Images("colours", images.train.subset(torch.arange(3, 24)), images.test)
    with pytest.raises(DataError, match=r"'colour 0' has 7 train images"):
        label_groups(no_train)


def test_too_many_clusters_are_refused_with_a_way_out(world):
    images = world.images(groups=3, train=10, test=8)
    with pytest.raises(DataError, match="fewer clusters"):
        cluster_groups(images, encoder=world.palette(images), count=20)


def test_clusters_do_not_depend_on_the_mode_of_the_encoder(world):
    images = world.images(groups=3)
    encoder = world.convnet()
    one = cluster_groups(images, encoder=encoder, count=3)
    assert isinstance(encoder, Encoder)
    two = cluster_groups(images, encoder=encoder.train(), count=3)
    assert torch.equal(one.train, two.train)
    assert torch.equal(one.test, two.test)
