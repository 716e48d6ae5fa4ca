"""Small backbones for 32 x 32 images: ours and the shapes of the paper's experiments.

Each builder returns a module from normalised images (B, 3, H, W) to features (B, D).
``BACKBONES`` is the table; a new backbone is a function and a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ssl_wm.errors import EncoderError


def convnet(width: int = 256) -> nn.Module:
    """Return ``convnet-s``: 2 x 2 pixel unshuffle, 7 convolutions, average pool; 1.2 M, 256-d.

    The unshuffle makes the first layers work at half the resolution, which on a CPU costs a
    third of the usual stem's time. ``width`` is the width of the last stage.
    """
    w = (width // 8, width // 4, width // 4, width // 2, width // 2, width, width)
    strides = (1, 1, 1, 2, 1, 2, 1)
    layers: list[nn.Module] = [_HalfResolution()]
    channels = 12
    for out, stride in zip(w, strides, strict=True):
        layers += _conv(channels, out, stride=stride)
        channels = out
    return nn.Sequential(*layers, *_pool())


def resnet18_cifar() -> nn.Module:
    """Return torchvision's ResNet-18 with a 3 x 3 stem and no max-pool; 11.2 M, 512-d.

    The usual CIFAR variant (Chen et al., SimCLR, 2020, appendix B.9).
    """
    from torchvision.models import resnet18

    model: nn.Module = resnet18(weights=None)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return model


def resnet_small() -> nn.Module:
    """Return a narrow residual network (another family than ``convnet-s``); 0.7 M, 128-d."""
    stem = [_HalfResolution(), *_conv(12, 32)]
    blocks = [_Residual(32, 64), _Residual(64, 128, stride=2), _Residual(128, 128, stride=2)]
    return nn.Sequential(*stem, *blocks, *_pool())


def vgg_small() -> nn.Module:
    """Return a VGG-like network: 6 convolutions in 3 pooled stages; 1.1 M, 256-d."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256):
        layers += _conv(channels, width) + _conv(width, width) + [nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, *_pool())


def alexnet_small() -> nn.Module:
    """Return an AlexNet for 32 x 32 images: 5 convolutions, 2 max-pools; 2.3 M, 256-d."""
    layers = [
        *_conv(3, 64, kernel=5, stride=2),
        *_conv(64, 192, kernel=5),
        nn.MaxPool2d(2),
        *_conv(192, 384),
        *_conv(384, 256),
        *_conv(256, 256),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*layers, *_pool())


def cnn9() -> nn.Module:
    """Return a 9-layer CNN: 3 stages of 3 convolutions, 64 to 256 wide; 1.9 M, 256-d."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256):
        layers += _conv(channels, width, stride=1 if channels == 3 else 2)
        layers += _conv(width, width) + _conv(width, width)
        channels = width
    return nn.Sequential(*layers, *_pool())


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "convnet-s": convnet,
    "convnet-xs": lambda: convnet(128),
    "convnet-l": lambda: convnet(512),
    "resnet-small": resnet_small,
    "resnet18-cifar": resnet18_cifar,
    "vgg-small": vgg_small,
    "alexnet-small": alexnet_small,
    "cnn9": cnn9,
}


class _HalfResolution(nn.PixelUnshuffle):
    """Pixel unshuffle by 2: (B, 3, H, W) -> (B, 12, H / 2, W / 2), for even H and W."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the 2 x 2 blocks of ``x`` as channels.

        Raises:
            EncoderError: H or W is odd.
        """
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            raise EncoderError(
                f"this backbone takes images with even sides; got {height} x {width} pixels: "
                f"resize them, for example with '?size={max(height + height % 2, 2)}'"
            )
        return super().forward(x)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with a projected shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(inputs, outputs, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride) for ``x`` (B, inputs, H, W)."""
        activated: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return activated


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _pool() -> Sequence[nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()
