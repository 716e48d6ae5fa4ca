"""What a report shows: composites, feature maps, null distributions, and the result itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ssl_wm.errors import DataError
from ssl_wm.report.words import printable

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_wm.verification.verdict import Verdict

KINDS = ("source A", "source B", "target", "composite", "other")


@dataclass(frozen=True)
class Gallery:
    """A few composites next to their sources.

    Attributes:
        sources_a: uint8 ``(n, 3, H, W)``, images of group A.
        sources_b: uint8 ``(n, 3, H, W)``, images of group B.
        composites: uint8 ``(n, 3, H, W)``, made of both by the key's mixer.
        others: name of another mixer -> its composites of the same pairs, uint8 ``(n, 3, H, W)``.
        mixer: the key's mixer in words.
        group_a: name of group A.
        group_b: name of group B.
        target: name of the target group.

    Raises:
        DataError: a tensor has another type or shape than ``composites``, or there is no image.
    """

    sources_a: Tensor
    sources_b: Tensor
    composites: Tensor
    others: dict[str, Tensor]
    mixer: str
    group_a: str
    group_b: str
    target: str

    def __post_init__(self) -> None:
        shape = tuple(self.composites.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise DataError(
                f"gallery composites: expected (n, 3, H, W) with n, H, W >= 1, got {shape}; "
                "pass some RGB images or no gallery"
            )
        named = {"sources_a": self.sources_a, "sources_b": self.sources_b} | self.others
        for name, images in {"composites": self.composites, **named}.items():
            if tuple(images.shape) != shape or images.dtype != torch.uint8:
                raise DataError(
                    f"gallery {printable(name)}: expected uint8 {shape} like the composites, got "
                    f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}; convert it"
                )


@dataclass(frozen=True)
class FeatureMap:
    """One encoder's feature space in two dimensions.

    Attributes:
        points: float ``(N, 2)``.
        kind: for each point "source A", "source B", "target", "composite" or "other".

    Raises:
        DataError: the shapes disagree or a kind is unknown.
    """

    points: Tensor
    kind: tuple[str, ...]

    def __post_init__(self) -> None:
        if tuple(self.points.shape) != (len(self.kind), 2):
            raise DataError(
                f"feature map: expected points ({len(self.kind)}, 2), one for each kind, got "
                f"{tuple(self.points.shape)}; project the features to two dimensions"
            )
        unknown = sorted(set(self.kind) - set(KINDS))
        if unknown:
            raise DataError(f"feature map: unknown kind {unknown[0]!r}; known: {', '.join(KINDS)}")


@dataclass(frozen=True)
class NullPlot:
    """The null of test A1 on one encoder with the key's place in it.

    Attributes:
        null: float ``(n,)``, the statistic of each decoy key.
        statistic: the statistic of the owner's key.
        p_value: of the test, 0 to 1.
    """

    null: Tensor
    statistic: float
    p_value: float


@dataclass(frozen=True)
class CarrierPlot:
    """How well one encoder knows every carrier (test C), the owner's among them.

    Attributes:
        values: float ``(n,)``, the statistic of each carrier.
        own: float ``(m,)``, those of the owner's.
        p_value: of the test, 0 to 1.
    """

    values: Tensor
    own: Tensor
    p_value: float


@dataclass(frozen=True)
class ReportData:
    """All that one report shows.

    Attributes:
        title: the page's heading.
        result: ``{"utility": {NAME: {"linear": x, "knn": x}}, "verdicts": {NAME: verdict}}``,
            accuracies and rates as fractions 0 to 1; either part and any value may be missing.
        gallery: composites next to their sources, or None.
        maps: NAME -> feature map; empty for none.
        nulls: NAME -> null of test A1; empty for none.
        settings: settings and versions, nested as they like.
        carriers: NAME -> how well carriers are known; empty for none.
    """

    title: str
    result: dict[str, Any]
    gallery: Gallery | None
    maps: dict[str, FeatureMap]
    nulls: dict[str, NullPlot]
    settings: dict[str, Any]
    carriers: dict[str, CarrierPlot] = field(default_factory=dict)


def null_plot(verdict: Verdict) -> NullPlot:
    """Return the random keys that test A1 ranked, with its p-value."""
    tests = {test.name: test for test in verdict.tests}
    return NullPlot(verdict.null, verdict.position, tests["A1"].p_value)


def carrier_plot(verdict: Verdict) -> CarrierPlot | None:
    """Return the carriers that test C ranked, with its p-value; None where it was not made."""
    tests = {test.name: test for test in verdict.tests}
    if "C" not in tests:
        return None
    places = [place - 1 for sub in verdict.sub_keys for place in sub.carriers]
    own = verdict.carried.sort().values[places]
    return CarrierPlot(verdict.carried, own, tests["C"].p_value)
