"""An evidence bundle: what a verdict rests on, in a folder that is sealed once.

======================  ==========================================================
``manifest.json``       size and SHA-256 of every other file, and the seal
``key.json``            the revealed sub-keys with their Merkle proofs
``settings.json``       how the suspect was read and judged
``facts.json``          time, versions, hashes of images and encoders
``suspect-*``           the suspect's answers to each set of images, (N, D) float32
``nulls.safetensors``   what was read from each null encoder, float64
``clean.safetensors``   what carriers are read against, where they are: the clean encoder's
                        answers to the reference images and all carriers of these, float32
``verdict.json``        the verdict, which all the rest yields again
======================  ==========================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_wm.encoders.properties import tensor_bytes
from ssl_wm.errors import OutputError, VerificationError
from ssl_wm.evidence.manifest import MANIFEST, changes, naming, read_manifest, write_manifest
from ssl_wm.evidence.numbers import read_base, read_nulls
from ssl_wm.files import (
    canonical_json,
    read_json,
    read_tensors,
    sha256_bytes,
    write_json,
    write_tensors,
)
from ssl_wm.verification.carried import Base, reads_carriers
from ssl_wm.verification.questions import question_names, question_size, render
from ssl_wm.verification.readings import Margins
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.watermark.keyfile import read_revealed, revealed_content

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.verification.answers import Answers
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.verification.verdict import Verdict
    from ssl_wm.watermark.key import RevealedKey
    from ssl_wm.watermark.open_key import OpenKey

VERDICT, KEY, SETTINGS, FACTS = "verdict.json", "key.json", "settings.json", "facts.json"
NULLS, CLEAN = "nulls.safetensors", "clean.safetensors"
FACT_NAMES = ("made_at", "versions", "questions", "suspect", "nulls")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was opened.

    Attributes:
        folder: where it lies.
        manifest: names of its files with sizes and hashes, and the seal.
        key: the revealed sub-keys, proved to be those of the commitment.
        config: how the suspect was read and judged.
        facts: when and with which versions it was made, hashes of images and encoders.
        verdict: the verdict that was stored.
        nulls: what was read from each null encoder.
        base: what carriers are read against; None where they are not read.
    """

    folder: Path
    manifest: dict[str, Any]
    key: RevealedKey
    config: VerifyConfig
    facts: dict[str, Any]
    verdict: dict[str, Any]
    nulls: tuple[Margins, ...]
    base: Base | None

    @property
    def seal(self) -> str:
        """SHA-256 that stands for the whole bundle."""
        return str(self.manifest["seal"])

    def answer(self, name: str) -> Tensor:
        """Return the suspect's answers (N, D) float32 to the set ``name``, read from its file.

        Raises:
            VerificationError: they are not what this set asks for.
        """
        file = answers_file(name)
        with naming(file):
            z = read_tensors(self.folder / file)["answers"]
            count = question_size(name, self.key, config=self.config.read)
            if z.dtype != torch.float32 or z.ndim != 2 or len(z) != count or not z.shape[1]:
                raise ValueError(f"holds {z.dtype} {tuple(z.shape)}; expected float32 ({count}, D)")
            if not bool(z.isfinite().all()):
                raise ValueError("holds answers that are not finite")
        return z


def answers_file(name: str) -> str:
    """Return the file of the suspect's answers to the set ``name``.

    >>> answers_file("pairs/0")
    'suspect-pairs-0.safetensors'
    """
    return f"suspect-{name.replace('/', '-')}.safetensors"


def expected_files(key: OpenKey, config: VerifyConfig) -> set[str]:
    """Return the names of all files of a bundle but its manifest."""
    asked = question_names(key, config=config.read)
    clean = {CLEAN} if reads_carriers(key, config) else set()
    return {KEY, SETTINGS, FACTS, VERDICT, NULLS, *clean, *map(answers_file, asked)}


def recording(answers: Answers, folder: Path) -> Answers:
    """Return ``answers`` that are written to ``folder`` as they come, one file per set.

    A set that is asked for again is read from its file, so the suspect is sent each image once
    and only one set is held in memory.
    """

    def answer(name: str) -> Tensor:
        path = folder / answers_file(name)
        if not path.exists():
            write_tensors(path, {"answers": answers(name).float()})
        return read_tensors(path, error=VerificationError)["answers"]

    return answer


def question_hash(name: str, key: OpenKey, images: Images, config: ReadConfig) -> str:
    """Return the SHA-256 of the set ``name`` as it is rendered.

    It is that of the canonical JSON ``["torch.uint8",[N,3,H,W]]`` and then all pixels, which is
    also the fingerprint of the whole tensor (``encoders.embeddings.fingerprint``).
    """
    count, digest = question_size(name, key, config=config), None
    for block in render(name, key, images, config=config):
        if digest is None:
            head = canonical_json([str(block.dtype), [count, *block.shape[1:]]])
            digest = hashlib.sha256(head)
        digest.update(tensor_bytes(block.contiguous()))
    return digest.hexdigest() if digest else sha256_bytes(b"")


