"""The page of an evidence bundle: one a lawyer can read and an expert can check."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_wm.errors import VerificationError
from ssl_wm.evidence.check import CheckResult, check
from ssl_wm.report.html import _inline
from ssl_wm.report.shown import carrier_plot, null_plot
from ssl_wm.report.tables import setting_rows, sub_key_rows
from ssl_wm.report.words import (
    DASH,
    DECISIONS,
    count,
    decimal,
    explain,
    p_text,
    percent,
    printable,
)
from ssl_wm.watermark.mixers import describe_mixer

if TYPE_CHECKING:
    from ssl_wm.evidence.bundle import Bundle
    from ssl_wm.report.shown import Gallery
    from ssl_wm.verification.verdict import Verdict
    from ssl_wm.watermark.subkeys import SubKey

HEADLINES = {
    "detected": "The owner's mark is in {}.",
    "not_detected": "The owner's mark is not found in {}.",
    "inconclusive": "The evidence on {} does not decide.",
}
TESTS = {
    "A1": (
        "Would a random key fit as well?",
        "The verdict rests on this test, together with C where that was made. It holds for every "
        "suspect that is independent of the key, whatever it was trained on.",
    ),
    "C": (
        "Would random carriers be known as well?",
        "Carriers are secret functions of natural images that the owner added to the answers. It "
        "holds as A1 does, and the verdict rests on both together.",
    ),
    "A2": (
        "Would another recipe for the same groups fit as well?",
        "A small p says that the secret way of joining images matters, not only the choice of "
        "groups. The verdict does not need it.",
    ),
    "B": (
        "Does the suspect stand out among encoders known to be unmarked?",
        "It holds if an innocent suspect would be like these encoders; few of them allow no "
        "small p.",
    ),
}


def render_evidence(
    evidence: Path | CheckResult, *, gallery: Gallery | None = None, name: str = "the suspect"
) -> str:
    """Return the page of a bundle as one HTML file that loads nothing and has no script.

    All numbers are recomputed from the bundle's answers (``check``); none is taken from the
    stored verdict.

    Args:
        evidence: the bundle's folder, or what ``check`` or ``check_against`` said of it.
        gallery: a few composites, where the images are at hand.
        name: what the suspect is called.

    Raises:
        VerificationError: the bundle is damaged, or its verdict does not follow from it.
    """
    from jinja2 import Environment, StrictUndefined

    result = check(evidence) if isinstance(evidence, Path) else evidence
    bundle, verdict = result.bundle, result.verdict
    if not result.ok or bundle is None or verdict is None:
        raise VerificationError(
            f"this bundle is damaged, so no page is made of it. {'; '.join(result.problems)}"
        )
    told = verdict.to_dict()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    page = environment.from_string(_read("evidence.html.jinja")).render(
        style=_read("report.html.jinja").partition("<style>")[2].partition("</style>")[0],
        name=printable(name),
        headline=HEADLINES[verdict.decision].format(printable(name)),
        card=_card(name, told),
        done=[printable(line) for line in result.done],
        test=_test(bundle, verdict),
        rests=_rests(bundle, verdict),
        tests=_tests(told),
        parts=_sub_keys(bundle, told),
        figures=_figures(verdict, gallery, name),
        gallery=gallery,
        hashes=_hashes(bundle),
        settings=setting_rows(
            {"how it was judged": bundle.config.model_dump(), "versions": bundle.facts["versions"]}
        ),
        made_at=printable(bundle.facts["made_at"] or "a day that was not noted"),
        seal=bundle.seal,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def recipe_text(sub_key: SubKey) -> str:
    """Return a sub-key's recipe in words."""
    facts = describe_mixer(sub_key.mixer)
    share = percent(facts.get("share", facts.get("cut")), sign=" %")
    if sub_key.family == "crop-paste":
        places = "A left, B right" if facts["vertical"] else "A above, B below"
        return f"crop-paste: {places}, seam at {share}"
    if sub_key.family == "pixel-merge":
        return f"pixel-merge: average with {share} of A"
    if sub_key.family == "stripes":
        kind = "columns" if facts["vertical"] else "rows"
        shift = decimal(facts["shift"])
        return f"stripes: {facts['count']} {kind}, A first, shifted by {shift} of a stripe"
    return f"{sub_key.family}: {share} of A's code, the rest of B's"


def _read(file: str) -> str:
    return resources.files("ssl_wm.report").joinpath(file).read_text(encoding="utf-8")


def _card(name: str, told: Mapping[str, Any]) -> dict[str, str]:
    return {
        "decision": str(told["decision"]),
        "told": DECISIONS[str(told["decision"])].capitalize(),
        "sentence": explain(name, told),
        "p": p_text(told["p_value"]),
        "alpha": p_text(told["alpha"]),
        "wsr": percent(told["wsr"], sign=" %"),
        "wfpr": percent(told["wfpr"], sign=" %"),
    }


def _test(bundle: Bundle, verdict: Verdict) -> dict[str, str | bool]:
    """Return the numbers that the text on what was tested speaks of."""
    facts, config = verdict.facts, bundle.config
    odds = round(1 / verdict.alpha)
    return {
        "queries": count(facts["queries"]),
        "groups": count(facts["groups"]),
        "kind": "classes" if bundle.key.groups.kind == "labels" else "clusters",
        "sub_keys": count(len(verdict.sub_keys)),
        "in_all": count(facts["sub_keys_in_all"]),
        "nulls": count(len(bundle.nulls)),
        "p": p_text(verdict.p_value),
        "smallest": p_text(verdict.smallest_p),
        "alpha": p_text(verdict.alpha),
        "odds": count(odds),
        "natural_only": config.read.natural_only,
        "evened": config.read.space == "evened",
        "fitted": config.read.centring != "mean",
        "answers": "labels only" if config.access == "labels" else "embeddings",
    }


