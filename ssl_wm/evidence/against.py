"""Hold a bundle against what an expert has at hand: the images, the suspect, null encoders."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.embeddings import BATCH, embed_batch
from ssl_wm.encoders.properties import at_work, known_digest
from ssl_wm.errors import SslWmError, VerificationError
from ssl_wm.evidence.bundle import CLEAN, FACTS, NULLS, Bundle, answers_file, question_hash
from ssl_wm.evidence.check import CheckResult, check
from ssl_wm.evidence.manifest import DAMAGE, one_line
from ssl_wm.rng import torch_stream
from ssl_wm.verification.answers import as_labels, ask
from ssl_wm.verification.carried import Base, carried_shares
from ssl_wm.verification.questions import REFERENCE, question_names, render
from ssl_wm.verification.verify import base_of, read_nulls

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "labels": 2e-2}
"""How far answers may lie apart when asked again, as a share of the spread of the answers to
the reference images (labels: share of images). Other hardware and batch sizes alter the last
bits, by about 1e-6 in float32; another encoder's answers lie about 1 apart."""


def check_against(
    evidence: Path | CheckResult,
    *,
    images: Images | None = None,
    suspect: Encoder | None = None,
    nulls: Sequence[Encoder] = (),
    sample: int | None = 256,
    tolerance: float | None = None,
) -> CheckResult:
    """Return ``check``'s result, with a bundle also held against what an expert has at hand.

    Args:
        evidence: the bundle's folder, or what ``check`` said of it.
        images: the images that the key was made for; each set of questions is rendered again
            and its SHA-256 compared.
        suspect: asked again for a random sample of the questions; needs ``images``.
        nulls: null encoders, all of whose margins are read again; need ``images``.
        sample: images of each set that the suspect is asked again; None means all.
        tolerance: how far answers may lie apart (see ``TOLERANCE``).

    Raises:
        VerificationError: there is no such folder, or encoders are given without images.
    """
    if images is None and (suspect is not None or nulls):
        raise VerificationError("asking encoders again needs the images: give them too (--images)")
    result = check(evidence) if isinstance(evidence, Path) else evidence
    bundle = result.bundle
    if not result.ok or bundle is None or images is None:
        return result
    kind = "labels" if bundle.config.access == "labels" else bundle.config.read.precision
    limit = TOLERANCE[kind] if tolerance is None else tolerance
    steps: list[tuple[str, Callable[[], list[str]]]] = [
        (
            f"{len(bundle.facts['questions'])} sets of images render to the same bytes",
            lambda: _other_questions(bundle, images),
        )
    ]
    if suspect is not None:
        told = f"the suspect answers {sample or 'all'} images of each set as stored"
        steps.append((told, lambda: _other_answers(bundle, suspect, images, sample, limit)))
    if nulls:
        told = f"{len(nulls)} null encoders give the stored margins"
        steps.append((told, lambda: _other_margins(bundle, nulls, images, limit)))
    done = list(result.done)
    for told, compare in steps:
        try:
            problems = compare()
        except DAMAGE as error:
            problems = [f"{FACTS}: could not be held against what is at hand: {one_line(error)}"]
        if problems:
            return replace(result, problems=tuple(problems), done=tuple(done))
        done.append(told)
    return replace(result, done=tuple(done))


def _other_questions(bundle: Bundle, images: Images) -> list[str]:
    try:
        bundle.key.check_images(images)
    except SslWmError as error:
        return [f"{FACTS}: {error}"]
    key, read = bundle.key, bundle.config.read
    return [
        f"{FACTS}: the set of images '{name}' renders to other bytes than those that were asked"
        for name, sealed in bundle.facts["questions"].items()
        if question_hash(name, key, images, read) != sealed
    ]


