"""Trigger inversion: for each of K aims the smallest mask and pattern that reach it.

All K are optimised at once: their images go through the encoder together, and Adam treats each
coordinate by itself, so none depends on another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ssl_wm.detection.settings import InversionConfig
from ssl_wm.detection.triggers import Patch, in_floats, stamp
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import eval_mode
from ssl_wm.errors import EncoderError
from ssl_wm.precision import lowered
from ssl_wm.rng import torch_stream


class Aim(Protocol):
    """What images with a trigger should do."""

    def __call__(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (k,) to minimise and the share of images (k,) that obey.

        Args:
            z: (k, B, D) embeddings of the same B images with k triggers.
            which: (k,) numbers of these triggers.
        """


@dataclass(frozen=True, eq=False)
class Inverted:
    """The triggers of K aims.

    Attributes:
        masks: (K, 1, H, W) in [0, 1].
        patterns: (K, 3, H, W) in [0, 1].
        sizes: (K,) share of the image that the mask covers; 1 where none was found.
        found: (K,) whether a trigger succeeded in some round.
        success: (K,) success in the round of the trigger that was kept, 0 where none was.
    """

    masks: Tensor
    patterns: Tensor
    sizes: Tensor
    found: Tensor
    success: Tensor

    def patch(self, place: int, *, group: int | None) -> Patch:
        """Return trigger number ``place`` as a patch for ``group``."""
        return Patch(group, self.masks[place], self.patterns[place], bool(self.found[place]))


class _State:
    """Logits of masks and patterns, the weights of the masks' sizes, and the best so far."""

    def __init__(
        self, count: int, size: tuple[int, int], *, generator: Generator, config: InversionConfig,
        limit: float | None, alike: bool, device: torch.device,
    ) -> None:  # fmt: skip
        starts = 1 if alike else count
        noise = torch.randn(starts, 4, *size, generator=generator) * 0.5
        self.logits = noise.expand(count, -1, -1, -1).clone().to(device).requires_grad_(True)
        self.optimiser = torch.optim.Adam([self.logits], lr=config.learning_rate, betas=(0.5, 0.9))
        self.config, self.limit = config, limit
        self.weights = torch.full((count,), config.weight, device=device)
        masks, patterns = self.shown()
        self.best = Inverted(
            masks, patterns, torch.ones(count, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
            torch.zeros(count, device=device),
        )  # fmt: skip

    def parts(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks (k, 1, H, W) and patterns (k, 3, H, W) that gradients flow through."""
        values = self.logits[which].sigmoid()
        return values[:, :1], values[:, 1:]

    def shown(self) -> tuple[Tensor, Tensor]:
        """Return all masks and patterns without gradients."""
        values = self.logits.detach().sigmoid()
        return values[:, :1].clone(), values[:, 1:].clone()

    def judge(self, success: Tensor) -> None:
        """Keep triggers that did better in this round, and change the weights.

        Without a limit a trigger is better if it succeeds and is smaller; with one, if it lies
        within the limit and succeeds more often.
        """
        masks, patterns = self.shown()
        sizes, best = masks.mean(dim=(1, 2, 3)), self.best
        if self.limit is None:
            good = success >= self.config.success
            better = good & (sizes < best.sizes)
            heavier = good
        else:
            heavier = sizes > self.limit
            better = ~heavier & (~best.found | (success > best.success))
        fresh = ~best.found  # what is not found yet shows the latest attempt
        shown = (better | fresh).view(-1, 1, 1, 1)
        self.best = Inverted(
            torch.where(shown, masks, best.masks),
            torch.where(shown, patterns, best.patterns),
            torch.where(better, sizes, best.sizes),
            best.found | better,
            torch.where(better, success, best.success),
        )
        factor = self.config.factor
        self.weights = torch.where(heavier, self.weights * factor, self.weights / factor)


def invert(
    encoder: Encoder,
    *,
    pixels: Tensor,
    aim: Aim,
    count: int,
    seed: int,
    config: InversionConfig,
    limit: float | None = None,
    alike: bool = True,
) -> Inverted:
    """Return the triggers of ``count`` aims, on the CPU.

    Minimises ``loss + weight * mean(mask)`` over the logits of mask and pattern by Adam
    (betas 0.5 and 0.9), on images drawn anew in each step, the same for all aims. After each
    round the weight grows where the aim was reached, and shrinks elsewhere (Wang et al., 2019).

    Args:
        encoder: its weights, buffers, mode and gradient flags stay as they are.
        pixels: (N, 3, H, W) natural images, uint8.
        aim: what the triggers should do.
        count: number of triggers K.
        seed: of starts and batches.
        config: how long and how.
        limit: largest size of a mask; None seeks the smallest that succeeds.
        alike: whether all triggers start from the same noise, so that they can be compared.

    Raises:
        EncoderError: no gradient flows back to the images (a service, a function).
    """
    device = encoder.mean.device
    stream = torch_stream(seed, "inversion")
    state = _State(
        count, (pixels.shape[2], pixels.shape[3]), generator=stream, config=config, limit=limit,
        alike=alike, device=device,
    )  # fmt: skip
    batch = min(config.batch, len(pixels))
    parts = torch.arange(count, device=device).split(max(1, config.at_once // batch))
    with _held_still(encoder):
        for _ in range(config.rounds):
            total = torch.zeros(count, device=device)
            for _ in range(config.steps):
                places = torch.randperm(len(pixels), generator=stream)[:batch]
                images = in_floats(pixels[places]).to(device)
                state.optimiser.zero_grad()
                for which in parts:
                    total[which] += _step(encoder, images, state, aim, which, config)
                state.optimiser.step()
            state.judge(total / config.steps)
    best = state.best
    return Inverted(
        best.masks.cpu(), best.patterns.cpu(), best.sizes.cpu(), best.found.cpu(),
        best.success.cpu(),
    )  # fmt: skip


def _step(
    encoder: Encoder, images: Tensor, state: _State, aim: Aim, which: Tensor,
    config: InversionConfig,
) -> Tensor:  # fmt: skip
    """Add the gradients of the triggers ``which`` (k,); return their success (k,)."""
    masks, patterns = state.parts(which)
    changed = stamp(images, mask=masks.unsqueeze(1), pattern=patterns.unsqueeze(1))
    with lowered(config.precision, device=images.device):
        rows = encoder(changed.flatten(0, 1))
    if not rows.requires_grad:
        raise EncoderError(
            f"no gradient flows through encoder '{encoder.arch}', and triggers are sought by "
            "gradients: this detector needs the weights, so steal a copy of a service first"
        )
    loss, success = aim(rows.float().view(len(which), len(images), -1), which)
    objective: Tensor = (loss + state.weights[which] * masks.mean(dim=(1, 2, 3))).sum()
    objective.backward()
    return success.detach().float()


@contextmanager
def _held_still(encoder: Encoder) -> Iterator[None]:
    """Hold the encoder in eval mode and its weights without gradients."""
    asking = [part for part in encoder.parameters() if part.requires_grad]
    with eval_mode(encoder):
        for part in asking:
            part.requires_grad_(False)
        try:
            yield
        finally:
            for part in asking:
                part.requires_grad_(True)
