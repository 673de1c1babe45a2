"""The geometry of a two-dimensional convolution."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]


LANES = 16
"""Images that lie side by side where the native kernels compute."""


def fills_blocks(batch: int) -> bool:
    """Whether at most 15 % is lost when the batch is filled up to whole blocks of ``LANES`` images."""
    return 100 * -(-batch // LANES) * LANES <= 115 * batch


class Window(NamedTuple):
    """How a convolution's window moves; every entry is ``(vertical, horizontal)`` in pixels."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def taps(self) -> int:
        """Positions in the window."""
        return self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, height: int, width: int) -> Pair:
        """Pixels of the output for an input of ``height`` x ``width``; less than 1 where the window does not fit."""
        return self._extent(height, 0), self._extent(width, 1)

    def _extent(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def check(self) -> None:
        """Raise ``ValueError`` naming the entry that no convolution can have."""
        for name, value, least in (
            ("kernel_size", self.kernel_size, 1),
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if len(value) != 2 or any(v < least for v in value):
                raise ValueError(f"{name}={tuple(value)} must be two integers of at least {least}")
