"""A small convolutional net for 8 x 8 images."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Three 3 x 3 convolutions with batch norm, two poolings and a linear classifier.

    Args:
        width: channels of the first convolution; the others have ``2 * width`` and ``4 * width``.
        in_channels: channels of the images.
        num_classes: outputs.

    Shapes: ``[N, in_channels, H, W]`` with ``H, W >= 4`` to ``[N, num_classes]``.
    """

    def __init__(self, width: int = 64, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, num_classes]``."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.pool(self.bn2(self.conv2(x)).relu())
        x = self.pool(self.bn3(self.conv3(x)).relu())
        out: Tensor = self.fc(x.mean((2, 3)))
        return out
