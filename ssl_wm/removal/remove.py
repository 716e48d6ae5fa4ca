"""Carry attempts out: one, or several one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import check_finite, encoder_digest
from ssl_wm.errors import ConfigError, EncoderError, choose
from ssl_wm.removal.attempts import REMOVALS, Removal
from ssl_wm.removal.given import Given, RemovalConfig, copy_of, weights_of
from ssl_wm.removal.inputs import Filtered
from ssl_wm.removal.outputs import Answered
from ssl_wm.training.loop import finish

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet

__all__ = ["REMOVALS", "Removal", "RemovalConfig", "checked", "forget", "parts_of", "remove"]


def remove(
    encoder: Encoder,
    *,
    attempt: str | Sequence[str],
    strength: float | Sequence[float],
    images: ImageSet | None = None,
    seed: int = 0,
    folder: Path | None = None,
    config: RemovalConfig | None = None,
) -> Encoder:
    """Return a new encoder: ``encoder`` after an attempt to wash its watermark off.

    Args:
        encoder: a victim or a copy of it; it stays as it is.
        attempt: a name in ``REMOVALS``, several joined by "+" (``"prune+noise"``), or a list;
            carried out from left to right.
        strength: one for each attempt, as its ``dial`` says.
        images: the thief's images, where the attempt needs them (``needs``).
        seed: of all draws.
        folder: where an attempt that trains keeps checkpoint and metrics; a run found there
            goes on. ``forget(folder)`` drops the checkpoints when the result has been saved.
        config: settings of attempts that train or look at images.

    Returns:
        An encoder in eval mode, on the same device. One whose weights are plain keeps its
        architecture's name and can be saved and loaded by it; one behind a wrapper is "custom".
        Its ``made`` says what was done and to which weights.

    Raises:
        ConfigError: an attempt is unknown, a strength is out of range or missing, images are
            missing, or the attempts do not go in this order.
        DataError: the labels hold fewer than two classes, or there are too few images.
        EncoderError: the encoder has no weights to change, or the attempt broke it.
        TrainingError: a loss is not finite, or the checkpoint is of another run.
    """
    names = parts_of(attempt)
    strengths = checked(names, strength)
    given = Given(images, seed, folder, config or RemovalConfig())
    _check_order(names, encoder)
    for name in names:
        if REMOVALS[name].needs != "nothing" and images is None:
            raise ConfigError(
                f"attempt '{name}' needs {REMOVALS[name].needs} of the thief; give images="
            )
    if any(REMOVALS[name].white_box for name in names):
        weights_of(encoder)
    result = copy_of(encoder)
    for place, (name, value) in enumerate(zip(names, strengths, strict=True)):
        entry = REMOVALS[name]
        if value == entry.neutral:
            continue
        part = given
        if folder is not None and len(names) > 1:
            part = replace(given, folder=folder / f"{place + 1}-{name}")
        result = entry.run(result, strength=value, given=part)
    if result is encoder:
        return encoder
    check_finite(result.backbone.state_dict(), what=f"after {'+'.join(names)}")
    result.made = {
        "stage": "remove",
        "attempt": "+".join(names),
        "strength": list(strengths),
        "seed": seed,
        "config": given.config.model_dump(mode="json"),
        "from": encoder_digest(encoder) if encoder.backbone.state_dict() else encoder.arch,
    }
    return result.eval()


def parts_of(attempt: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the attempts in ``attempt``.

    Raises:
        ConfigError: there is none, or one is unknown (the message names the nearest).

    >>> parts_of("prune + noise"), parts_of(["prune", "noise"])
    (('prune', 'noise'), ('prune', 'noise'))
    """
    given = attempt.split("+") if isinstance(attempt, str) else attempt
    names = tuple(name.strip() for name in given)
    if not names:
        raise ConfigError("name at least one attempt")
    return tuple(choose(name, REMOVALS, what="attempt") for name in names)


def checked(names: Sequence[str], strength: float | Sequence[float]) -> tuple[float, ...]:
    """Return the strength of each attempt.

    Raises:
        ConfigError: there are more or fewer strengths than attempts, or one is out of range.

    >>> checked(["prune", "noise"], [0.5, 0.03])
    (0.5, 0.03)
    """
    values = tuple(strength) if isinstance(strength, Sequence) else (strength,)
    if len(values) != len(names):
        raise ConfigError(
            f"{len(names)} attempts ({'+'.join(names)}) need as many strengths; got {len(values)}"
        )
    for name, value in zip(names, values, strict=True):
        entry = REMOVALS[name]
        inside = math.isfinite(value) and entry.low <= value <= entry.high
        if value != entry.neutral and not (inside and (not entry.whole or value == int(value))):
            raise ConfigError(
                f"'{name}' takes {_range(entry)}: {entry.dial}; got {value:g}. A usual sweep is "
                f"{', '.join(f'{each:g}' for each in entry.strengths)}"
            )
    return values


def forget(folder: Path) -> None:
    """Drop the checkpoints of all runs in ``folder``, when their result has been saved."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        finish(place)


def _range(entry: Removal) -> str:
    what = "a whole number" if entry.whole else "a number"
    top = "" if math.isinf(entry.high) else f" to {entry.high:g}"
    return f"{what} from {entry.low:g}{top}"


def _check_order(names: Sequence[str], encoder: Encoder) -> None:
    """Do nothing where no attempt on weights follows one on inputs or outputs."""
    around: str | None = None
    for name in names:
        if not REMOVALS[name].white_box:
            around = around or name
        elif around is not None:
            raise ConfigError(
                f"'{name}' changes weights and '{around}' puts something around the encoder; "
                f"write '{name}+{around}'"
            )
    within = any(isinstance(part, Answered | Filtered) for part in encoder.backbone.modules())
    if within and REMOVALS[names[0]].kind == "training":
        raise EncoderError(
            f"'{names[0]}' trains, and this encoder is behind a change of its inputs or outputs "
            "that lets no gradient through; train first"
        )