def _rests(bundle: Bundle, verdict: Verdict) -> list[tuple[str, str, str]]:
    """Return each assumption: what it is, what the bundle shows, what to look for elsewhere."""
    key = bundle.key
    drawn = (
        "This key has no public value mixed in, so nothing here shows that its owner did not draw "
        "many keys and keep one that suits.",
        "What the owner can show of how the key was made.",
    )
    if key.beacon:
        drawn = (
            "The commitment and this public value together shuffle the groups and draw the "
            f"recipes: {printable(key.beacon)}. The owner could not choose the outcome.",
            "That the value was published after the commitment, and that the owner had no hand "
            "in it.",
        )
    hidden = key.terms.sub_key_count - len(key.leaves)
    chosen = (
        f" {len(key.leaves)} of {key.terms.sub_key_count} sub-keys are revealed; p is multiplied "
        "by the number of ways to choose them."
        if hidden
        else ""
    )
    look = bundle.config.look
    looks = (
        f"The limit is that of suspect number {look} of this key, out of a budget of "
        f"{p_text(bundle.config.alpha)} for all."
        if look is not None
        else "The limit is that of a key used on one suspect, once."
    )
    return [
        (
            "The key was fixed before the suspect was there",
            "Each revealed sub-key leads, by its Merkle proof, to the commitment below.",
            "A dated publication or timestamp of the commitment that is older than the suspect.",
        ),
        ("Groups and recipes were drawn, not chosen", drawn[0] + chosen, drawn[1]),
        ("The null encoders were chosen without the key", _null_text(bundle), "Where they come "
         "from. Any choice made without the secret keeps test A1 valid."),
        (
            "The answers are the suspect's",
            f"The bundle holds all answers, to {count(verdict.facts['queries'])} images, and the "
            "SHA-256 of the images. Which images are asked follows from key and settings.",
            "Ask the suspect again: the last command below does so for a random sample.",
        ),
        ("Suspects were not tried until one fits", looks, "How often this key was used before."),
    ]  # fmt: skip


def _null_text(bundle: Bundle) -> str:
    committed, known = bundle.key.terms.encoder, bundle.facts["nulls"]
    told = f"There are {len(known)}, with what was read from each."
    if committed is None:
        return f"{told} The commitment names no clean encoder."
    if committed in known:
        return f"{told} The clean encoder that the commitment names is among them."
    return f"{told} The clean encoder that the commitment names is not among them."


def _tests(told: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": printable(test["name"]),
            "asks": TESTS.get(test["name"], (DASH, ""))[0],
            "note": TESTS.get(test["name"], ("", ""))[1],
            "says": printable(test["says"]),
            "p": p_text(test["p_value"]),
            "smallest": p_text(test["smallest_p"]),
        }
        for test in told["tests"]
    ]


def _sub_keys(bundle: Bundle, told: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of the table of sub-keys, one column each; the first row has their numbers."""
    heads, rows = sub_key_rows({"": told})
    names = bundle.key.groups.names
    columns = [["sub-key", "groups", "recipe", *heads[2:], "contrast above the nulls, 95 %"]]
    for sub_key, part, row in zip(bundle.key.sub_keys, told["sub_keys"], rows, strict=True):
        a, b, target = (printable(names[g]) for g in (sub_key.a, sub_key.b, sub_key.target))
        low, high = (decimal(end) for end in part["interval"])
        columns.append([str(sub_key.index), f"{a} with {b} \u2192 {target}", recipe_text(sub_key),
                        *row[2:], f"{low} to {high}"])  # fmt: skip
    return [list(row) for row in zip(*columns, strict=True)]


def _figures(verdict: Verdict, gallery: Gallery | None, name: str) -> dict[str, str]:
    from ssl_wm.report import plots, rank_plots

    found = {"null": _inline(rank_plots.null_figure({name: null_plot(verdict)}))}
    carried = carrier_plot(verdict)
    if carried is not None:
        found["carriers"] = _inline(rank_plots.carriers_figure({name: carried}))
    if gallery is not None:
        found["gallery"] = _inline(plots.gallery_figure(gallery))
    return found


def _hashes(bundle: Bundle) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return tables of (what, SHA-256)."""
    key, facts = bundle.key, bundle.facts
    none = "none: a function without weights"
    made = [
        ("seal of this bundle", bundle.seal),
        ("commitment of the key", key.commitment),
        ("Merkle root of the sub-keys", key.root.hex()),
        ("training images", key.fingerprints["train"]),
        ("test images", key.fingerprints["test"]),
        ("suspect, weights and preprocessing", facts["suspect"] or none),
        *((f"null encoder {n}", digest or none) for n, digest in enumerate(facts["nulls"], 1)),
    ]
    return [
        ("What the evidence is about", [(what, printable(value)) for what, value in made]),
        ("Sets of images that were asked", [
            (printable(name), printable(value)) for name, value in facts["questions"].items()
        ]),
        ("Files of the bundle", [
            (printable(name), printable(entry["sha256"]))
            for name, entry in bundle.manifest["files"].items()
        ]),
    ]  # fmt: skip
