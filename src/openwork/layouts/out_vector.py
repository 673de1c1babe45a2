"""Vectors of output channels."""

from openwork.layouts.base import check_sizes
from openwork.layouts.tiles import TileLayout


class OutVector(TileLayout):
    """Vectors of ``v`` rows by one column (OVW, Tan et al. 2022).

    Rows keep their groups, so the vectors are fixed atoms and every method works on them in its original form, at the speed of
    ``v x v`` blocks: kernels care about the height of a group, not about the width of a block.

    Args:
        v: rows of a vector.

    Raises:
        ValueError: ``v`` is not a positive integer.
    """

    def __init__(self, v: int) -> None:
        check_sizes(v=v)
        super().__init__(v, 1)
        self.v = v
