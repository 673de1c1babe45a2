"""Layouts that keep or drop a whole slice of the weight, so that what is left is a smaller dense layer."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import Dims, LayoutRule
from openwork.layouts.counted import CountedLayout
from openwork.pattern import Pattern

ROWS = 16
"""Rows of a group, at most: enough for the kernels' tiles, few enough that the groups of a layer keep every thread busy."""


class SlabLayout(CountedLayout):
    """Slices of equal size, any number of them.

    Args:
        rule: what made this layout; its name in reports and saved states.
        dims: shape of the layer's weight.
    """

    def __init__(self, rule: LayoutRule, dims: Dims) -> None:
        self._rule, self._dims = rule, dims

    @property
    def height(self) -> int:
        """At most 16 rows; as many in every group as possible."""
        return even_height(self._dims[0])

    @abstractmethod
    def size(self, shape: tuple[int, int]) -> int:
        """Weights in a slice."""

    def weights_of(self, shape: tuple[int, int], count: int) -> int:
        """All slices are alike."""
        return count * self.size(shape)

    def classes(self, shape: tuple[int, int], ids: np.ndarray) -> np.ndarray:
        """One class."""
        return np.zeros(len(ids), dtype=np.int64)

    def limits(self, shape: tuple[int, int], count: int) -> np.ndarray:
        """``count``, of the one class."""
        return np.array([count])

    def room(self, shape: tuple[int, int]) -> np.ndarray:
        """All."""
        return np.array([self.total_atoms(shape)])

    def supplement(
        self, shape: tuple[int, int], active: np.ndarray, drawn: np.ndarray, n: int, generator: torch.Generator
    ) -> np.ndarray:
        """Nothing: any slice can take the place of any other."""
        return np.empty(0, dtype=np.int64)

    def __repr__(self) -> str:
        return repr(self._rule)


def even_height(n_rows: int) -> int:
    """Rows in each of the fewest groups of at most 16 that hold ``n_rows``, shared out evenly."""
    return max(1, -(-n_rows // max(1, -(-n_rows // ROWS))))


def grouped(rows: np.ndarray) -> Tensor:
    """int32 ``[G, h]``: these rows in groups of equal height, the last one padded with -1."""
    height = even_height(len(rows))
    ids = np.full(-(-len(rows) // height) * height, -1, dtype=np.int32)
    ids[: len(rows)] = rows
    return torch.from_numpy(ids).view(-1, height)


def repeated(shape: tuple[int, int], rows: Tensor, cols: np.ndarray) -> Pattern:
    """The pattern in which every row group holds the same columns."""
    offsets = torch.arange(len(rows) + 1, dtype=torch.int32) * len(cols)
    return Pattern(shape, rows, offsets, torch.from_numpy(cols.astype(np.int32)).repeat(len(rows)))
