"""A gradient bandit over clusters of the pool: where the next images are drawn (Knockoff Nets)."""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 1e-3
"""Least deviation that a reward is divided by."""
REWARDS = ("loss", "diversity")


class GradientBandit:
    """Preferences H over K arms, raised where the reward is above its running mean.

    ``pi = softmax(H)``; after arm k gave reward r: ``H_k += a (r - b) (1 - pi_k)`` and ``H_j -= a
    (r - b) pi_j`` for the others, ``a = 1 / pulls of k``, b the mean of earlier rewards (Orekondy
    et al., CVPR 2019, where the second sign is misprinted). r is the mean of the parts'
    z-scores by their running mean and deviation, in place of scaling each part to [0, 1].

    Args:
        arms: K.
    """

    def __init__(self, arms: int) -> None:
        self.preferences = torch.zeros(arms, dtype=torch.float64)
        self.pulls = torch.zeros(arms, dtype=torch.float64)
        self.baseline = torch.zeros(2, dtype=torch.float64)  # count, mean
        self.moments = torch.zeros(len(REWARDS), 3, dtype=torch.float64)  # count, mean, squares

    def probabilities(self, usable: Tensor) -> Tensor:
        """Return the chance (K,) of each arm; 0 where ``usable`` (K,) bool is false."""
        return self.preferences.masked_fill(~usable, float("-inf")).softmax(dim=0)

    def draw(self, usable: Tensor, *, generator: torch.Generator) -> int:
        """Return an arm of those in ``usable`` (K,) bool, at least one."""
        chances = self.probabilities(usable)
        return int(torch.multinomial(chances, 1, generator=generator))

    def update(self, arm: int, parts: Tensor, *, usable: Tensor) -> float:
        """Learn from ``parts`` (R,), the rewards of a pull of ``arm``, and return the reward r."""
        reward = float(self._scores(parts.double()).mean())
        chances = self.probabilities(usable)
        self.pulls[arm] += 1
        gain = (reward - float(self.baseline[1])) / float(self.pulls[arm])
        change = -gain * chances
        change[arm] += gain
        self.preferences += change
        self.baseline[0] += 1
        self.baseline[1] += (reward - self.baseline[1]) / self.baseline[0]
        return reward

    def _scores(self, parts: Tensor) -> Tensor:
        """Return the z-scores (R,) by all values so far, these included."""
        count, mean, squares = self.moments.unbind(dim=1)
        count = count + 1
        gap = parts - mean
        mean = mean + gap / count
        squares = squares + gap * (parts - mean)
        self.moments = torch.stack([count, mean, squares], dim=1)
        return (parts - mean) / (squares / count).sqrt().clamp_min(SPREAD)

    def state(self) -> dict[str, Tensor]:
        """Return all that the bandit has learned."""
        names = ("preferences", "pulls", "baseline", "moments")
        return {name: getattr(self, name).clone() for name in names}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a ``state``."""
        for name in self.state():
            setattr(self, name, state[name].clone())


def rewards(z: Tensor, answers: Tensor, *, earlier: Tensor) -> Tensor:
    """Return the rewards (2,) of a batch: the surrogate's loss and the batch's diversity.

    Loss is the mean of ``1 - cos(g(x), f(x))`` before the surrogate has seen the answers (it is
    rewarded to ask what one cannot imitate yet). Diversity is the mean cosine distance of an
    answer to the nearest earlier one.

    Args:
        z: (B, D) the surrogate's embeddings.
        answers: (B, D) the victim's.
        earlier: (N, D) answers so far.
    """
    unit = torch.nn.functional.normalize(answers.double(), dim=1)
    before = torch.nn.functional.normalize(earlier.double(), dim=1)
    loss = 1 - torch.cosine_similarity(z.double(), answers.double(), dim=1).mean()
    nearest = torch.cat([(part @ before.T).max(dim=1).values for part in unit.split(256)])
    return torch.stack([loss, 1 - nearest.mean()])