def seal(
    folder: Path,
    *,
    verdict: Verdict,
    key: RevealedKey,
    config: VerifyConfig,
    nulls: Sequence[Margins],
    facts: Mapping[str, Any],
    base: Base | None = None,
) -> str:
    """Write the rest of a bundle around recorded answers, the manifest last; return the seal.

    Args:
        folder: holds the answers that ``recording`` wrote, and nothing else.
        verdict: what follows from them.
        key: the sub-keys that were used; nothing of others is written.
        config: as it was used, after any limit on queries.
        nulls: what was read from each null encoder.
        facts: "made_at" (UTC time), "versions", "questions" (SHA-256 by set), "suspect" (digest)
            and "nulls" (digests).
        base: what carriers were read against, where they were.

    Raises:
        OutputError: something else is in the folder or cannot be written.
        VerificationError: answers to a set are missing.
    """
    answers = {answers_file(name) for name in question_names(key, config=config.read)}
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - answers:
        raise OutputError(
            f"evidence folder {folder} is not empty: it holds {min(there - answers)!r}; a bundle "
            "is sealed once. Name a new folder"
        )
    if answers - there:
        raise VerificationError(
            f"cannot seal {folder}: the suspect's answers in {min(answers - there)} are missing; "
            "record them first (verify --evidence)"
        )
    write_json(folder / KEY, revealed_content(key))
    write_json(folder / SETTINGS, config.model_dump(mode="json"))
    write_json(folder / FACTS, {"images": key.fingerprints, **facts})
    write_json(folder / VERDICT, verdict.to_dict())
    parts = ("tables", "own", "recipes", *(("carried",) if base else ()))
    write_tensors(
        folder / NULLS,
        {part: torch.stack([getattr(null, part) for null in nulls]) for part in parts},
    )
    if base is not None:
        write_tensors(folder / CLEAN, {"z": base.z, "carriers": base.carriers})
    return write_manifest(folder, expected_files(key, config))


def load(folder: Path) -> Bundle:
    """Return the bundle in ``folder``, whose bytes are all as they were sealed.

    Raises:
        VerificationError: a file was changed, added, removed or renamed, or makes no sense.
    """
    problems = changes(folder)
    if problems:
        raise VerificationError(f"evidence {folder} is damaged. " + "; ".join(problems))
    return open_bundle(folder)


def open_bundle(folder: Path) -> Bundle:
    """Return the bundle in ``folder`` without holding its bytes against the manifest.

    Raises:
        VerificationError: a file makes no sense; its name comes first.
    """
    content = {}
    for name in (KEY, SETTINGS, FACTS, VERDICT):
        with naming(name):
            content[name] = read_json(folder / name)
            if not isinstance(content[name], dict):
                raise TypeError("holds no JSON object")
    with naming(KEY):
        key = read_revealed(content[KEY])
        len(key.sub_keys)  # that all can be opened
    with naming(SETTINGS):
        config = VerifyConfig.as_written(content[SETTINGS])
    with naming(FACTS):
        facts = _checked_facts(content[FACTS], key, config)
    base = None
    with naming(CLEAN):
        if reads_carriers(key, config):
            base = read_base(folder / CLEAN, key, config)
    with naming(NULLS):
        carriers = 0 if base is None else base.carriers.shape[1]
        nulls = read_nulls(
            folder / NULLS, key, config, count=len(facts["nulls"]), carriers=carriers
        )
    with naming(MANIFEST):
        manifest = read_manifest(folder)
        strange = set(manifest["files"]) ^ expected_files(key, config)
        if strange:
            raise ValueError(f"{min(strange)!r} is missing from it, or no part of a bundle")
    return Bundle(folder, manifest, key, config, facts, content[VERDICT], nulls, base)


def _checked_facts(facts: dict[str, Any], key: OpenKey, config: VerifyConfig) -> dict[str, Any]:
    if facts["images"] != key.fingerprints:
        raise ValueError("names other images than the key does")
    missing = [name for name in FACT_NAMES if name not in facts]
    if missing:
        raise ValueError(f"does not say '{missing[0]}'")
    asked = question_names(key, config=config.read)
    if sorted(facts["questions"]) != sorted(asked):
        raise ValueError("names other sets of images than this key and these settings ask about")
    if not isinstance(facts["nulls"], list) or not facts["nulls"]:
        raise ValueError("names no null encoder")
    return facts