def _other_answers(
    bundle: Bundle, suspect: Encoder, images: Images, sample: int | None, limit: float
) -> list[str]:
    key, read = bundle.key, bundle.config.read
    named = bundle.facts["suspect"]
    if named is not None and known_digest(suspect) not in (None, named):
        return [f"{FACTS}: the suspect at hand has other weights than the one that was verified"]
    reference = bundle.answer(REFERENCE)
    spread = float((reference - reference.mean(dim=0)).norm(dim=1).square().mean().sqrt())
    labels, seed = bundle.config.access == "labels", secrets.randbits(62)
    whole = ask(suspect, key, images, config=read)
    whole = as_labels(whole) if labels else whole
    problems = []
    for name in question_names(key, config=read):
        stored = bundle.answer(name)
        if sample is None or sample >= len(stored):
            rows, z = torch.arange(len(stored)), whole(name)
        else:
            order = torch.randperm(len(stored), generator=torch_stream(seed, name))
            rows = order[: max(sample, 2)].sort().values
            taken = _taken(render(name, key, images, config=read), rows)
            with at_work(suspect):
                z = torch.cat([
                    embed_batch(suspect, some, precision=read.precision) for some in taken
                ])  # fmt: skip
            z = F.one_hot(z.argmax(dim=1), z.shape[1]).float() if labels else z
        if z.shape[1] != stored.shape[1]:
            told = f"the suspect at hand answers {z.shape[1]} numbers, stored are {stored.shape[1]}"
        elif (apart := _apart(z, stored[rows], spread=spread, labels=labels)) > limit:
            told = f"the suspect at hand answers otherwise: {apart:.2g} apart, allowed {limit:.2g}"
        else:
            continue
        problems.append(f"{answers_file(name)}: {told}")
    return problems


def _taken(blocks: Iterator[Tensor], rows: Tensor) -> Iterator[Tensor]:
    """Yield the images ``rows`` (sorted) of all that ``blocks`` hold together, BATCH at most."""
    start = 0
    for block in blocks:
        inside = rows[(rows >= start) & (rows < start + len(block))] - start
        yield from (block[some] for some in inside.split(BATCH) if len(some))
        start += len(block)


def _apart(z: Tensor, stored: Tensor, *, spread: float, labels: bool) -> float:
    """Return how far answers (n, D) lie apart, on the scale of ``TOLERANCE``."""
    if labels:
        return float((z != stored).any(dim=1).double().mean())
    return float((z.double() - stored.double()).norm(dim=1).max()) / max(spread, 1e-30)


def _other_margins(
    bundle: Bundle, nulls: Sequence[Encoder], images: Images, limit: float
) -> list[str]:
    named, problems = bundle.facts["nulls"], []
    for number, encoder in enumerate(nulls):
        own = known_digest(encoder)
        if own is not None and own not in named:
            problems.append(f"{NULLS}: null encoder {number} at hand is none of the bundle's")
            continue
        place = number if own is None else named.index(own)
        if bundle.base is not None and named[place] == bundle.key.terms.encoder:
            problems += _other_base(bundle, bundle.base, encoder, images, limit)
        (margins,) = read_nulls(
            [encoder], bundle.key, images, suspect=bundle.answer, config=bundle.config,
            base=bundle.base,
        )  # fmt: skip
        stored = bundle.nulls[place]
        apart = max(
            float((one - other).abs().nan_to_num(0.0).max())
            for one, other in ((margins.tables, stored.tables), (margins.carried, stored.carried))
            if len(one)
        )
        if apart > limit:
            problems.append(
                f"{NULLS}: null encoder {place} gives other margins: {apart:.2g} apart, allowed "
                f"{limit:.2g}"
            )
    return problems


def _other_base(
    bundle: Bundle, stored: Base, clean: Encoder, images: Images, limit: float
) -> list[str]:
    """Compare what carriers were read against with what the clean encoder at hand answers."""
    base, z = (
        base_of(clean, bundle.key, images, config=bundle.config.read),
        bundle.answer(REFERENCE),
    )
    now, before = (carried_shares(z, each) for each in (base, stored))
    apart = float((now - before).abs().max()) if now.shape == before.shape else math.inf
    if apart <= limit:
        return []
    return [
        f"{CLEAN}: the clean encoder at hand answers otherwise: what the suspect knows of the "
        f"carriers lies {apart:.2g} apart, allowed {limit:.2g}"
    ]
