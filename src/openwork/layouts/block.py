"""Aligned blocks."""

from openwork.layouts.tiles import TileLayout


class Block(TileLayout):
    """Fixed, aligned ``m x n`` blocks, each whole or empty (MEST App. A; the "nonshuffled block" of DSB).

    Args:
        m: rows of a block (consecutive output channels).
        n: columns of a block, in the ``Cin * kh * kw`` order of a convolution; ``m`` where it is not given.

    Raises:
        ValueError: ``m`` or ``n`` is not a positive integer.
    """

    def __init__(self, m: int, n: int | None = None) -> None:
        n = m if n is None else n
        super().__init__(m, n)
        self.m, self.n = m, n
