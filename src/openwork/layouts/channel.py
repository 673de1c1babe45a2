"""Channel sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import Dims, LayoutRule
from openwork.layouts.classes import summed
from openwork.layouts.settle import Weights
from openwork.layouts.slabs import SlabLayout, grouped, repeated
from openwork.pattern import Pattern


class Channel(LayoutRule):
    """Whole input channels, each kept or dropped for all outputs (MEST, App. A).

    A dropped channel is neither read nor multiplied: what is computed is a smaller dense layer.
    """

    def for_layer(self, name: str, dims: Dims) -> Channels:
        """The channels of this layer."""
        return Channels(self, dims)


class Channels(SlabLayout):
    """The input channels of one layer: ``kh * kw`` consecutive columns over all rows.

    Every row group holds the same columns; groups of a few rows, not one of all, let threads share the work.
    """

    @property
    def _taps(self) -> int:
        return math.prod(self._dims[2:])

    @property
    def block(self) -> tuple[int, int]:
        """All rows, the taps of one channel."""
        return self._dims[0], self._taps

    def size(self, shape: tuple[int, int]) -> int:
        """Rows times taps."""
        return shape[0] * self._taps

    def total_atoms(self, shape: tuple[int, int]) -> int:
        """Input channels."""
        return shape[1] // self._taps

    def rows(self, shape: tuple[int, int]) -> Tensor:
        """All rows in their own order."""
        return grouped(np.arange(shape[0]))

    def build(self, shape: tuple[int, int], ids: np.ndarray, rows: Tensor) -> Pattern:
        """Channels in ascending order."""
        cols = (np.sort(ids)[:, None] * self._taps + np.arange(self._taps)).ravel()
        return repeated(shape, rows, cols)

    def atoms(self, now: Pattern) -> Tensor:
        """Channels in storage order."""
        return now.cols[: now.offsets[1] : self._taps].long() // self._taps

    def gather(self, now: Pattern, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Over all rows and taps."""
        return summed(weights.flat % now.shape[1] // self._taps, weights.score)

    def pool(self, now: Pattern, scores: Tensor) -> Tensor:
        """The mean over a channel's real weights; padded entries are 0."""
        per_tap = scores.double().sum(1).view(now.groups, -1, self._taps)
        return per_tap.sum((0, 2)) / self.size(now.shape)

    def pool_chunks(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All channels at once, after the last chunk: each reaches through all rows."""
        total = torch.zeros(now.shape[1] // self._taps, dtype=torch.float64)
        for first, scores in chunks:
            rows = now.rows[first : first + len(scores)]
            summed = scores.double().masked_fill((rows < 0)[:, :, None], 0.0).sum((0, 1))
            total += summed.view(-1, self._taps).sum(1)
        yield np.arange(len(total)), (total / self.size(now.shape)).numpy()
