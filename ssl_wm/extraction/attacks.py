"""The attacks: one table of what is asked, what is minimised and where the source differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ssl_wm.data.views import ViewConfig
from ssl_wm.extraction import losses

MILD = ViewConfig(crop=0.5, min_scale=0.6, jitter=0.0, grey=0.0)
COLOUR = ViewConfig(min_scale=1.0)
STRONG = ViewConfig()
PATCH = ViewConfig(min_scale=0.75, jitter=0.0, grey=0.0)
ASKED_PATCH = ViewConfig(min_scale=0.9, jitter=0.0, grey=0.0)


@dataclass(frozen=True)
class Rounds:
    """Rounds of questions, between which an interim surrogate is trained.

    Attributes:
        first: share of the budget that is asked before the first round.
        count: rounds that the rest is spread over, at most.
        least: images a round, at least.
        epochs: epochs of the interim surrogate after each round.
        step: how far a pixel moves ("jacobian"), as a share of its range.
        flip: rounds after which the direction is reversed ("jacobian").
        clusters: arms of the bandit ("bandit").
    """

    first: float
    count: int
    least: int = 1
    epochs: int = 2
    step: float = 0.1
    flip: int = 3
    clusters: int = 16


@dataclass(frozen=True)
class Asking:
    """What the victim is asked.

    Attributes:
        how: "once" sends each image itself; "views" sends ``count`` views of each, once, and
            keeps the mean of their unit embeddings; "live" sends a new view of each image in
            every epoch; "jacobian" and "bandit" ask in rounds that depend on the answers so far.
        views: augmentation of what is sent, for "views" and "live".
        count: views of an image.
        composites: share of the budget that goes to mixes of the thief's own images.
        rounds: for "jacobian" and "bandit".
    """

    how: Literal["once", "views", "live", "jacobian", "bandit"] = "once"
    views: ViewConfig | None = None
    count: int = 1
    composites: float = 0.0
    rounds: Rounds | None = None


@dataclass(frozen=True)
class Attack:
    """One attack: ``plain * loss(g(x), f(x)) + viewed * loss(g(a(x)), f(x))``.

    Attributes:
        loss: of the surrogate's embeddings and the answers.
        views: the augmentation a, which only the surrogate sees.
        plain: weight of the loss on the image itself.
        viewed: weight of the loss on its view.
        asking: what the victim is asked.
        relational: the loss does not see all of the victim's axes, scale and offset, so that
            fidelity is measured by the similarities between images.
        source: where the attack comes from.
        differs: what is done in another way than there.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    views: ViewConfig = MILD
    plain: float = 0.0
    viewed: float = 1.0
    asking: Asking = Asking()
    relational: bool = False
    source: str = ""
    differs: str = ""


DZIEDZIC = "Dziedzic et al., ICML 2022"
KNOCKOFF = "Orekondy et al., CVPR 2019"
CONVENTIONAL = "the conventional baseline of Sha et al., CVPR 2023"
ATTACKS: dict[str, Attack] = {
    "mse": Attack(losses.mse, source=CONVENTIONAL, differs="with augmentation"),
    "cosine": Attack(losses.cosine, source=CONVENTIONAL, differs="with augmentation"),
    "hybrid": Attack(
        losses.hybrid,
        source="public reports on TML 2025, assignment 2",
        differs="the squared error is divided by the answers' variance",
    ),
    "hinton-kd": Attack(
        losses.hinton_kd,
        source="Hinton et al., 2015, as in MEA-Defender, 2024",
        differs="coordinates in place of logits; with the factor T^2; each image asked once",
    ),
    "hinton-relational": Attack(
        losses.hinton_relational,
        relational=True,
        source="Park et al., CVPR 2019",
        differs="a divergence of softmax similarities in place of the Huber loss",
    ),
    "stolen-encoder": Attack(
        losses.normalised_distance,
        views=COLOUR,
        plain=1.0,
        viewed=20.0,
        source="Liu et al., CCS 2022",
        differs="mean over the batch in place of the sum",
    ),
    "stolen-encoder-plain": Attack(
        losses.normalised_distance,
        plain=1.0,
        viewed=0.0,
        source="Liu et al., CCS 2022, the released script (lambda 0)",
        differs="mean over the batch in place of the sum",
    ),
    "cont-steal": Attack(
        losses.cont_steal,
        views=STRONG,
        source="Sha et al., CVPR 2023",
        differs="the victim answers the image itself, once",
    ),
    "cont-steal-live": Attack(
        losses.cont_steal,
        views=STRONG,
        asking=Asking("live", views=STRONG),
        source="Sha et al., CVPR 2023",
        differs="SimCLR's views in place of RandAugment",
    ),
    "rda": Attack(
        losses.rda,
        views=PATCH,
        asking=Asking("views", views=ASKED_PATCH, count=10),
        source="Wu et al., ECCV 2024",
        differs="epsilon in the align term; one trained view a step in place of five",
    ),
    "infonce": Attack(
        losses.infonce, views=STRONG, source=DZIEDZIC, differs="the victim answers once"
    ),
    "soft-nn": Attack(
        losses.soft_nn,
        source=DZIEDZIC,
        differs="temperature relative to the answers' spread; the victim answers once",
    ),
    "barlow": Attack(
        losses.barlow,
        relational=True,
        source=f"Zbontar et al., ICML 2021, as in {DZIEDZIC}",
        differs="always two embeddings of the same image; the victim answers once",
    ),
    "jba": Attack(
        losses.cosine,
        asking=Asking("jacobian", rounds=Rounds(first=0.5, count=6, epochs=4)),
        source="Papernot et al., AsiaCCS 2017",
        differs="gradient of the disagreement with the answer in place of a label's row",
    ),
    "knockoff-random": Attack(
        losses.cosine, source=KNOCKOFF, differs="cosine in place of cross-entropy"
    ),
    "knockoff-adaptive": Attack(
        losses.cosine,
        asking=Asking("bandit", rounds=Rounds(first=0.2, count=50, least=8)),
        source=KNOCKOFF,
        differs="clusters in place of labels; no certainty reward; a batch a pull",
    ),
    "composites": Attack(
        losses.cosine,
        asking=Asking(composites=0.5),
        source="own",
        differs="half of the budget goes to windows of one image pasted into another",
    ),
}
