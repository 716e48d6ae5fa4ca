"""The other side of the speed measurements: lightly's and scikit-learn's own ways.

They are written from those libraries' documented interfaces; of this package only the network that
both sides train is in the timed part. lightly's SimCLR example for images of 32 x 32 pixels uses
its PIL transform without blur, a DataLoader with workers, its projection head, ``NTXentLoss`` and
SGD with rate 0.06, in float32.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_wm.bench.side_by_side import Clock, Timing
from ssl_wm.encoders.properties import one_line
from ssl_wm.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np

PREFETCHED = 2  # batches that a DataLoader's worker keeps ready, PyTorch's default
LEARNING_RATE = 0.06


class PicturePairs(Dataset[Any]):
    """Two views of each image, made of a PIL image by lightly's SimCLR transform.

    Colours change as strongly as with this package's defaults: strength 0.5 times lightly's 0.8,
    0.8, 0.8 and 0.2.

    Args:
        pixels: uint8 (N, 3, H, W), H = W.
        min_scale: smallest area of a crop.
    """

    def __init__(self, pixels: Tensor, *, min_scale: float) -> None:
        from lightly.transforms import SimCLRTransform

        self.arrays: np.ndarray[Any, Any] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = SimCLRTransform(
            input_size=pixels.shape[-1], cj_strength=0.5, gaussian_blur=0.0, min_scale=min_scale
        )

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Return the two views, each (3, H, W)."""
        from PIL import Image

        views: list[Tensor] = self.transform(Image.fromarray(self.arrays[index]))
        return views


def images_needed(*, batch_size: int, batches: int, workers: int) -> int:
    """Return how many images keep the loader's workers busy until the last timed batch.

    >>> images_needed(batch_size=8, batches=3, workers=2)
    56
    """
    return batch_size * (batches + PREFETCHED * workers)


def steps_before(warmup: int, *, workers: int, drain: bool) -> int:
    """Return lightly's steps before the clock starts.

    With ``drain``, as many as take the batches that were made ready while the first ones were
    waited for: else a fast device would be timed on work that was done before.

    >>> steps_before(2, workers=4, drain=False), steps_before(2, workers=4, drain=True)
    (2, 8)
    """
    return max(warmup, PREFETCHED * workers) if drain else warmup


def lightly_training(
    backbone: nn.Module,
    pixels: Tensor,
    *,
    width: int,
    batch_size: int,
    warmup: int,
    steps: int,
    workers: int,
    min_scale: float,
    device: torch.device,
    clock: Clock,
    wait: Callable[[], None],
) -> Timing:
    """Train SimCLR as lightly's example does, float32, and return the time of ``steps`` steps.

    Args:
        backbone: from normalised images (B, 3, H, W) to (B, width).
        pixels: uint8 (N, 3, H, W); see ``images_needed``.
        width: of the backbone's features.
        batch_size: images per step.
        warmup: steps before the clock starts.
        steps: timed steps.
        workers: processes that make the views.
        min_scale: smallest area of a crop.
        device: where the network is.
        clock: seconds.
        wait: returns when the device has finished.

    Raises:
        TrainingError: a loader's worker or the device failed, or the images were too few.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    network = nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128)).to(device).train()
    loss_of = NTXentLoss()
    optimiser = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(
        PicturePairs(pixels, min_scale=min_scale), batch_size=batch_size, shuffle=True,
        drop_last=True, num_workers=workers, pin_memory=device.type == "cuda",
    )  # fmt: skip
    try:
        took = _steps(
            network, loss_of, optimiser, loader, warmup=warmup, steps=steps, device=device,
            clock=clock, wait=wait,
        )  # fmt: skip
    except RuntimeError as error:
        raise TrainingError(f"lightly's training failed: {one_line(error)}") from error
    finally:
        gc.collect()  # ends the loader's workers
    return Timing(took, batch_size * steps)


def _steps(
    network: nn.Module,
    loss_of: nn.Module,
    optimiser: torch.optim.Optimizer,
    loader: DataLoader[Any],
    *,
    warmup: int,
    steps: int,
    device: torch.device,
    clock: Clock,
    wait: Callable[[], None],
) -> float:
    """Train for ``warmup + steps`` steps and return the seconds of the last ``steps``."""
    began, done = 0.0, 0
    for first, second in islice(loader, warmup + steps):
        a, b = first.to(device, non_blocking=True), second.to(device, non_blocking=True)
        loss = loss_of(network(a), network(b))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        done += 1
        if done == warmup:
            wait()
            began = clock()
    wait()
    if done != warmup + steps:
        raise TrainingError(f"lightly's loader ended after {done} of {warmup + steps} batches")
    return clock() - began


def lightly_knn(
    queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, temperature: float, block: int
) -> Tensor:
    """Return lightly's kNN prediction (Q,) for ``queries`` (Q, D), ``block`` rows at a time."""
    from lightly.utils.benchmarking import knn_predict

    turned = F.normalize(bank, dim=1).T
    classes = int(labels.max()) + 1
    found = [
        knn_predict(rows, turned, labels, classes, knn_k=k, knn_t=temperature)[:, 0]
        for rows in F.normalize(queries, dim=1).split(block)
    ]
    return torch.cat(found)


def topk_neighbours(queries: Tensor, bank: Tensor, *, k: int, block: int) -> Tensor:
    """Return the neighbours (Q, k) that lightly's kNN votes with, found as it finds them."""
    turned = F.normalize(bank, dim=1).T
    parts = F.normalize(queries, dim=1).split(block)
    return torch.cat([torch.mm(rows, turned).topk(k=k, dim=-1).indices for rows in parts])


def sklearn_probe(z: Tensor, labels: Tensor, *, strength: float, tolerance: float) -> Any:
    """Return scikit-learn's fitted pipeline: standardised features, logistic regression (lbfgs)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(C=strength, tol=tolerance, max_iter=2000)
    return make_pipeline(StandardScaler(), model).fit(z.numpy(), labels.numpy())
