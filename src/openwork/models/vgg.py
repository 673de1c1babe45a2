"""VGG with batch norm for 32 x 32 images (Simonyan and Zisserman, 2015; one linear layer as usual on CIFAR)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from openwork.models.cifar_resnet import initialise

# Convolutions of each of the five stages; every stage ends in a 2 x 2 pooling.
STAGES: dict[int, tuple[int, ...]] = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-16 (14.7 M parameters) or VGG-19 (20.0 M) with batch norm and a single linear layer.

    Args:
        depth: 11, 13, 16 or 19.
        in_channels: channels of the images.
        num_classes: outputs.

    Raises:
        ValueError: an unknown ``depth``.

    Shapes: ``[N, in_channels, H, W]`` with ``H, W >= 32`` to ``[N, num_classes]``.
    """

    def __init__(self, depth: Literal[11, 13, 16, 19] = 16, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth={depth!r} must be one of {sorted(STAGES)}")
        layers: list[nn.Module] = []
        before = in_channels
        for count, channels in zip(STAGES[depth], CHANNELS, strict=True):
            for _ in range(count):
                # Batch norm has its own shift, so the convolution needs no bias.
                convolution = nn.Conv2d(before, channels, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, num_classes]``."""
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out
