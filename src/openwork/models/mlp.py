"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; any input is flattened from the second dimension on.

    Args:
        in_features: numbers per sample after flattening.
        hidden: widths of the hidden layers, may be empty.
        num_classes: outputs.
        batch_norm: a BatchNorm1d before every ReLU.

    Shapes: ``[N, ...]`` with ``in_features`` numbers a sample to ``[N, num_classes]``.
    """

    def __init__(
        self, in_features: int = 64, hidden: Sequence[int] = (256, 256), num_classes: int = 10, batch_norm: bool = False
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, num_classes]``."""
        out: Tensor = self.classifier(self.features(x))
        return out
