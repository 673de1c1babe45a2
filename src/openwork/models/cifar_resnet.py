"""Residual networks for 32 x 32 images (He et al., "Deep Residual Learning for Image Recognition", 2016)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["pad", "projection"]


class PadShortcut(nn.Module):
    """He et al.'s option A: subsample by ``stride`` and add empty channels; it has no parameters."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C + extra_channels, ceil(H / stride), ceil(W / stride)]``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut around them.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution.
        shortcut: what replaces the identity where the shape changes: "pad" (option A) or "projection" (option B, a 1 x 1
            convolution with batch norm).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(channels - in_channels, stride)
        else:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        out: Tensor = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        skip: Tensor = self.shortcut(x)
        return (out + skip).relu()


def initialise(model: nn.Module) -> None:
    """He et al.'s initialisation: normal with variance ``2 / fan_out`` for convolutions; batch norms start as identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class CifarResNet(nn.Module):
    """ResNet of three stages of 16, 32 and 64 channels (times ``width``), depth ``6 n + 2``.

    Parameters at width 1 and 10 classes: depth 20 0.27 M, 32 0.46 M, 56 0.85 M, 110 1.7 M.  Depth 32 at width 2 with
    projection shortcuts has 1.86 M, the ResNet-32 of the MEST paper.

    Args:
        depth: 20, 32, 44, 56, 110 or any other ``6 n + 2``.
        width: multiplies every stage's channels.
        shortcut: "pad" (option A, as in the original) or "projection" (option B).
        in_channels: channels of the images.
        num_classes: outputs.

    Raises:
        ValueError: ``depth`` is not ``6 n + 2`` with ``n >= 1``, ``width`` is not positive, or ``shortcut`` is unknown.
    """

    def __init__(
        self, depth: int = 20, width: int = 1, shortcut: Shortcut = "pad", in_channels: int = 3, num_classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth!r} must be 6 n + 2 with n >= 1, for instance 20, 32, 56 or 110")
        if width < 1:
            raise ValueError(f"width={width!r} must be at least 1")
        if shortcut not in ("pad", "projection"):
            raise ValueError(f"shortcut={shortcut!r} must be 'pad' or 'projection'")
        channels = 16 * width
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for stage in range(3):
            after = 16 * width * 2**stage
            for block in range((depth - 2) // 6):
                stride = 2 if stage and block == 0 else 1
                stages.append(BasicBlock(channels, after, stride, shortcut))
                channels = after
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to class scores ``[N, num_classes]``."""
        x = self.blocks(self.bn1(self.conv1(x)).relu())
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class CifarResNet18(nn.Module):
    """ResNet-18 with a 3 x 3 stem of stride 1 and no pooling, for 32 x 32 images; 11.17 M parameters at 10 classes.

    Args:
        in_channels: channels of the images.
        num_classes: outputs.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks: list[nn.Module] = []
        channels = 64
        for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(channels, after, stride, "projection"), BasicBlock(after, after, 1, "projection")]
            channels = after
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to class scores ``[N, num_classes]``."""
        x = self.blocks(self.bn1(self.conv1(x)).relu())
        out: Tensor = self.fc(x.mean((2, 3)))
        return out
