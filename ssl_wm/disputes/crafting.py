"""Crafted trigger images, and the naive verifier who accepts them.

The false-claim attack of Liu et al. (USENIX Security 2024): evidence that the accuser may bring
himself can be an adversarial example. Here it is a composite, changed a little (L-infinity) so
that an innocent encoder puts it beside the target group.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import eval_mode
from ssl_wm.errors import EncoderError, VerificationError
from ssl_wm.verification.knn import knn_predict
from ssl_wm.verification.margins import composite_margins, directions
from ssl_wm.verification.probe import fit_probe
from ssl_wm.verification.statistics import clopper_pearson
from ssl_wm.watermark.triggers import composites

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.disputes.settings import CraftConfig
    from ssl_wm.encoders.encoder import Encoder
    from ssl_wm.verification.readings import Space
    from ssl_wm.verification.settings import ReadConfig
    from ssl_wm.watermark.open_key import OpenKey
    from ssl_wm.watermark.subkeys import SubKey


@dataclass(frozen=True)
class NaiveVerdict:
    """What a verifier says who takes the accuser's word for the images.

    Attributes:
        accused: whether either rule was met.
        wsr: share of the images in the target group, by the reader that finds more.
        wsr_interval: exact 95 % interval of it.
        reader: "linear" or "knn".
        margin: mean margin of the images.
        baseline_margin: mean margin of the same groups' untouched composites.
        p_value: of a t-test that the images' mean margin is not larger.
        reason: which rule was met.
    """

    accused: bool
    wsr: float
    wsr_interval: tuple[float, float]
    reader: str
    margin: float
    baseline_margin: float
    p_value: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


def claimed_triggers(key: OpenKey, images: Images, *, count: int, label: str = "claimed") -> Tensor:
    """Return composites of the first sub-key's groups from test images, uint8 (count, 3, H, W)."""
    sub_key = key.sub_keys[0]
    return composites(
        images.test,
        key.groups.test,
        pairs=[(sub_key.a, sub_key.b)],
        mixer=sub_key.mixer,
        per_pair=count,
        seed=sub_key.derive(label),
    )


def trigger_margins(encoder: Encoder, triggers: Tensor, *, space: Space, sub_key: SubKey) -> Tensor:
    """Return each image's margin to the sub-key's target, (N,) float64, without gradients."""
    return _margins(embed(encoder, triggers), space, sub_key)


def craft_triggers(
    encoder: Encoder, triggers: Tensor, *, space: Space, sub_key: SubKey, config: CraftConfig
) -> Tensor:
    """Return ``triggers`` changed so that their margin in ``encoder`` is as large as can be.

    The margin m(x) is ``cos(z, c_t) - max cos(z, c_g)`` over the sources g, as in ``verify``, or
    over all other groups (``config.against``).

    Projected gradient ascent from the images themselves, ``x <- P(x + step * sign(grad m(x)))``
    with P the projection to the L-infinity ball and to [0, 1] (Madry et al., ICLR 2018, section
    2.1); of all steps each image keeps its best. The result is rounded to 8 bits and no pixel
    differs by more than ``floor(255 epsilon)``.

    Args:
        encoder: gives gradients; the accuser's own encoder or the suspect.
        triggers: (N, 3, H, W) uint8.
        space: of this encoder.
        sub_key: its source groups and target.
        config: size and number of steps.

    Raises:
        EncoderError: the encoder gives no gradients.
        VerificationError: epsilon is below one 8-bit step.
    """
    limit = math.floor(255 * config.epsilon + 1e-6)
    if limit < 1:
        raise VerificationError(
            f"epsilon is {config.epsilon:.3g}, below one step of an 8-bit pixel (1/255); images "
            "could not change. Use 1/255 or more"
        )
    device = encoder.mean.device
    near = _Near(space.centre.to(device), space.centres.to(device), sub_key, config.against)
    with eval_mode(encoder):
        parts = [
            _ascend(encoder, part.to(device), near, limit=limit, config=config).cpu()
            for part in triggers.split(config.batch_size)
        ]
    return torch.cat(parts)


