"""Vectors over shuffled rows."""

from openwork.layouts.base import Dims, LayoutRule, check_sizes
from openwork.layouts.shuffled_block import ShuffledBlock


class ShuffledVector(LayoutRule):
    """Vectors of any ``v`` rows by one column, the rows grouped anew by similarity (Shfl-BW, Huang et al. 2022).

    It is ``ShuffledBlock(v, 1)`` with every row taking part in the clustering; reports name it so.  The paper cuts the columns
    kept in a group in tiles for tensor cores; here a group's columns are contiguous in any case.

    Args:
        v: rows of a vector.

    Raises:
        ValueError: ``v`` is not a positive integer.
    """

    def __init__(self, v: int) -> None:
        check_sizes(v=v)
        self.v = v

    def for_layer(self, name: str, dims: Dims) -> ShuffledBlock:
        """The same for every layer."""
        return ShuffledBlock(self.v, 1, q=0.0)
