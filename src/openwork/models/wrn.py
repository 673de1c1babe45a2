"""Wide residual networks (Zagoruyko and Komodakis, "Wide Residual Networks", 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from openwork.models.cifar_resnet import initialise


class WideBlock(nn.Module):
    """Pre-activation block: batch norm, ReLU and 3 x 3 convolution, twice, with dropout between.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution.
        dropout: probability of zeroing an activation between the convolutions.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.projection = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        active = self.bn1(x).relu()
        out: Tensor = self.conv2(self.dropout(self.bn2(self.conv1(active)).relu()))
        # The projection sees the activated input, as in the authors' network; the identity sees the plain one.
        skip: Tensor = x if self.projection is None else self.projection(active)
        return out + skip


class WideResNet(nn.Module):
    """WRN-``depth``-``width`` for 32 x 32 images; WRN-22-2 has 1.08 M parameters at 10 classes.

    Args:
        depth: ``6 n + 4``.
        width: multiplies the 16, 32 and 64 channels of the stages.
        dropout: inside the blocks.
        in_channels: channels of the images.
        num_classes: outputs.

    Raises:
        ValueError: ``depth`` is not ``6 n + 4`` with ``n >= 1``, or ``width`` is not positive.
    """

    def __init__(
        self, depth: int = 22, width: int = 2, dropout: float = 0.0, in_channels: int = 3, num_classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth!r} must be 6 n + 4 with n >= 1, for instance 16, 22 or 28")
        if width < 1:
            raise ValueError(f"width={width!r} must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for stage in range(3):
            after = 16 * width * 2**stage
            for block in range((depth - 4) // 6):
                stride = 2 if stage and block == 0 else 1
                blocks.append(WideBlock(channels, after, stride, dropout))
                channels = after
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to class scores ``[N, num_classes]``."""
        x = self.bn(self.blocks(self.conv1(x))).relu()
        out: Tensor = self.fc(x.mean((2, 3)))
        return out
