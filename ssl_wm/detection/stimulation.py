"""ABS: units that raise one class alone when stimulated, and triggers that stimulate them."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_wm.detection.given import Detection, Given
from ssl_wm.detection.inversion import invert
from ssl_wm.detection.triggers import trigger_success
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.rng import derive_seed
from ssl_wm.verification.probe import Probe, fit_probe

SUSPICIOUS = 0.88
"""The published threshold on the success of an inverted trigger."""


def elevations(z: Tensor, probe: Probe, *, factor: float) -> tuple[Tensor, Tensor]:
    """Return how much stimulating each unit raises each class, and the values it is set to.

    A unit is set to ``mean + factor * (largest distance of natural images from the mean)`` while
    the others stay. The elevation of a class is the mean change of its log-probability.

    Args:
        z: (N, D) embeddings of natural images.
        probe: reads C classes.
        factor: of the stimulus.

    Returns:
        (D, C) and (D,).
    """
    rows = z.double()
    mean = rows.mean(dim=0)
    values = mean + factor * (rows - mean).abs().amax(dim=0)
    logits = rows @ probe.weight.T + probe.bias
    before = logits.log_softmax(dim=1)
    raised = [
        (
            (logits + (values[unit] - rows[:, unit : unit + 1]) * probe.weight[:, unit])
            .log_softmax(dim=1)
            .sub(before)
            .mean(dim=0)
        )
        for unit in range(rows.shape[1])
    ]
    return torch.stack(raised), values


def candidates(raised: Tensor, *, count: int) -> list[tuple[int, int, float]]:
    """Return the units that raise one class far above all others: (unit, class, gap).

    The gap is the elevation of the class that is raised most minus that of the next one (Liu et
    al., 2019, algorithm 1); the largest come first.

    Args:
        raised: (D, C) elevations.
        count: how many units.
    """
    two = raised.topk(2, dim=1)
    gaps = two.values[:, 0] - two.values[:, 1]
    units = gaps.argsort(descending=True, stable=True)[:count].tolist()
    return [(unit, int(two.indices[unit, 0]), float(gaps[unit])) for unit in units]


class Stimulate:
    """Images with trigger k should stimulate unit k: minus its activation, in deviations."""

    def __init__(
        self, probe: Probe, z: Tensor, found: list[tuple[int, int, float]], device: torch.device
    ) -> None:
        self.units = torch.tensor([unit for unit, _, _ in found], device=device)
        self.classes = torch.tensor([number for _, number, _ in found], device=device)
        self.mean, deviation = z.mean(dim=0).to(device), z.std(dim=0, correction=0).to(device)
        self.deviation = deviation.clamp(min=1e-6 * float(deviation.max()) + 1e-30)
        self.weight = probe.weight.float().to(device)
        self.bias = probe.bias.float().to(device)

    def __call__(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return minus the activation (k,) and the share (k,) that reads as the unit's class."""
        standard = (z - self.mean) / self.deviation
        units = self.units[which].view(-1, 1, 1).expand(-1, z.shape[1], 1)
        activation = standard.gather(2, units).squeeze(2).mean(dim=1)
        read = (z @ self.weight.T + self.bias).argmax(dim=2)
        return -activation, (read == self.classes[which].view(-1, 1)).float().mean(dim=1)


def stimulate(encoder: Encoder, given: Given) -> Detection:
    """Return how often the best small trigger that stimulates a suspicious unit works.

    Units of the embedding whose stimulation raises one class of a linear probe alone are
    suspects; for each a trigger of bounded size is sought that stimulates it (Liu et al., ACM
    CCS 2019). The score is the largest share of held-out images of other classes that read as
    the class with the trigger on (REASR).

    Raises:
        DataError: there are fewer than three classes, or too few images.
        EncoderError: no gradient flows to the images.
    """
    given.group_count()
    config = given.config.stimulation
    z = embed(encoder, given.fit.pixels)
    probe = fit_probe(z, given.fit.groups)
    raised, values = elevations(z, probe, factor=config.factor)
    units = candidates(raised, count=min(config.units, z.shape[1]))
    found = invert(
        encoder, pixels=given.fit.pixels,
        aim=Stimulate(probe, z, units, encoder.mean.device), count=len(units),
        seed=derive_seed(given.seed, "abs"), config=given.config.inversion, limit=config.area,
    )  # fmt: skip
    patches = [found.patch(place, group=unit[1]) for place, unit in enumerate(units)]
    held = given.held
    rates = [
        trigger_success(
            encoder, trigger=patch, pixels=held.pixels, groups=held.groups, reader=probe
        ).share
        if patch.found
        else 0.0
        for patch in patches
    ]
    order = sorted(range(len(units)), key=lambda place: -rates[place])
    flagged = dict.fromkeys(units[place][1] for place in order if rates[place] > SUSPICIOUS)
    details = {
        "units": [
            {
                "unit": units[place][0], "class": units[place][1], "gap": units[place][2],
                "stimulus": float(values[units[place][0]]), "success": rates[place],
                "size": patches[place].size, "within_limit": patches[place].found,
            }
            for place in order
        ]
    }  # fmt: skip
    return Detection(
        rates[order[0]], units[order[0]][1], tuple(flagged),
        tuple(patches[place] for place in order), details,
    )  # fmt: skip
