"""Evidence: a verdict with all that it rests on, in a bundle that others can check.

A bundle shows that its verdict follows from its answers and its key, and that nothing in it
changed since it was sealed. That the answers are the suspect's is shown by asking it again
(``check_against``); that the key came first, by the day on which its commitment was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import ConfigError, OutputError, VerificationError
from ssl_wm.evidence.against import check_against
from ssl_wm.evidence.bundle import (
    Bundle,
    answers_file,
    load,
    question_hash,
    recording,
    seal,
)
from ssl_wm.evidence.check import CheckResult, check
from ssl_wm.files import claim_folder
from ssl_wm.verification.answers import as_labels, ask
from ssl_wm.verification.judge import NO_NULLS
from ssl_wm.verification.questions import question_names
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.verification.verify import affordable, clean_base, judge_answers, read_nulls
from ssl_wm.versions import versions
from ssl_wm.watermark.key import RevealedKey, WatermarkKey
from ssl_wm.watermark.open_key import OpenKey

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.once import Memory
    from ssl_wm.verification.verdict import Verdict

__all__ = [
    "Bundle", "CheckResult", "check", "check_against", "load", "question_hash", "recording",
    "seal", "verify_with_evidence",
]  # fmt: skip


def verify_with_evidence(
    suspect: Encoder,
    *,
    key: OpenKey,
    images: Images,
    nulls: Sequence[Encoder],
    folder: Path,
    config: VerifyConfig | None = None,
    reveal: Sequence[int] | None = None,
    made_at: str | None = None,
    memory: Memory | None = None,
) -> Verdict:
    """Return the verdict on ``suspect``, and seal in ``folder`` what it rests on.

    When anything fails, no answers are left in the folder.

    Args:
        suspect: any encoder, a wrapped function too; asked for each set of images once.
        key: the owner's key, or some revealed sub-keys of it.
        images: those the key was made for.
        nulls: encoders known to be unmarked, the owner's clean encoder first.
        folder: of the bundle; empty, or made.
        config: threshold and effort.
        reveal: the sub-keys to use; only their leaves are stored. None means all.
        made_at: UTC time of the caller's clock, to be noted.
        memory: what was read of null encoders before (see ``verify``).

    Raises:
        KeyFileError: the key was made for other images.
        ConfigError: there is no such sub-key.
        VerificationError: no null encoder was given, or the key needs more queries than
            allowed.
        EncoderError: an encoder's embeddings are not finite, or all the same.
        OutputError: the folder is not empty or cannot be written to.
    """
    used = _revealed(key, reveal)
    used.check_images(images)
    config = affordable(config or VerifyConfig(), used)
    if not nulls:
        raise VerificationError(NO_NULLS)
    _claim(folder)
    names = question_names(used, config=config.read)
    try:
        answers = ask(suspect, used, images, config=config.read)
        answers = recording(as_labels(answers) if config.access == "labels" else answers, folder)
        base = clean_base(nulls, used, images, config=config, memory=memory)
        known = read_nulls(
            nulls, used, images, suspect=answers, config=config, memory=memory, base=base
        )
        told = {
            "suspect": known_digest(suspect),
            "nulls": [known_digest(encoder) for encoder in nulls],
        }
        verdict = judge_answers(
            answers, nulls=known, key=used, config=config, facts=told, base=base
        )
        facts = {
            "made_at": made_at,
            "versions": versions(),
            "questions": {name: question_hash(name, used, images, config.read) for name in names},
            **told,
        }
        seal(folder, verdict=verdict, key=used, config=config, nulls=known, facts=facts, base=base)
    except BaseException:
        for name in names:
            (folder / answers_file(name)).unlink(missing_ok=True)
        raise
    return verdict


def _revealed(key: OpenKey, reveal: Sequence[int] | None) -> RevealedKey:
    if isinstance(key, WatermarkKey):
        return key.reveal(reveal)
    if isinstance(key, RevealedKey) and reveal is None:
        return key
    raise ConfigError("sub-keys can be chosen from the owner's key alone; give that, or no choice")


def _claim(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"evidence folder {folder} is not empty, and a bundle is sealed once; name a new folder"
        )
    claim_folder(folder)
