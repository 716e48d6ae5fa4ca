"""What is asked next: Jacobian-based augmentation, and a bandit over clusters of the pool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.properties import eval_mode, tensor_bytes
from ssl_wm.extraction.attacks import Rounds
from ssl_wm.extraction.bandit import GradientBandit, rewards
from ssl_wm.extraction.pool import QueryPool
from ssl_wm.extraction.queries import TransferSet
from ssl_wm.extraction.selection import clusters_of
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.files import sha256_bytes
from ssl_wm.rng import torch_stream

if TYPE_CHECKING:
    from ssl_wm.data.image_set import ImageSet


class Policy(ABC):
    """What is asked in a round, and what is learned from the answers."""

    def __init__(self, pool: ImageSet, *, config: StealConfig, rounds: Rounds, held: int) -> None:
        self.pool, self.config, self.rounds, self.held = pool, config, rounds, held

    @abstractmethod
    def propose(
        self, number: int, *, size: int, surrogate: Encoder, known: TransferSet
    ) -> tuple[Tensor, Tensor]:
        """Return pool indices (n,) or made images (n, 3, H, W) uint8, n at most ``size``."""

    @abstractmethod
    def learn(self, asked: TransferSet, *, surrogate: Encoder, known: TransferSet) -> None:
        """Learn from the answers of a round; ``known`` are the earlier ones."""

    @abstractmethod
    def settle(self, surrogate: Encoder) -> None:
        """Look at the interim surrogate after each training; what is noted is kept on disk."""

    def interim(self, count: int, *, fresh: int, number: int) -> Tensor:
        """Return the rows, of ``count``, that the interim surrogate is trained on."""
        return torch.arange(self.held, count)

    def state(self) -> dict[str, Tensor]:
        """Return what was learned."""
        return {"number": torch.zeros(1)}

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what was learned."""


class Jacobian(Policy):
    """Jacobian-based augmentation (Papernot et al., AsiaCCS 2017), for embeddings.

    Each round draws parents from all that was answered and not held out (a reservoir, so that
    the set does not double), and moves each along the sign of the disagreement's gradient.
    """

    def propose(
        self, number: int, *, size: int, surrogate: Encoder, known: TransferSet
    ) -> tuple[Tensor, Tensor]:
        """Return new images; one whose bytes were sent before is left out."""
        images = QueryPool(self.pool, made_images(known, self.pool))
        stream = torch_stream(self.config.seed, "parents", number)
        rows = self.held + torch.randperm(len(known.indices) - self.held, generator=stream)[:size]
        sign = -1 if (number - 1) // self.rounds.flip % 2 else 1
        children = [
            move(
                surrogate, images.take(known.indices[part]), known.embeddings[part],
                step=sign * self.rounds.step,
            ).cpu()
            for part in rows.split(256)
        ]  # fmt: skip
        seen = {_digest(each) for part in known.indices.split(1024) for each in images.take(part)}
        fresh = []
        for child in torch.cat(children):
            if (name := _digest(child)) not in seen:
                seen.add(name)
                fresh.append(child)
        none = torch.empty(0, dtype=torch.int64)
        return none, torch.stack(fresh) if fresh else made_images(None, self.pool)

    def learn(self, asked: TransferSet, *, surrogate: Encoder, known: TransferSet) -> None:
        """Do nothing: the interim surrogate is all that this policy knows."""

    def settle(self, surrogate: Encoder) -> None:
        """Do nothing."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""


class Bandit(Policy):
    """Knockoff's adaptive policy: a gradient bandit over clusters of the pool.

    The clusters are made once, of the features of the interim surrogate after the first images.
    The interim surrogate trains on each batch with as many earlier answers.
    """

    bandit: GradientBandit
    clusters: Tensor

    def settle(self, surrogate: Encoder) -> None:
        """Make the clusters, the first time."""
        if not hasattr(self, "clusters"):
            count = min(self.rounds.clusters, len(self.pool))
            features = embed(surrogate, self.pool)
            self.clusters = clusters_of(features, count=count, seed=self.config.seed)
            self.bandit = GradientBandit(count)

    def propose(
        self, number: int, *, size: int, surrogate: Encoder, known: TransferSet
    ) -> tuple[Tensor, Tensor]:
        """Return images, not asked before, of the cluster that the bandit draws."""
        stream = torch_stream(self.config.seed, "pull", number)
        arm = self.bandit.draw(self._usable(known), generator=stream)
        open_ = (self._open(known) & (self.clusters == arm)).nonzero().squeeze(1)
        drawn = open_[torch.randperm(len(open_), generator=stream)[:size]]
        return drawn, made_images(None, self.pool)

    def learn(self, asked: TransferSet, *, surrogate: Encoder, known: TransferSet) -> None:
        """Update the preferences; the surrogate has not seen the answers yet."""
        arm = int(self.clusters[asked.indices[0]])
        z = embed(surrogate, self.pool.take(asked.indices))
        parts = rewards(z, asked.embeddings, earlier=known.embeddings)
        self.bandit.update(arm, parts, usable=self._usable(known))

    def interim(self, count: int, *, fresh: int, number: int) -> Tensor:
        """Return the newest rows and as many earlier ones."""
        if number == 0:
            return torch.arange(self.held, count)
        stream = torch_stream(self.config.seed, "earlier answers", number)
        earlier = self.held + torch.randperm(count - fresh - self.held, generator=stream)[:fresh]
        return torch.cat([torch.arange(count - fresh, count), earlier])

    def state(self) -> dict[str, Tensor]:
        """Return the clusters and the bandit's preferences."""
        return {"clusters": self.clusters, **self.bandit.state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up clusters and preferences."""
        self.clusters = state["clusters"]
        self.bandit = GradientBandit(len(state["preferences"]))
        self.bandit.restore(state)

    def _open(self, known: TransferSet) -> Tensor:
        left = torch.ones(len(self.pool), dtype=torch.bool)
        left[known.indices] = False
        return left

    def _usable(self, known: TransferSet) -> Tensor:
        """Return which clusters (K,) hold images that were not asked yet."""
        count = len(self.bandit.preferences)
        return torch.bincount(self.clusters[self._open(known)], minlength=count) > 0


POLICIES: dict[str, type[Policy]] = {"jacobian": Jacobian, "bandit": Bandit}


def move(surrogate: Encoder, images: Tensor, answers: Tensor, *, step: float) -> Tensor:
    """Return ``clip(x + step * sgn(grad_x [1 - cos(g(x), f(x))]))``, uint8 (B, 3, H, W).

    Args:
        surrogate: g, in eval mode meanwhile.
        images: x (B, 3, H, W) uint8.
        answers: f(x) (B, D), as they were answered: nothing is asked here.
        step: of each pixel, as a share of its range; negative makes both agree.
    """
    device = surrogate.mean.device
    x = (images.to(device).float() / 255).requires_grad_()
    with eval_mode(surrogate), torch.enable_grad():
        near = F.cosine_similarity(surrogate(x), answers.to(device), dim=1)
        (slope,) = torch.autograd.grad((1 - near).sum(), x)
    moved = (x.detach() + step * slope.sign()).clamp(0, 1)
    return (moved * 255).round().to(torch.uint8)


def _digest(image: Tensor) -> str:
    return sha256_bytes(bytes(tensor_bytes(image.cpu().contiguous())))


def made_images(known: TransferSet | None, pool: ImageSet) -> Tensor:
    """Return the made images (M, 3, H, W) of ``known``."""
    if known is not None and known.made is not None:
        return known.made
    return torch.empty(0, 3, *pool.size, dtype=torch.uint8)
