"""Gradient accumulation: a batch goes through each encoder in parts, and the loss sees all of it.

A contrastive loss compares all images of a batch, so the sum of the losses of its parts is another
loss. Here only the encoders see parts. Of each part the embeddings alone are kept; the loss
compares those of the whole batch; in the backward pass each part is computed once more, and its
gradient is added to those before (Gao et al., RepL4NLP 2021, there for retrieval). A step then
holds the activations of one part in place of the batch's and takes one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.training.norms import GatheredNorms
from ssl_wm.training.parallel import outermost_encoders, world_size


@contextmanager
def in_parts(module: nn.Module, *, parts: int) -> Iterator[None]:
    """While the block runs, cut what each encoder in ``module`` is given into ``parts``.

    The embeddings and their gradients are those of the whole batch at once where the encoder
    answers each image by itself. Batch normalisation in training does not: it normalises each part
    by itself ("ghost" batches), and its running statistics move once for each part.

    Args:
        module: a task.
        parts: how many; 1 cuts nothing. A part has at least two images, so a small batch is cut
            into fewer.
    """
    with ExitStack() as stack:
        if parts > 1:
            for encoder in outermost_encoders(module):
                stack.enter_context(_cut(encoder, parts))
        yield


@contextmanager
def _cut(encoder: Encoder, parts: int) -> Iterator[None]:
    whole: Callable[[Tensor], Tensor] = encoder.forward

    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), _OnceMore(encoder)

    def forward(images: Tensor) -> Tensor:
        pieces = images.tensor_split(max(1, min(parts, len(images) // 2)))
        if not torch.is_grad_enabled():
            return torch.cat([whole(piece) for piece in pieces])
        rows = [checkpoint(whole, p, use_reentrant=False, context_fn=contexts) for p in pieces]
        return torch.cat(rows)

    object.__setattr__(encoder, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(encoder, "forward")


class _OnceMore:
    """Computes a part again as it was computed first; running statistics move no second time.

    It can be entered as often as a backward pass runs through the part.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.inside = ExitStack()

    def __enter__(self) -> None:
        self.inside.enter_context(GatheredNorms() if world_size() > 1 else nullcontext())
        self.before = [(buffer, buffer.clone()) for buffer in self.encoder.buffers()]

    def __exit__(self, *raised: object) -> None:
        for buffer, value in self.before:
            buffer.data.copy_(value)
        self.inside.close()
