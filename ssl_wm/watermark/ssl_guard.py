"""The ``ssl-guard`` embedder: private images with a trigger decode to a secret vector.

SSLGuard (Cong et al., CCS 2022). Mask, trigger, decoder and secret belong to the owner; the
trigger and the decoder are learned together with the encoder, and against a shadow encoder that
rehearses the theft.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call

from ssl_wm.encoders.embeddings import embed
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.watermark.guard_mark import GuardMark, draw_guard, write_guard
from ssl_wm.watermark.losses import cosine_distance

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.training.task import Batch
    from ssl_wm.watermark.key import WatermarkKey

FILE = "ssl-guard.secret.safetensors"


class SslGuardConfig(BaseModel):
    """Choices of the embedder.

    Attributes:
        private: training images that carry the mark.
        covered: share of an image's values that the mask replaces by the trigger's.
        code: length of the secret vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    private: int = Field(100, ge=1)
    covered: float = Field(0.35, gt=0, le=1)
    code: int = Field(256, ge=2)


class Learned(nn.Module):
    """What is trained beside the encoder: the mark's trigger and decoder, and the shadow."""

    def __init__(self, mark: GuardMark, shadow: Encoder) -> None:
        super().__init__()
        self.mark, self.shadow = mark, shadow


class SslGuard:
    """Losses of ``ssl-guard`` for one key and one clean encoder.

    With c(z) the mean over a batch of cos(G(z), sk), G the decoder, sk the secret vector, x
    natural images, x_T private images with the trigger T, f0, f and s the clean, the marked and
    the shadow encoder, d one minus the cosine:

    - encoder: ``d(f(x), f0(x)) + c(f(x))^2 + 1 - c(f(x_T))``
    - shadow: ``d(s(x), f(x))``
    - trigger and decoder: ``1 - c(f(x_T)) + 1 - c(s(x_T)) + c(f0(x_T))^2 + c(f0(x))^2 +
      c(f(x))^2 + c(s(x))^2``

    Each is minimised over its own parameters alone, and all in one step of one optimiser. The
    shadow starts from fresh weights, and answers natural images with its batch's normalisation
    statistics, as a network in training does. There is one mark for the whole key.
    """

    def __init__(
        self, clean: Encoder, images: ImageSet, key: WatermarkKey, *, config: SslGuardConfig
    ) -> None:
        self.clean, self.config = clean, config
        seed = key.sub_keys[0].derive("ssl-guard")
        order = torch.randperm(len(images), generator=torch_stream(seed, "private"))
        private = order[: config.private]
        self.private = images.take(private).cpu()
        mark = draw_guard(
            seed,
            size=images.size,
            width=embed(clean, self.private, precision="auto").shape[1],
            covered=config.covered,
            code=config.code,
            private=private,
        )
        self.learned = Learned(mark, fresh_copy(clean, seed=derive_seed(seed, "shadow")))

    def _triggered(self, batch: Batch) -> Tensor:
        """Return this step's private images with the trigger, as many as composites.

        They are taken in turn, so that an epoch sees each about equally often.
        """
        count = min(len(batch["marked"]), len(self.private))
        first = int(batch["step"]) * count
        chosen = self.private[torch.arange(first, first + count) % len(self.private)]
        natural = batch["natural"]
        return self.learned.mark.put_on(chosen.to(natural.device).to(natural.dtype) / 255)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of one batch (see ``mark_batch``); ``loss`` is minimised."""
        mark, shadow = self.learned.mark, self.learned.shadow
        natural, triggered = batch["natural"], self._triggered(batch)
        sizes = [len(natural), len(triggered)]
        own, own_triggered = encoder(torch.cat([natural, triggered.detach()])).split(sizes)
        shadowed = shadow.train()(natural)
        shadow.eval()
        with torch.no_grad():
            clean = self.clean(natural)
        far = [clean, own.detach(), shadowed.detach(), self.clean(triggered)]
        near = [frozen(each, triggered) for each in (encoder, shadow)]
        decode = mark.decoder

        def agreement(answers: Tensor) -> Tensor:
            return mark.cosines(frozen(decode, answers)).mean()

        terms = {
            "utility": cosine_distance(own, clean),
            "marked": 1 - agreement(own_triggered),
            "unmarked": agreement(own).square(),
            "shadow": cosine_distance(shadowed, own.detach()),
            "near": torch.stack([1 - mark(z).mean() for z in near]).sum(),
            "far": torch.stack([mark(z).mean().square() for z in far]).sum(),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def keep(self, folder: Path) -> None:
        """Write the mark (secret; readable by the owner alone) into ``folder`` for ``read_guard``.

        Raises:
            OutputError: the folder cannot be written to.
        """
        write_guard(self.learned.mark, folder / FILE)


def frozen(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return ``module(inputs)`` with a gradient for the inputs and none for the parameters."""
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    answers: Tensor = functional_call(module, fixed, (inputs,))
    return answers


def fresh_copy(encoder: Encoder, *, seed: int) -> Encoder:
    """Return an encoder of the same shape with fresh weights.

    Every layer that can draw its own weights does; parameters outside of such layers (the class
    token of a transformer) keep their values.
    """
    copied = copy.deepcopy(encoder).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copied.modules():
            for name in ("_reset_parameters", "reset_parameters"):
                if hasattr(module, name):
                    getattr(module, name)()
                    break
    return copied
