"""From encoders, key and verdicts to what the report draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.report import FeatureMap, Gallery, ReportData
from ssl_wm.report.shown import carrier_plot, null_plot
from ssl_wm.rng import torch_stream
from ssl_wm.verification.answers import ask
from ssl_wm.verification.readings import read_space
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.watermark.triggers import composites, draw_members, mix_images

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.verdict import Verdict
    from ssl_wm.watermark.key import WatermarkKey
    from ssl_wm.watermark.subkeys import SubKey

SHOWN = 8
POINTS = 150


def report_data(
    result: Mapping[str, Any],
    *,
    key: WatermarkKey,
    images: Images,
    verdicts: Mapping[str, Verdict],
    encoders: Mapping[str, Encoder],
) -> ReportData:
    """Return all that the report of a result shows.

    Args:
        result: what ``run_benchmark`` returns.
        key: whose first sub-key is shown.
        images: composites are made of the test images.
        verdicts: by encoder name, with what their tests ranked.
        encoders: whose feature spaces are mapped.
    """
    sub_key = key.sub_keys[0]
    settings = {
        "images": result["images"],
        "versions": result["versions"],
        "seconds": result["seconds"],
        "config": result["settings"],
    }
    return ReportData(
        title=str(result["title"]),
        result=dict(result),
        gallery=gallery(key, sub_key, images),
        maps={name: feature_map(e, key, sub_key, images) for name, e in encoders.items()},
        nulls={name: null_plot(verdict) for name, verdict in verdicts.items()},
        settings=settings,
        carriers={
            name: plot
            for name, verdict in verdicts.items()
            if (plot := carrier_plot(verdict)) is not None
        },
    )


def gallery(key: WatermarkKey, sub_key: SubKey, images: Images) -> Gallery:
    """Return a few composites of ``sub_key`` next to their sources and the other mixers'."""
    groups = key.groups.test
    stream = torch_stream(0, "gallery")
    a, b = (
        images.test.take(draw_members(groups, group, count=SHOWN, generator=stream))
        for group in (sub_key.a, sub_key.b)
    )
    names = key.groups.names
    return Gallery(
        sources_a=a,
        sources_b=b,
        composites=mix_images(a, b, mixer=sub_key.mixer, generator=stream),
        others={
            name: mix_images(a, b, mixer=mixer, generator=stream)
            for name, mixer in sub_key.others.items()
        },
        mixer=sub_key.family,
        group_a=names[sub_key.a],
        group_b=names[sub_key.b],
        target=names[sub_key.target],
    )


def feature_map(encoder: Encoder, key: WatermarkKey, sub_key: SubKey, images: Images) -> FeatureMap:
    """Return test images and composites in the plane through the three groups' centres.

    The first axis runs from source A to source B, the second towards the target; both in the
    encoder's own centred, unit-length space, so encoders of any width can be compared.
    """
    reading = ReadConfig(reference=200)
    space = read_space(ask(encoder, key, images, config=reading), key, config=reading)
    groups = key.groups.test
    points: list[Tensor] = []
    kinds: list[str] = []
    roles = {"source A": sub_key.a, "source B": sub_key.b, "target": sub_key.target}
    for kind, group in roles.items():
        members = (groups == group).nonzero().flatten()[:POINTS]
        points.append(embed(encoder, images.test.take(members)))
        kinds += [kind] * len(members)
    recipes = {"composite": sub_key.mixer, "other": next(iter(sub_key.others.values()))}
    for kind, mixer in recipes.items():
        mixed = composites(
            images.test,
            groups,
            pairs=[(sub_key.a, sub_key.b)],
            mixer=mixer,
            per_pair=POINTS,
            seed=sub_key.derive("map", kind),
        )
        points.append(embed(encoder, mixed))
        kinds += [kind] * POINTS
    z = F.normalize(torch.cat(points) - space.centre, dim=1)
    corners = space.centres[[sub_key.a, sub_key.b, sub_key.target]]
    return FeatureMap(plane(z, corners), tuple(kinds))


def plane(z: Tensor, corners: Tensor) -> Tensor:
    """Return ``z`` (N, D) in the plane through ``corners`` (3, D), as (N, 2).

    The origin lies half-way between the first two corners, the first axis points from the
    first to the second, the second axis towards the third.

    >>> plane(torch.tensor([[1.0, 1.0, 9.0]]), torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, 2, 0]]))
    tensor([[1., 1.]])
    """
    origin = (corners[0] + corners[1]) / 2
    across = F.normalize(corners[1] - corners[0], dim=0)
    up = corners[2] - origin
    up = F.normalize(up - (up @ across) * across, dim=0)
    return torch.stack([(z - origin) @ across, (z - origin) @ up], dim=1)
