"""Transposable N:M sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import Dims, LayoutError, LayoutRule, check_sizes, matrix
from openwork.layouts.one_density import OneDensity
from openwork.layouts.refit import RefitLayout
from openwork.layouts.settle import Weights
from openwork.layouts.tile_masks import SOLVERS, Solver
from openwork.layouts.unstructured import Unstructured
from openwork.pattern import Pattern, consecutive_rows

CHUNK = 2**18
"""Weights whose tiles are solved together."""


class TransposableNM(LayoutRule):
    """``n`` weights in every row *and* column of each ``m x m`` tile: ``W`` and ``W^T`` are both N:M (Hubara et al. 2021).

    A tile is ``m`` output channels by ``m`` consecutive input channels, at one tap.  Layers whose channels do not divide by
    ``m`` stay dense.  Masks are chosen anew at every update, for as much weight as they can keep.

    Args:
        n: weights kept in each row and column of a tile.
        m: rows and columns of a tile.
        solver: ``"exact"``: the most weight, by enumeration for small tiles and min-cost flow for others; ``"greedy"``: largest
            first, at least half of that, faster for large tiles.

    Raises:
        ValueError: ``n`` or ``m`` is not a positive integer, ``n`` is not less than ``m``, or ``solver`` is unknown.
    """

    def __init__(self, n: int, m: int, solver: Solver = "exact") -> None:
        check_sizes(n=n, m=m)
        if n >= m:
            raise ValueError(f"n={n} of m={m} is dense; n must be less than m")
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r} is unknown; known: {', '.join(SOLVERS)}")
        self.n, self.m, self.solver = n, m, solver

    def for_layer(self, name: str, dims: Dims) -> TransposableTiles:
        """The tiles of this layer.

        Raises:
            LayoutError: its channels do not divide by ``m``.
        """
        if dims[0] % self.m or dims[1] % self.m:
            channels = f"{dims[0]} output and {dims[1]} input channels"
            raise LayoutError(f"{self!r} needs channels that divide by {self.m}; the layer has {channels}")
        return TransposableTiles(self, math.prod(dims[2:]))


class TransposableTiles(OneDensity, RefitLayout):
    """The tiles of one layer; methods see single weights.

    Args:
        rule: what made this layout.
        taps: ``kh * kw`` of a convolution, 1 of a linear layer.
    """

    def __init__(self, rule: TransposableNM, taps: int) -> None:
        super().__init__(rule, rule.n / rule.m)
        self._n, self._m, self._taps = rule.n, rule.m, taps
        self._solve = SOLVERS[rule.solver]
        self.vectors = Unstructured()

    def held(self, shape: tuple[int, int]) -> int:
        """What the tiles of a matrix keep."""
        return shape[0] * shape[1] // self._m * self._n

    def initial(self, dims: Dims, count: int, weight: Tensor, generator: torch.Generator) -> Pattern:
        """The best masks of random scores."""
        size = (self._m, self._m)
        return self._solved(matrix(dims), lambda first, last: torch.rand((last - first, *size), generator=generator).numpy())

    def project(self, now: Pattern, weights: Weights, count: int, *, regroup: bool) -> Pattern:
        """The best mask of every tile; there are no row groups to form."""
        self.check_count(now.shape, count)
        tile, row, col = self._place(now.shape, weights.flat)
        order = np.argsort(tile, kind="stable")
        ranked, score = tile[order], weights.score[order]
        within = (row * self._m + col)[order]

        def scores(first: int, last: int) -> np.ndarray:
            found = np.zeros((last - first) * self._m**2)
            low, high = np.searchsorted(ranked, [first, last])
            found[(ranked[low:high] - first) * self._m**2 + within[low:high]] = score[low:high]
            return found.reshape(-1, self._m, self._m)

        return self._solved(now.shape, scores)

    def _solved(self, shape: tuple[int, int], scores: Callable[[int, int], np.ndarray]) -> Pattern:
        """The masks of all tiles, given the scores of the tiles ``[first, last)``; some at a time, so nothing dense is held."""
        tiles, step = shape[0] * shape[1] // self._m**2, max(1, CHUNK // self._m**2)
        found = [np.empty(0, dtype=np.int64)]
        for first in range(0, tiles, step):
            tile, row, col = np.nonzero(self._solve(scores(first, min(first + step, tiles)), self._n))
            band, rest = np.divmod(tile + first, shape[1] // self._m)
            channels, tap = np.divmod(rest, self._taps)
            found.append((band * self._m + row) * shape[1] + (channels * self._m + col) * self._taps + tap)
        return self.vectors.build(shape, np.concatenate(found), consecutive_rows(shape[0], 1))

    def _place(self, shape: tuple[int, int], flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tile, and row and column in it, of each flat position."""
        (band, row), (channel, tap) = np.divmod(flat // shape[1], self._m), np.divmod(flat % shape[1], self._taps)
        channels, col = np.divmod(channel, self._m)
        return band * (shape[1] // self._m) + channels * self._taps + tap, row, col

    def check(self, pattern: Pattern, count: int) -> None:
        """Every row and column of every tile holds ``n``."""
        pattern.validate()
        if not torch.equal(pattern.rows, consecutive_rows(pattern.shape[0], 1)):
            raise LayoutError(f"the pattern is not one of {self!r}: its row groups differ")
        tile, row, col = self._place(pattern.shape, pattern.positions.numpy().ravel())
        lines = pattern.shape[0] * pattern.shape[1] // self._m
        for line in (row, col):
            if not (np.bincount(tile * self._m + line, minlength=lines) == self._n).all():
                raise LayoutError(f"the pattern is not one of {self!r}: a row or column of a tile does not hold {self._n}")
        if count != pattern.nnz:
            raise LayoutError(f"the pattern holds {pattern.nnz} weights, not {count}")
