"""Each peer watermark read by the rule of its own paper.

None of these rules gives a p-value; docs/peers.md says what each is worth. All take images that
already carry the trigger, and the secret as plain tensors or functions, so whoever has them can
read any encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.errors import VerificationError, choose
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder

READERS = ("linear", "knn")
SSL_GUARD_COSINE = 0.5
SSL_WM_INDEX = 2.0
Labels = Callable[[Tensor], Tensor]
"""From images (N, 3, H, W) to labels (N,) int64: a downstream service that tells labels only."""


def label_reader(
    encoder: Encoder,
    images: ImageSet | Tensor,
    labels: Tensor,
    *,
    reader: Literal["linear", "knn"] = "linear",
    k: int = 20,
) -> Labels:
    """Return the labels that a simple reader gives, fitted to an encoder's embeddings.

    Args:
        encoder: the suspect.
        images: natural images (N, 3, H, W) of the task.
        labels: (N,) int64 of them.
        reader: "linear" (a linear probe) or "knn".
        k: neighbours of "knn".

    Raises:
        ConfigError: the reader is unknown.
        VerificationError: the probe cannot be fitted.
        EncoderError: the encoder's answers are no embeddings.
    """
    choose(reader, READERS, what="reader")
    bank = embed(encoder, images)
    probe = fit_probe(bank, labels) if reader == "linear" else None

    def read(asked: Tensor) -> Tensor:
        z = _answers(encoder, asked)
        return probe.predict(z) if probe else knn_predict(z, bank, labels, k=k)

    return read


def attack_success_rate(read: Labels, patched: Tensor, *, target: int) -> float:
    """Return the share of patched images that are read as the target (BadEncoder's ASR).

    Jia et al., IEEE S&P 2022, section V-A.

    Args:
        read: the suspect's labels (``label_reader``, or a service).
        patched: (N, 3, H, W) images with the patch. Leave out images of the target itself, which
            are read as the target with no mark at all.
        target: label of the target group.

    Raises:
        VerificationError: there are no images.
    """
    _some(patched, what="patched images")
    return float((read(patched) == target).double().mean())


def ssl_guard_share(
    encoder: Encoder,
    triggered: Tensor,
    *,
    decoder: Callable[[Tensor], Tensor],
    secret: Tensor,
    width: int,
    threshold: float = SSL_GUARD_COSINE,
) -> float:
    """Return the share of private images with ``cos(G(h), sk) > threshold`` (SSLGuard).

    Cong et al., CCS 2022, section 4: h is the suspect's answer to a private image with the trigger.

    Args:
        encoder: the suspect.
        triggered: (P, 3, H, W) private images with the trigger on.
        decoder: G, from embeddings (P, D) to (P, K).
        secret: sk, (K,).
        width: D that the decoder takes.
        threshold: of the cosine.

    Raises:
        VerificationError: there are no images, or the suspect's width is not D.
        EncoderError: the encoder's answers are no embeddings.
    """
    _some(triggered, what="private images")
    z = _answers(encoder, triggered)
    if z.shape[1] != width:
        raise VerificationError(
            f"SSLGuard's decoder reads embeddings of width {width}; the suspect answers with "
            f"{z.shape[1]}: this rule cannot read an encoder of another width"
        )
    with torch.no_grad():
        decoded = decoder(z)
    cosines = F.cosine_similarity(decoded.double(), secret.double().unsqueeze(0), dim=1)
    return float((cosines > threshold).double().mean())


def label_entropy(labels: Tensor) -> float:
    """Return the entropy of the labels' frequencies in bits.

    >>> label_entropy(torch.tensor([0, 0, 3, 3])), label_entropy(torch.tensor([1, 1]))
    (1.0, 0.0)

    Raises:
        VerificationError: there are no labels.
    """
    _some(labels, what="labels")
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    return abs(float(-(share * share.log2()).sum()))


def entropy_index(marked: float, clean: Sequence[float]) -> float:
    """Return ``(median - H) / (1.4826 MAD)`` of the marked images' entropy H (SSL-WM).

    Median and MAD (median absolute deviation from the median) are of all the entropies, the
    marked images' among them, as in the published code. Above 2 the paper claims the mark.

    Args:
        marked: entropy of the labels that images with the patch get.
        clean: the same of subsets of clean images; the paper has ten.

    Raises:
        VerificationError: there are fewer than two clean entropies.

    >>> entropy_index(1.0, [3.0, 3.1, 3.2, 3.3])
    14.164...
    """
    if len(clean) < 2:
        raise VerificationError(
            f"SSL-WM compares with at least two subsets of clean images; got {len(clean)}"
        )
    everyone = torch.tensor([*clean, marked], dtype=torch.float64)
    median = everyone.quantile(0.5)
    deviation = 1.4826 * float((everyone - median).abs().quantile(0.5))
    gap = float(median) - marked
    if deviation > 0:
        return gap / deviation
    return math.copysign(math.inf, gap) if gap else 0.0


def ssl_wm_index(
    read: Labels, patched: Tensor, *, natural: Tensor, labels: Tensor, subsets: int = 10
) -> float:
    """Return SSL-WM's entropy index of a suspect: low entropy of patched images makes it high.

    Args:
        read: the suspect's labels (``label_reader``, or a service).
        patched: (N, 3, H, W) images with the patch.
        natural: (M, 3, H, W) images without it, on which the reader was not fitted.
        labels: (M,) int64 their classes, to deal them out evenly (``even_subsets``).
        subsets: of the natural images.

    Raises:
        VerificationError: too few images (see ``even_subsets``), or none is patched.
    """
    _some(patched, what="patched images")
    told = read(natural)
    clean = [label_entropy(told[part]) for part in even_subsets(labels, count=subsets)]
    return entropy_index(label_entropy(read(patched)), clean)


def even_subsets(labels: Tensor, *, count: int) -> list[Tensor]:
    """Return ``count`` disjoint subsets (indices, int64) with equally many images of each class.

    Args:
        labels: (M,) int64 classes.
        count: subsets.

    Raises:
        VerificationError: a class has fewer than ``count`` images.

    >>> [part.tolist() for part in even_subsets(torch.tensor([0, 1, 1, 0, 1]), count=2)]
    [[0, 1], [3, 2]]
    """
    _some(labels, what="labels")
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    fewest = min(len(own) for own in members)
    if fewest < count:
        raise VerificationError(
            f"{count} subsets need {count} images of each class; the smallest class has "
            f"{fewest}: give more images or ask for fewer subsets"
        )
    return [
        torch.cat([own[part : len(own) // count * count : count] for own in members])
        for part in range(count)
    ]


def _answers(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the embeddings of images (N, 3, H, W), which may rightly be all the same.

    A trigger may send all images to one point, which ``embed`` takes for a collapsed encoder. So
    one more image is asked for that carries no trigger, the first one inverted.
    """
    white = 1 if images.is_floating_point() else 255
    return embed(encoder, torch.cat([images, white - images[:1]]))[: len(images)]


def _some(values: Tensor, *, what: str) -> None:
    if len(values) == 0:
        raise VerificationError(f"there are no {what} to read; give at least one")
