"""The speed of what reads encoders: embeddings, nearest neighbours and the probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.bench.rivals import lightly_knn, sklearn_probe, topk_neighbours
from ssl_wm.bench.side_by_side import Case, timed
from ssl_wm.bench.speed_sizes import Setup, synthetic_embeddings
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import as_matrix
from ssl_wm.encoders.load import build_encoder
from ssl_wm.encoders.nearest import nearest
from ssl_wm.encoders.properties import eval_mode
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.probe import fit_probe

TEMPERATURE = 0.1
LIGHTLY_BLOCK = 1000
TOLERANCE = 1e-4  # scikit-learn's default
ROUNDING = 1e-6  # of a float32 cosine of two rows
TIE = 1e-5  # relative difference of two votes below which float32 decides by rounding
POINTS = 0.2  # of accuracy, between two probes that count as the same


def embedding_case(setup: Setup) -> Case:
    """Images per second of ``embed``, against the backbone alone on batches made ready before."""
    sizes = setup.sizes
    encoder = build_encoder(sizes.arch, seed=setup.seed).to(setup.device).eval()
    pixels = setup.pixels[: sizes.embedded]
    ready = [
        ((part.to(setup.device) / 255 - encoder.mean) / encoder.std).contiguous(
            memory_format=torch.channels_last
        )
        for part in pixels.split(sizes.embed_batch)
    ]

    def ours() -> Tensor:
        return embed(encoder, pixels, batch_size=sizes.embed_batch)

    def bare() -> list[Tensor]:
        with eval_mode(encoder), torch.inference_mode():
            return [encoder.backbone(batch) for batch in ready]

    def checks() -> Mapping[str, Any]:
        told = zip(bare(), ready, strict=True)
        forward = torch.cat([as_matrix(rows, batch=len(batch)).cpu() for rows, batch in told])
        gap = float((forward - ours()).abs().max() / forward.abs().max())
        return {"largest_relative_difference": gap, "same": gap < 1e-4}

    items = len(pixels)
    return Case(
        "embedding", "images", replace(timed(ours, items=items, wait=setup.wait), name="embed"),
        replace(timed(bare, items=items, wait=setup.wait), name="bare forward"), bar=0.9,
        settings={
            "arch": sizes.arch, "images": items, "batch_size": sizes.embed_batch,
            "precision": "float32",
        },
        checks=checks,
    )  # fmt: skip


def knn_case(setup: Setup) -> Case:
    """Queries per second: ``knn_predict`` through FAISS against lightly's, on the CPU."""
    sizes = setup.sizes
    shape = {"width": sizes.width, "classes": sizes.classes, "seed": setup.seed}
    bank, labels = synthetic_embeddings(sizes.bank, **shape, split="bank")
    queries, _ = synthetic_embeddings(sizes.queries, **shape, split="queries")
    k = min(sizes.neighbours, sizes.bank)

    def ours() -> Tensor:
        return knn_predict(queries, bank, labels, k=k, temperature=TEMPERATURE)

    def theirs() -> Tensor:
        return lightly_knn(queries, bank, labels, k=k, temperature=TEMPERATURE, block=LIGHTLY_BLOCK)

    def checks() -> Mapping[str, Any]:
        found = nearest(queries, bank, k=k)[1]
        lists = (found, topk_neighbours(queries, bank, k=k, block=LIGHTLY_BLOCK))
        told = {
            **compare_neighbours(queries, bank, ours=lists[0], theirs=lists[1]),
            **compare_classes(queries, bank, labels, found=found, ours=ours(), theirs=theirs()),
        }
        return {**told, "same": not (told["other_neighbours"] or told["other_classes"])}

    items = len(queries)
    return Case(
        "knn", "queries", replace(timed(ours, items=items, wait=setup.wait), name="ours"),
        replace(timed(theirs, items=items, wait=setup.wait), name="lightly"), bar=2.0,
        settings={
            "bank": list(bank.shape), "queries": items, "k": k, "temperature": TEMPERATURE,
            "lightly_block": LIGHTLY_BLOCK, "device": "cpu",
        },
        checks=checks,
    )  # fmt: skip