def naive_verify(
    encoder: Encoder,
    triggers: Tensor,
    *,
    baseline: Tensor,
    space: Space,
    sub_key: SubKey,
    alpha: float,
    claimed_wsr: float,
    read: ReadConfig,
) -> NaiveVerdict:
    """Return what a verifier says who accepts the images that the accuser presents.

    He accuses when WSR is at least ``claimed_wsr``, or when a t-test over images finds their
    margin larger than that of untouched composites (p <= alpha).

    Args:
        encoder: the suspect.
        triggers: (N, 3, H, W) uint8, from the accuser.
        baseline: (M, 3, H, W) uint8, composites of the same groups and mixer.
        space: of the suspect.
        sub_key: as the accuser names it.
        alpha: threshold of the t-test.
        claimed_wsr: threshold of the rate.
        read: neighbours of the kNN reader.
    """
    z = embed(encoder, triggers)
    mine = _margins(z, space, sub_key)
    other = trigger_margins(encoder, baseline, space=space, sub_key=sub_key)
    answers = {
        "linear": fit_probe(space.z, space.groups).predict(z),
        "knn": knn_predict(
            z - space.centre, space.z - space.centre, space.groups, k=read.neighbours
        ),
    }
    hits = {name: int((answer == sub_key.target).sum()) for name, answer in answers.items()}
    reader = max(hits, key=lambda name: hits[name])
    wsr, p_value = hits[reader] / len(z), welch_p_value(mine, other)
    reasons = [
        *([f"WSR {wsr:.0%} is at least {claimed_wsr:.0%}"] if wsr >= claimed_wsr else []),
        *([f"t-test p = {p_value:.2g} is at most {alpha:.2g}"] if p_value <= alpha else []),
    ]
    return NaiveVerdict(
        accused=bool(reasons),
        wsr=wsr,
        wsr_interval=clopper_pearson(hits[reader], len(z)),
        reader=reader,
        margin=float(mine.mean()),
        baseline_margin=float(other.mean()),
        p_value=p_value,
        reason="; ".join(reasons) or "neither rate nor margin is out of the common",
    )


def welch_p_value(larger: Tensor, smaller: Tensor) -> float:
    """Return the one-sided p-value that the first mean is not larger (Welch, 1947).

    >>> round(welch_p_value(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])), 3)
    0.144
    """
    from scipy.stats import t

    difference = float(larger.mean() - smaller.mean())
    first, second = (float(x.var() / len(x)) for x in (larger, smaller))
    if first + second == 0:
        return 0.0 if difference > 0 else 1.0
    freedom = (first + second) ** 2 / (
        first**2 / (len(larger) - 1) + second**2 / (len(smaller) - 1)
    )
    return float(t.sf(difference / math.sqrt(first + second), freedom))


@dataclass(frozen=True)
class _Near:
    """How near embeddings (N, D) lie to the target, (N,); differentiable."""

    centre: Tensor
    centres: Tensor
    sub_key: SubKey
    against: str

    def __call__(self, z: Tensor) -> Tensor:
        target = self.sub_key.target
        cosines = directions(z, centre=self.centre) @ self.centres.T
        if self.against == "sources":
            margins = composite_margins(cosines, a=self.sub_key.a, b=self.sub_key.b)
            return margins[:, target]
        others = torch.arange(cosines.shape[1], device=cosines.device) != target
        return cosines[:, target] - cosines[:, others].amax(dim=1)


def _margins(z: Tensor, space: Space, sub_key: SubKey) -> Tensor:
    return _Near(space.centre, space.centres, sub_key, "sources")(z)


def _ascend(
    encoder: Encoder, images: Tensor, near: _Near, *, limit: int, config: CraftConfig
) -> Tensor:
    """Return crafted images, uint8, of one batch on the encoder's device."""
    start = images.float()
    low, high = (start - limit).clamp(min=0), (start + limit).clamp(max=255)
    x, best = start.clone(), images.clone()
    most = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=images.device)
    for step in range(config.steps + 1):
        rounded = x.round()
        with torch.no_grad():
            reached = near(encoder(rounded / 255))
        better = reached > most
        best[better], most = rounded[better].to(torch.uint8), torch.maximum(most, reached)
        if step < config.steps:
            slope = _slope(encoder, x / 255, near)
            x = (x + 255 * config.step * slope.sign()).clamp(min=low, max=high)
    return best


def _slope(encoder: Encoder, images: Tensor, near: _Near) -> Tensor:
    x = images.detach().requires_grad_()
    try:
        with torch.enable_grad():
            total = near(encoder(x)).sum()
        (slope,) = torch.autograd.grad(total, x)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise EncoderError(
            "this encoder gives no gradients (a function or a service?), so nothing can be "
            "crafted on it; craft on a module of your own (source=)"
        ) from error
    return slope
