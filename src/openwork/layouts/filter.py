"""Filter sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from openwork.layouts.base import Dims, LayoutRule
from openwork.layouts.classes import summed
from openwork.layouts.settle import Weights
from openwork.layouts.slabs import SlabLayout, grouped, repeated
from openwork.pattern import Pattern, consecutive_rows


class Filter(LayoutRule):
    """Whole output channels, each kept or dropped (MEST, App. A).

    A dropped filter stands in no row group: it is neither stored nor computed, and its output is the bias alone.
    """

    def for_layer(self, name: str, dims: Dims) -> Filters:
        """The filters of this layer."""
        return Filters(self, dims)


class Filters(SlabLayout):
    """The rows of one layer's weight; the row groups hold the active ones only."""

    @property
    def block(self) -> tuple[int, int]:
        """One row, all columns."""
        return 1, int(np.prod(self._dims[1:]))

    def size(self, shape: tuple[int, int]) -> int:
        """Columns."""
        return shape[1]

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """Rows."""
        return shape[0]

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """None yet: rows are those of the active filters."""
        return grouped(np.empty(0))

    def ground(self, now: Pattern) -> Tensor:
        """Every row, active or not."""
        return consecutive_rows(now.shape[0], 1)

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Active rows in ascending order, in groups of their own, whatever the groups were."""
        return repeated(shape, grouped(np.sort(ids)), np.arange(shape[1]))

    def atoms(self, now: Pattern) -> Tensor:
        """Rows in storage order."""
        return now.rows[now.rows >= 0].long()

    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Over all columns."""
        return summed(weights.flat // now.shape[1], weights.score)

    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean over a row."""
        return scores.double().view(now.groups, now.shape[1], now.height).mean(1)[now.rows >= 0]

    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of a chunk."""
        for first, scores in chunks:
            yield np.arange(first, first + len(scores)), scores.double().mean((1, 2)).numpy()