def compare_neighbours(
    queries: Tensor, bank: Tensor, *, ours: Tensor, theirs: Tensor
) -> dict[str, int]:
    """Return for how many queries two lists of neighbours (Q, k) name the same rows of the bank.

    Lists that name other rows are compared in float64: where the rows that only one list names
    are as near as those that only the other does, within ``ROUNDING``, float32 cannot tell them
    apart.

    Returns:
        Counts of queries: ``identical_neighbours``, ``tied_neighbours`` and ``other_neighbours``,
        the last for lists that name rows of another distance, or one row twice.
    """
    ours, theirs = ours.sort(dim=1).values, theirs.sort(dim=1).values
    twice = (ours[:, 1:] == ours[:, :-1]).any(dim=1) | (theirs[:, 1:] == theirs[:, :-1]).any(dim=1)
    differ = (ours != theirs).any(dim=1)
    tied = 0
    for row in (differ & ~twice).nonzero().flatten().tolist():
        query = F.normalize(queries[row].double(), dim=0)
        mine, other = ours[row], theirs[row]
        alone = (mine[~torch.isin(mine, other)], other[~torch.isin(other, mine)])
        first, second = (
            (F.normalize(bank[rows].double(), dim=1) @ query).sort().values for rows in alone
        )
        tied += bool((first - second).abs().max() < ROUNDING)
    same = int((~differ & ~twice).sum())
    return {
        "identical_neighbours": same, "tied_neighbours": tied,
        "other_neighbours": len(ours) - same - tied,
    }  # fmt: skip


def compare_classes(
    queries: Tensor, bank: Tensor, labels: Tensor, *, found: Tensor, ours: Tensor, theirs: Tensor
) -> dict[str, int]:
    """Return for how many queries two predictions (Q,) of a class agree.

    Where they do not, the votes of the neighbours ``found`` (Q, k) are counted in float64; two
    classes whose votes differ by less than ``TIE`` of the larger are tied.

    Returns:
        Counts of queries: ``identical_classes``, ``tied_classes`` and ``other_classes``.
    """
    rows = (ours != theirs).nonzero().flatten()
    query = F.normalize(queries[rows].double(), dim=1)
    near = F.normalize(bank[found[rows]].double(), dim=2)
    weights = ((near @ query.unsqueeze(2)).squeeze(2) / TEMPERATURE).exp()
    votes = torch.zeros(len(rows), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, labels[found[rows]], weights)
    first, second = (votes.gather(1, each[rows].unsqueeze(1)) for each in (ours, theirs))
    apart = int(((first - second).abs() >= TIE * torch.maximum(first, second)).sum())
    return {
        "identical_classes": len(ours) - len(rows), "tied_classes": len(rows) - apart,
        "other_classes": apart,
    }  # fmt: skip


def probe_case(setup: Setup) -> Case:
    """Fits per second: ``fit_probe`` against scikit-learn's pipeline with the same penalty."""
    sizes = setup.sizes
    shape = {"width": sizes.width, "classes": sizes.classes, "seed": setup.seed}
    z, labels = synthetic_embeddings(sizes.probed, **shape, split="probe")
    held, truth = synthetic_embeddings(sizes.probed // 2, **shape, split="held out")

    def theirs() -> Any:
        return sklearn_probe(z, labels, strength=1.0, tolerance=TOLERANCE)

    def checks() -> Mapping[str, Any]:
        said = (
            fit_probe(z, labels).predict(held),
            torch.from_numpy(theirs().predict(held.numpy())),
        )
        mine, other = (float((each == truth).double().mean()) for each in said)
        points = 100 * abs(mine - other)
        return {
            "accuracy_ours": mine, "accuracy_scikit_learn": other, "points_apart": points,
            "same": points <= POINTS,
        }  # fmt: skip

    fits = [lambda: fit_probe(z, labels), theirs]
    ours, sklearn = (timed(work, items=1, wait=setup.wait) for work in fits)
    return Case(
        "probe", "fits", replace(ours, name="ours"), replace(sklearn, name="scikit-learn"), bar=5.0,
        settings={
            "rows": list(z.shape), "classes": sizes.classes, "held_out": len(held), "C": 1.0,
            "tolerance": TOLERANCE, "device": "cpu",
        },
        checks=checks,
    )  # fmt: skip
