"""Distillation: a fresh network learns the answers of an encoder that the thief holds already.

One round on a victim is plain extraction with the thief's own images; a second round, or one on
a copy, is double extraction.
"""

from __future__ import annotations

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.names import is_architecture
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.extraction.steal import steal
from ssl_wm.removal.given import Given
from ssl_wm.rng import derive_seed


def distil(encoder: Encoder, *, strength: float, given: Given) -> Encoder:
    """Return a network fitted to ``encoder``'s answers, by ``cosine``, from random weights.

    Args:
        encoder: what answers.
        strength: rounds; from the second on the network of the round before answers.
        given: images, of which all are asked; ``config.distil_arch`` and ``config.distil``.

    Raises:
        ConfigError: the architecture cannot be built anew, or there are no images.
        DataError, TrainingError: as in ``steal``.
    """
    arch = given.config.distil_arch or encoder.arch
    if not is_architecture(arch):
        raise ConfigError(
            f"an encoder of architecture '{arch}' cannot be built anew; name another one as "
            "distil_arch"
        )
    device = encoder.mean.device
    for number in range(int(strength)):
        config = StealConfig(
            attack="cosine", arch=arch, held_out=0, seed=derive_seed(given.seed, "distil", number),
            fit=given.config.distil,
        )  # fmt: skip
        folder = given.folder / f"round-{number + 1}" if given.folder else None
        encoder = steal(encoder, images=given.needed, config=config, folder=folder).surrogate.eval()
    return encoder.requires_grad_(True).to(device).eval()
