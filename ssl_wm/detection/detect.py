"""All detectors in one table, and what clean encoders make of a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ssl_wm.detection.anomaly import Roc, conformal_p, roc
from ssl_wm.detection.cleansing import SUSPICIOUS as ANOMALOUS
from ssl_wm.detection.cleansing import neural_cleanse, ssl_cleanse
from ssl_wm.detection.collapse import SUSPICIOUS as SMALL
from ssl_wm.detection.collapse import decree
from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.queries import lof, seams
from ssl_wm.detection.scan import against, scan_pairs
from ssl_wm.detection.settings import DetectionConfig
from ssl_wm.detection.stimulation import SUSPICIOUS as SUCCESSFUL
from ssl_wm.detection.stimulation import stimulate
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.errors import ConfigError, choose

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

__all__ = [
    "DETECTORS",
    "Detection",
    "DetectionConfig",
    "Detector",
    "Judgement",
    "Roc",
    "detect",
    "judge",
    "roc",
    "scan",
]


@dataclass(frozen=True)
class Detector:
    """One way to find a mark.

    Attributes:
        run: what carries it out.
        description: what it looks for.
        score: what the score is; higher is more suspicious.
        source: where it comes from.
        access: "weights" where gradients are needed, "answers" where embeddings are enough,
            "pixels" where the encoder is not asked.
        needs: what the images must have.
        of: what is judged: encoders, or the queries that a service is sent.
        threshold: the usual fixed threshold on the score, if there is one; it never decides.
        rescore: for scores that compare an encoder cell by cell with all others.
    """

    run: Callable[[Encoder, Given], Detection]
    description: str
    score: str
    source: str
    access: Literal["weights", "answers", "pixels"]
    needs: Literal["images", "labels"] = "images"
    of: Literal["encoders", "queries"] = "encoders"
    threshold: float | None = None
    rescore: Callable[[Detection, Sequence[Detection]], Detection] | None = None


DETECTORS: dict[str, Detector] = {
    "neural-cleanse": Detector(
        neural_cleanse, "a class that a much smaller patch reaches than the others",
        "anomaly index of the smallest patch", "Wang et al., IEEE S&P 2019", "weights",
        "labels", threshold=ANOMALOUS,
    ),
    "abs": Detector(
        stimulate, "units that raise one class alone, and a small patch that stimulates them",
        "success of the best patch", "Liu et al., ACM CCS 2019", "weights", "labels",
        threshold=SUCCESSFUL,
    ),
    "decree": Detector(
        decree, "a small patch that makes all embeddings one point",
        "1 - PL1, the share of the image that the patch leaves", "Feng et al., CVPR 2023",
        "weights", threshold=SMALL,
    ),
    "ssl-cleanse": Detector(
        ssl_cleanse, "a cluster that a much smaller patch reaches than the others",
        "anomaly index of the smallest patch", "Zheng et al., ECCV 2024", "weights",
        threshold=ANOMALOUS,
    ),
    "prms": Detector(
        scan_pairs, "two groups whose composites gather in a third one",
        "largest excess of a group, pair and mixer over the other encoders'",
        "the scan of MEA-Defender, IEEE S&P 2024", "answers", "labels", rescore=against,
    ),
    "lof": Detector(
        lof, "queries that are outliers among natural images",
        "ROC area of queries against natural images", "Breunig et al., SIGMOD 2000", "answers",
        of="queries",
    ),
    "seam": Detector(
        seams, "queries with a straight seam or little contrast",
        "ROC area of queries against natural images", "own", "pixels", of="queries",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Judgement:
    """A detection beside those of clean encoders.

    Attributes:
        detector: name of the detector.
        detection: of the suspect.
        null_scores: of the clean encoders.
        p_value: conformal p of the suspect's score among them: what decides.
        least_p: the smallest that their number allows, 1 / (1 + n).
        threshold: the usual fixed threshold, if there is one.
        beyond: whether the score is above it; says nothing without the p-value.
        nulls_beyond: number of clean encoders above it, false alarms of the fixed threshold.
    """

    detector: str
    detection: Detection
    null_scores: tuple[float, ...]
    p_value: float
    least_p: float
    threshold: float | None
    beyond: bool | None
    nulls_beyond: int | None


def scan(
    encoder: Encoder, *, detector: str, images: ImageSet, queries: Tensor | None = None,
    seed: int = 0, config: DetectionConfig | None = None,
) -> Detection:  # fmt: skip
    """Return what one detector says of one encoder; the score alone decides nothing.

    Args:
        encoder: a suspect or a clean encoder; it stays as it is.
        detector: a name in ``DETECTORS``.
        images: natural images; labels are the groups.
        queries: (Q, 3, H, W) what a service was sent, for detectors of queries; None takes
            composites of the thief's own.
        seed: of all draws; the same for all encoders that are compared.
        config: settings.

    Raises:
        ConfigError: the detector is unknown.
        DataError: there are too few images, groups or queries.
        EncoderError: the detector needs gradients and none flow.
    """
    entry = DETECTORS[choose(detector, DETECTORS, what="detector")]
    return entry.run(encoder, Given(images, queries, seed, config or DetectionConfig()))


def judge(suspect: Detection, nulls: Sequence[Detection], *, detector: str) -> Judgement:
    """Return what the detections of clean encoders make of the suspect's.

    Where scores compare encoders cell by cell, each encoder, the suspect too, is compared with
    all others, so that all are treated alike and p stays valid.

    Args:
        suspect: from ``scan``.
        nulls: from ``scan`` with the same images, queries, seed and settings.
        detector: their detector.

    Raises:
        ConfigError: the detector is unknown, or there are no nulls.
    """
    entry = DETECTORS[choose(detector, DETECTORS, what="detector")]
    if not nulls:
        raise ConfigError(
            f"the score of detector '{detector}' says nothing by itself: give at least one clean "
            "encoder (19 allow p = 0.05, 99 allow p = 0.01), or call scan for the score alone"
        )
    everyone = [suspect, *nulls]
    if entry.rescore is not None:
        everyone = [
            entry.rescore(each, [*everyone[:place], *everyone[place + 1 :]])
            for place, each in enumerate(everyone)
        ]
    scores = [each.score for each in everyone]
    p_value, least = conformal_p(scores[0], scores[1:])
    threshold = entry.threshold
    return Judgement(
        detector, everyone[0], tuple(scores[1:]), p_value, least, threshold,
        None if threshold is None else scores[0] > threshold,
        None if threshold is None else sum(score > threshold for score in scores[1:]),
    )  # fmt: skip


def detect(
    encoder: Encoder, *, detector: str, images: ImageSet, nulls: Sequence[Encoder],
    queries: Tensor | None = None, seed: int = 0, config: DetectionConfig | None = None,
) -> Judgement:  # fmt: skip
    """Return whether a detector tells the suspect from clean encoders.

    Args:
        encoder: the suspect.
        detector: a name in ``DETECTORS``.
        images: natural images; labels are the groups.
        nulls: clean encoders; p can be no smaller than 1 / (1 + their number).
        queries: as in ``scan``.
        seed: of all draws, the same for all encoders.
        config: settings.

    Raises:
        ConfigError: the detector is unknown, or there are no nulls.
        DataError: there are too few images, groups or queries.
        EncoderError: the detector needs gradients and none flow.
    """
    choose(detector, DETECTORS, what="detector")
    if not nulls:
        return judge(Detection(0.0), [], detector=detector)
    found = [
        scan(each, detector=detector, images=images, queries=queries, seed=seed, config=config)
        for each in (encoder, *nulls)
    ]
    return judge(found[0], found[1:], detector=detector)
