"""What the commands behind a claim do: verify, nulls, calibrate, trace, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssl_wm.calibration import calibrate as calibration
from ssl_wm.commands.outputs import Out
from ssl_wm.commands.stages import open_chosen
from ssl_wm.config import Settings
from ssl_wm.console import say
from ssl_wm.data.image_set import Images
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.evidence import record as bundles
from ssl_wm.files import claim_file, claim_folder, write_text
from ssl_wm.nulls import make_nulls, null_folders
from ssl_wm.report.calibration import write_calibration
from ssl_wm.report.evidence import render_evidence
from ssl_wm.verification import trace as tracing
from ssl_wm.verification.questions import count_queries
from ssl_wm.verification.verify import affordable
from ssl_wm.verification.verify import verify as judge
from ssl_wm.watermark.keyfile import load_key
from ssl_wm.watermark.open_key import OpenKey

__all__ = [
    "Out", "calibrate", "check_evidence", "nulls", "report_evidence", "trace", "verify",
]  # fmt: skip
Result = dict[str, Any]


def verify(
    settings: Settings, *, key: Path, suspect: str, nulls: Sequence[str],
    sub_keys: Sequence[int] | None = None, evidence: Path | None = None, overwrite: bool = False,
) -> Result:  # fmt: skip
    """Return the verdict on a suspect as a dictionary.

    Args:
        settings: images and how to judge.
        key: the key file.
        suspect: an encoder spec.
        nulls: encoder specs, or folders of saved encoders.
        sub_keys: the sub-keys to use; None means all.
        evidence: where a bundle is sealed; None seals none.
        overwrite: whether an older bundle there may be replaced.

    Raises:
        SslWmError: bad settings, images, encoders or key, or the folder is not empty.
    """
    whole = load_key(key)
    used: OpenKey = whole if sub_keys is None else whole.reveal(sub_keys)
    if evidence is not None and not overwrite:
        claim_folder(evidence)
    images = open_chosen(settings)
    used.check_images(images)
    config = affordable(settings.verify, used)
    asked, known = load_encoder(suspect), load_nulls(nulls)
    say(f"the suspect will be sent {count_queries(used, config=config.read):,} images")
    if evidence is None:
        return judge(asked, key=used, images=images, nulls=known, config=config).to_dict()
    claim_folder(evidence, overwrite=overwrite)
    verdict = bundles.verify_with_evidence(
        asked, key=whole, images=images, nulls=known, config=config, folder=evidence,
        reveal=sub_keys, made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return {**verdict.to_dict(), "evidence": str(evidence)}


def nulls(settings: Settings, *, encoder: str, pools: Sequence[str], out: Out) -> Result:
    """Make null encoders from the owner's clean one, each in its own folder below ``out``.

    Raises:
        SslWmError: bad settings, images, encoder or folder.
    """
    out.check()
    clean, images = load_encoder(encoder), open_chosen(settings)
    size = images.train.size[0]
    others = {spec: open_images(spec, size=size).train for spec in pools}
    folder = out.claim(inputs=[encoder, images.spec, *pools])
    made = make_nulls(clean, images, config=settings.nulls, out=folder, pools=others)
    return {"out": str(folder), "encoders": [str(path) for path in made]}


def calibrate(
    settings: Settings,
    *,
    key: Path,
    nulls: Sequence[str],
    innocent: Sequence[str] = (),
    out: Out,
) -> Result:
    """Measure the rate of false accusations into ``out``.

    Args:
        settings: images, and what is tried.
        key: whose public terms are used.
        nulls: the references. Without ``innocent`` the first one alone, and all others are the
            suspects.
        innocent: the suspects.
        out: where result, decisions and figures go.

    Raises:
        SslWmError: bad settings, images, encoders, key or folder.
    """
    out.check()
    terms, images = load_key(key), open_chosen(settings)
    terms.check_images(images)
    references, suspects = spread(nulls), spread(innocent)
    if not suspects:
        references, suspects = references[:1], references[1:]
    if not suspects:
        raise ConfigError(
            f"calibrate needs a reference and at least one innocent suspect; got {len(references)} "
            "encoder. Add --innocent SPEC, or a folder that 'ssl-wm nulls' filled"
        )
    names = _names(suspects)
    folder = out.claim(inputs=[key, images.spec, *nulls, *innocent])
    measured = calibration.calibrate(
        {name: load_encoder(spec) for name, spec in zip(names, suspects, strict=True)},
        key=terms, images=images, nulls=[load_encoder(spec) for spec in references],
        config=settings.calibrate,
    )  # fmt: skip
    write_calibration(measured, folder)
    return {"out": str(folder), **measured.to_dict()}


def trace(settings: Settings, *, keys: Path, suspect: str, nulls: Sequence[str]) -> Result:
    """Return whose copy leaked as a dictionary.

    Raises:
        SslWmError: bad settings, images, encoders or keys.
    """
    licensees, images = tracing.load_keys(keys), open_chosen(settings)
    return tracing.trace(
        load_encoder(suspect), keys=licensees, images=images, nulls=load_nulls(nulls),
        config=settings.verify,
    ).to_dict()  # fmt: skip


def check_evidence(bundle: Path, *, suspect: str | None, settings: Settings | None) -> Result:
    """Return whether a bundle is whole and its verdict follows from it.

    Raises:
        SslWmError: the images or the suspect cannot be opened.
    """
    images: Images | None = open_chosen(settings) if settings else None
    asked: Encoder | None = load_encoder(suspect) if suspect else None
    if asked is not None and images is None:
        raise ConfigError("asking the suspect again needs the images: add --images SPEC")
    result = bundles.check(bundle)
    if result.ok and images is not None:
        result = bundles.check_against(bundle, images=images, suspect=asked)
    return result.to_dict()


def report_evidence(bundle: Path, *, out: Path, overwrite: bool) -> Result:
    """Write a bundle's verdict as an HTML page.

    Raises:
        SslWmError: the bundle is damaged, or the file is there already.
    """
    claim_file(out, overwrite=overwrite)
    write_text(out, render_evidence(bundle))
    return {"out": str(out)}


def _names(suspects: Sequence[str | Path]) -> list[str]:
    """Return short names that tell ``suspects`` apart.

    Raises:
        ConfigError: an encoder is named twice.
    """
    if len({str(spec) for spec in suspects}) < len(suspects):
        raise ConfigError("an innocent encoder is named twice; name each once")
    names = [Path(spec).name for spec in suspects]
    return names if len(set(names)) == len(names) else [str(spec) for spec in suspects]


def load_nulls(specs: Sequence[str]) -> list[Encoder]:
    """Return the null encoders that ``specs`` name, a folder of several opened out."""
    return [load_encoder(spec) for spec in spread(specs)]


def spread(specs: Sequence[str]) -> list[str | Path]:
    """Return ``specs`` with each folder of saved encoders replaced by what it holds."""
    found: list[str | Path] = []
    for spec in specs:
        inside = null_folders(Path(spec)) if Path(spec).is_dir() else []
        found += inside or [spec]
    return found
