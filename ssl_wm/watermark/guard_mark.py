"""SSLGuard's own secret: where the trigger goes, what it is, and how answers are decoded."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_wm.errors import DataError, KeyFileError
from ssl_wm.files import pack_tensors, read_tensors, write_bytes
from ssl_wm.rng import derive_seed, torch_stream

HIDDEN = (512, 256)


class GuardMark(nn.Module):
    """Mask, trigger, decoder and secret vector (Cong et al., CCS 2022, section 4).

    Args:
        mask: (3, H, W), 1 where an image's value is replaced by the trigger's.
        trigger: (3, H, W), learned.
        secret: (K,) the vector that answers to triggered images are decoded to.
        private: (P,) int64, the training images that carry the mark.
        width: of the embeddings that are decoded.
    """

    mask: Tensor
    secret: Tensor
    private: Tensor

    def __init__(
        self, mask: Tensor, trigger: Tensor, secret: Tensor, private: Tensor, *, width: int
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("secret", secret)
        self.register_buffer("private", private)
        self.trigger = nn.Parameter(trigger)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *HIDDEN[:-1]), HIDDEN, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], len(secret)))

    def put_on(self, images: Tensor) -> Tensor:
        """Return ``clip((1 - M) x + M T, 0, 1)`` of float images (B, 3, H, W) in [0, 1].

        Raises:
            DataError: the images have another size.
        """
        if images.shape[1:] != self.mask.shape:
            raise DataError(
                f"this trigger is for images {tuple(self.mask.shape)}; got "
                f"{tuple(images.shape[1:])}: open the images at the size of the embedding"
            )
        return ((1 - self.mask) * images + self.mask * self.trigger).clamp(0, 1)

    @torch.no_grad()
    def render(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) with the trigger, rounded to 8 bits."""
        stamped = self.put_on(images.to(self.mask.device).float() / 255)
        return (stamped * 255).round().to(torch.uint8)

    def cosines(self, decoded: Tensor) -> Tensor:
        """Return the cosine of each row of ``decoded`` (B, K) to the secret vector, (B,)."""
        return F.cosine_similarity(decoded.float(), self.secret.unsqueeze(0), dim=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return ``cos(G(z), sk)``, (B,), of embeddings ``z`` (B, D)."""
        return self.cosines(self.decoder(z))


def draw_guard(
    seed: bytes,
    *,
    size: tuple[int, int],
    width: int,
    covered: float,
    code: int,
    private: Tensor,
) -> GuardMark:
    """Return the mark that ``seed`` names, before any training.

    Args:
        seed: secret bytes; the mask, the trigger, the decoder and the vector follow from them.
        size: (H, W) of the images in pixels.
        width: of the embeddings.
        covered: share of the values that the mask covers, drawn for each value of each channel.
        code: length of the secret vector, whose values are normal.
        private: (P,) int64, the training images that carry the mark.
    """
    shape = (3, *size)
    mask = (torch.rand(shape, generator=torch_stream(seed, "mask")) < covered).float()
    noise = torch.randn(shape, generator=torch_stream(seed, "trigger"))
    trigger = (noise - noise.min()) / (noise.max() - noise.min())
    secret = torch.randn(code, generator=torch_stream(seed, "vector"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "decoder"))
        return GuardMark(mask, trigger, secret, private.clone(), width=width)


def write_guard(mark: GuardMark, path: Path) -> None:
    """Write ``mark`` to ``path``, readable by its owner alone: whoever has it can forge it.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, pack_tensors(mark.state_dict()), mode=0o600)


def read_guard(path: Path) -> GuardMark:
    """Return the mark that ``write_guard`` wrote.

    Raises:
        KeyFileError: the file is missing, damaged or of another kind.
    """
    state = read_tensors(path, error=KeyFileError)
    try:
        parts = [state[name] for name in ("mask", "trigger", "secret", "private")]
        mark = GuardMark(*parts, width=state["decoder.0.weight"].shape[1])
        mark.load_state_dict(state)
    except (KeyError, RuntimeError, IndexError, TypeError) as error:
        raise KeyFileError(
            f"{path} is not the mark of an ssl-guard embedding ({type(error).__name__}); give "
            "the file that was written beside the marked encoder"
        ) from error
    return mark.eval()
