"""Groups of images that a key draws its sources and targets from: labels or clusters.

Groups are public and fixed before the key's secret is drawn, which the permutation test
needs: under the null the secret's choice among the groups is independent of the suspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.errors import DataError
from ssl_wm.rng import derive_seed

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder

LEAST_IMAGES = 8


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of the training and test images.

    Attributes:
        kind: "labels" or "clusters".
        names: one per group.
        train: (N_train,) int64 group of each training image.
        test: (N_test,) int64 group of each test image.
    """

    kind: str
    names: tuple[str, ...]
    train: Tensor
    test: Tensor

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.names)

    def of(self, split: str) -> Tensor:
        """Return the groups of the images of ``split`` ("train" or "test")."""
        return self.train if split == "train" else self.test


def label_groups(images: Images) -> Groups:
    """Return one group per class label.

    Raises:
        DataError: a class has too few images.
    """
    groups = Groups("labels", images.train.class_names, images.train.labels, images.test.labels)
    return _checked(groups, exit="add images, or use cluster groups (--no-labels)")


def cluster_groups(images: Images, *, encoder: Encoder, count: int, seed: int = 0) -> Groups:
    """Return ``count`` spherical k-means clusters of the clean encoder's centred embeddings.

    Args:
        images: training images are clustered, test images assigned to the nearest centre.
        encoder: the clean encoder.
        count: number of clusters.
        seed: of the k-means start; public.

    Raises:
        DataError: a cluster has too few images.
    """
    import faiss

    train = embed(encoder, images.train)
    mean = train.mean(dim=0)
    train = F.normalize(train - mean, dim=1)
    test = F.normalize(embed(encoder, images.test) - mean, dim=1)
    kmeans = faiss.Kmeans(
        train.shape[1],
        count,
        niter=25,
        nredo=3,
        spherical=True,
        seed=derive_seed(seed, "clusters") % 2**31,
        max_points_per_centroid=10**7,
        min_points_per_centroid=1,
    )
    kmeans.train(train.numpy())
    centres = torch.from_numpy(kmeans.centroids)
    names = tuple(f"cluster {index}" for index in range(count))
    groups = Groups(
        "clusters", names, (train @ centres.T).argmax(dim=1), (test @ centres.T).argmax(dim=1)
    )
    return _checked(groups, exit="ask for fewer clusters")


def _checked(groups: Groups, *, exit: str) -> Groups:
    for split in ("train", "test"):
        counts = torch.bincount(groups.of(split), minlength=len(groups))
        smallest = int(counts.argmin())
        if int(counts[smallest]) < LEAST_IMAGES:
            raise DataError(
                f"group '{groups.names[smallest]}' has {int(counts[smallest])} {split} images; "
                f"a watermark needs at least {LEAST_IMAGES} in every group. To mend it, {exit}"
            )
    return groups
