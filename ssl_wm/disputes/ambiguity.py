"""The ambiguity attack: a thief puts his own mark into the stolen copy and claims it too.

Both keys are then found in the disputed copy. What tells them apart is the encoder that each
party committed to: the thief's mark was put in after the theft, so it is not in the owner's own
encoder, while the owner's mark is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ssl_wm.encoders.properties import known_digest
from ssl_wm.errors import ConfigError
from ssl_wm.verification.once import Memory
from ssl_wm.verification.verify import verify

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.settings import VerifyConfig
    from ssl_wm.verification.verdict import Verdict
    from ssl_wm.watermark.open_key import OpenKey

OWNER, RIVAL = "owner", "rival"
MODEL, DISPUTED = "owner_model", "disputed"
CLAIMS = {
    "owner prior": (
        "the owner's key is found in the owner's committed encoder and in the disputed one, and "
        "the rival's key is not found in the owner's: whatever mark the rival put in came after "
        "the copy was taken"
    ),
    "rival prior": (
        "the rival's key is found in both encoders and the owner's only in his own: the owner's "
        "mark was put into an encoder that already carried the rival's"
    ),
    "rival alone": (
        "the disputed encoder carries the rival's key and not the owner's, and the owner's "
        "encoder does not carry the rival's: nothing connects the two encoders, and the owner's "
        "claim fails"
    ),
    "no claim": (
        "the disputed encoder carries neither key, so neither claim stands; a mark that was "
        "removed would look the same"
    ),
    "undecided": (
        "the rival's key is found in the owner's committed encoder as well, so the keys do not "
        "tell who was first: ask the rival for his own marked encoder and look for the owner's "
        "key in it"
    ),
    "owner unproven": (
        "the owner's key is not found in the encoder that he says he marked, so it proves "
        "nothing about the disputed one"
    ),
    "unresolved": "a verdict that the conclusion needs is inconclusive",
}


@dataclass(frozen=True)
class Ambiguity:
    """Two keys in two encoders, and what follows.

    Attributes:
        conclusion: a name in ``CLAIMS``.
        reason: the conclusion in words.
        found: "owner in owner_model", "owner in disputed", ... -> decision of ``verify``.
        verdicts: the same names -> the whole verdict.
        committed: for each party, whether the clean encoder shown (the first null) is the one
            that the key committed to: "yes", "no" or "not committed".
        order: what the dates of the commitments say; no conclusion rests on it.
        cautions: what weakens the conclusion.
    """

    conclusion: str
    reason: str
    found: dict[str, str]
    verdicts: dict[str, dict[str, Any]]
    committed: dict[str, str]
    order: str
    cautions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


def ambiguity_matrix(
    *,
    owner_model: Encoder,
    disputed: Encoder,
    owner_key: OpenKey,
    rival_key: OpenKey,
    images: Images,
    owner_nulls: Sequence[Encoder],
    rival_nulls: Sequence[Encoder],
    config: VerifyConfig | None = None,
    rival_images: Images | None = None,
    owner_date: str | None = None,
    rival_date: str | None = None,
) -> Ambiguity:
    """Return the verdicts of both keys on both encoders, and what follows from them.

    Args:
        owner_model: the marked encoder that the owner keeps, made before the dispute.
        disputed: the copy that both claim.
        owner_key: the owner's key.
        rival_key: the rival's key.
        images: those the keys were made for.
        owner_nulls: unmarked encoders, the clean one that the owner's key committed to first.
        rival_nulls: the same for the rival.
        config: of every one of the four verdicts; alpha holds for each alone.
        rival_images: those of the rival's key, where they are others.
        owner_date: ISO date or time of the owner's commitment.
        rival_date: the same of the rival's.

    Raises:
        KeyFileError: a key was made for other images.
        VerificationError: a party gave no null encoder.
        ConfigError: a date is not ISO text.
    """
    order = told_order(owner_date, rival_date)
    sides = {
        OWNER: (owner_key, images, owner_nulls),
        RIVAL: (rival_key, rival_images or images, rival_nulls),
    }
    memory = Memory()
    verdicts: dict[str, Verdict] = {}
    for who, (key, pictures, nulls) in sides.items():
        for where, encoder in ((MODEL, owner_model), (DISPUTED, disputed)):
            verdicts[f"{who} in {where}"] = verify(
                encoder, key=key, images=pictures, nulls=nulls, config=config, memory=memory
            )
    committed = {who: as_committed(key, nulls[0]) for who, (key, _, nulls) in sides.items()}
    found = {name: verdict.decision for name, verdict in verdicts.items()}
    conclusion, reason = conclude(found, committed=committed)
    return Ambiguity(
        conclusion=conclusion,
        reason=reason,
        found=found,
        verdicts={name: verdict.to_dict() for name, verdict in verdicts.items()},
        committed=committed,
        order=order,
        cautions=_cautions({OWNER: owner_key, RIVAL: rival_key}, committed),
    )


def conclude(found: dict[str, str], *, committed: dict[str, str]) -> tuple[str, str]:
    """Return (conclusion, reason) of four decisions.

    A key whose clean encoder is not the one it committed to counts as not found: its null
    encoder could have been chosen to suit. A commitment's date plays no part.

    Args:
        found: "owner in owner_model" and so on -> "detected", "not_detected", "inconclusive".
        committed: "owner" and "rival" -> "yes", "no" or "not committed".
    """
    counted = {
        name: "not_detected" if committed[name.split()[0]] == "no" else decision
        for name, decision in found.items()
    }
    claim = _claim(counted)
    reason = CLAIMS[claim]
    if claim == "unresolved":
        open_ones = [name for name, decision in counted.items() if decision == "inconclusive"]
        reason = f"{reason}: {', '.join(open_ones)}"
    ignored = [who for who, shown in committed.items() if shown == "no"]
    if ignored:
        reason += f" (verdicts of the {' and the '.join(ignored)} do not count: see cautions)"
    return claim, reason


def as_committed(key: OpenKey, clean: Encoder) -> str:
    """Return whether ``clean`` is what ``key`` committed to: "yes", "no" or "not committed"."""
    if key.terms.encoder is None:
        return "not committed"
    return "yes" if known_digest(clean) == key.terms.encoder else "no"


def told_order(owner_date: str | None, rival_date: str | None) -> str:
    """Return in words what two ISO dates say; a time without zone is taken as UTC.

    Raises:
        ConfigError: a date is not ISO text.

    >>> told_order("2025-01-02", "2025-01-02T09:00:00+02:00")
    'the owner committed first'
    >>> told_order("2025-01-02", None)
    'not told: both dates are needed'
    """
    if owner_date is None or rival_date is None:
        for date in (owner_date, rival_date):
            _moment(date or "2000-01-01")
        return "not told: both dates are needed"
    owner, rival = _moment(owner_date), _moment(rival_date)
    if owner == rival:
        return "both committed at the same time"
    return f"the {OWNER if owner < rival else RIVAL} committed first"


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"a commitment's date is ISO text such as 2025-01-31 or 2025-01-31T12:00:00Z; got "
            f"'{text}'"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _claim(decisions: dict[str, str]) -> str:
    own, copy = decisions["owner in owner_model"], decisions["owner in disputed"]
    theirs, rival = decisions["rival in owner_model"], decisions["rival in disputed"]
    if own == "not_detected":
        return "owner unproven"
    if "inconclusive" in (own, copy, theirs):
        return "unresolved"
    if copy == "detected":
        return "owner prior" if theirs == "not_detected" else "undecided"
    if rival == "inconclusive":
        return "unresolved"
    if rival == "not_detected":
        return "no claim"
    return "rival prior" if theirs == "detected" else "rival alone"


def _cautions(keys: dict[str, OpenKey], committed: dict[str, str]) -> tuple[str, ...]:
    told = []
    for who, key in keys.items():
        if not key.beacon:
            told.append(
                f"the {who}'s key has no beacon: whoever had seen these encoders before could "
                "have tried keys until one fits"
            )
        if committed[who] == "not committed":
            told.append(f"the {who}'s key did not commit to a clean encoder")
        if committed[who] == "no":
            told.append(
                f"the clean encoder that the {who} shows is not the one that his key committed "
                "to, so his key's verdicts do not count"
            )
    return tuple(told)
