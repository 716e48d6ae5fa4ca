"""What ``ssl-wm remove`` does: specs in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_wm.commands.outputs import Out
from ssl_wm.commands.stages import open_chosen
from ssl_wm.config import Settings
from ssl_wm.data.image_set import Images
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder, read_facts
from ssl_wm.errors import ConfigError
from ssl_wm.removal import remove as removal
from ssl_wm.removal.attempts import REMOVALS

__all__ = ["Out", "remove"]


def remove(
    settings: Settings, *, encoder: str, attempt: str, strength: Sequence[float], out: Out,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Try to wash a watermark off an encoder, into ``out``.

    Args:
        settings: the thief's images, where the attempt needs them, and how it works.
        encoder: an encoder spec.
        attempt: a name in ``REMOVALS``, or several joined by "+".
        strength: one for each of them.
        out: where the result is saved.
        seed: of all draws.

    Raises:
        SslWmError: bad settings, images, encoder or folder, an attempt that is unknown or cannot
            be saved, or a strength that is missing or out of range.
    """
    out.check()
    names = removal.parts_of(attempt)
    removal.checked(names, strength)
    images = _needed_images(settings, names)
    before = load_encoder(encoder)
    _check_savable(before, names)
    folder = out.claim(inputs=[encoder, *([images.spec] if images else [])])
    told = {"attempt": "+".join(names), "strength": [float(value) for value in strength]}
    facts = {"encoder": encoder_digest(before), "seed": str(seed)}
    facts |= {name: str(value) for name, value in told.items()}
    if not out.begin("remove", settings=settings.removal, images=images, **facts):
        with out.running():
            after = removal.remove(
                before, attempt=names, strength=strength, images=images.train if images else None,
                seed=seed, folder=folder, config=settings.removal,
            )  # fmt: skip
        out.keep(after)
    removal.forget(folder)
    saved = read_facts(folder)
    return {
        "out": str(folder), **told, "arch": saved.arch, "width": saved.width,
        "sha256": saved.sha256,
    }  # fmt: skip


def _needed_images(settings: Settings, names: Sequence[str]) -> Images | None:
    """Return the thief's images, or None where no attempt looks at any."""
    needs = {name: REMOVALS[name].needs for name in names if REMOVALS[name].needs != "nothing"}
    if not needs:
        return None
    if "spec" not in settings.images.model_fields_set:
        name, what = next(iter(needs.items()))
        raise ConfigError(
            f"attempt '{name}' needs {what} of the thief; name them: --images FOLDER, "
            "torchvision/<Dataset> or digits, or images: spec: in --config"
        )
    return open_chosen(settings)


def _check_savable(encoder: Encoder, names: Sequence[str]) -> None:
    """Refuse what no other command could load again, before any work is done."""
    for name in names:
        if REMOVALS[name].wraps:
            raise ConfigError(
                f"'{name}' leaves the weights as they are and puts a change of the "
                f"{REMOVALS[name].kind} around the encoder, which no encoder spec names; measure "
                "it with ssl-wm bench robustness, or take ssl_wm.remove in Python"
            )
    if encoder.arch == "custom" or not encoder.backbone.state_dict():
        raise ConfigError(
            "this encoder is no architecture by name with weights (a service?), so its result "
            "could not be saved; steal a copy first"
        )
