"""Complementary sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openwork.layouts.base import Dims, check_sizes
from openwork.layouts.sets import Axis, SetLayout, SetRule


class Complementary(SetRule):
    """One weight kept of every ``k`` that lie ``distance`` apart: complementary sparsity, *reconstructed*.

    The paper's exact definition (CS, TMLR 2023) is not public; this is the reading that agrees with all that is.  An axis is
    cut in segments of ``k * distance`` positions; in a segment, lane ``j`` is the set of the positions ``j + i * distance``,
    ``0 <= i < k``, and exactly one of them is kept.  The density is ``1 / k`` in every row and segment, so that threads and
    memory accesses are balanced; ``k = 2`` makes the masks of the two halves of a segment complementary, ``distance = 1`` is
    1:k.  A last, shorter segment of length ``L`` has sets of positions ``ceil(L / k)`` apart, and each keeps one.

    Args:
        k: weights in a set.
        distance: positions between neighbours of a set.
        axis: ``"in"``: input channels, at each output and tap; ``"out"``: output channels, at each column.

    Raises:
        ValueError: ``k`` or ``distance`` is not a positive integer, ``k`` is 1, or ``axis`` is unknown.
    """

    def __init__(self, k: int, distance: int = 16, axis: Axis = "in") -> None:
        check_sizes(k=k, distance=distance)
        if k == 1:
            raise ValueError("k=1 is dense; k must be at least 2")
        if axis not in ("in", "out"):
            raise ValueError(f"axis={axis!r} is unknown; known: in, out")
        self.k, self.distance, self.axis = k, distance, axis

    def for_layer(self, name: str, dims: Dims) -> SetLayout:
        """Sets along the axis of this layer."""
        return self._one_of(self.k, dims)

    def rungs(self, dims: Dims) -> Sequence[SetLayout]:
        """One weight kept of 1, 2, 4 and so on up to ``k`` neighbours in a set."""
        sizes = [2**i for i in range(self.k.bit_length()) if 2**i < self.k]
        return [self._one_of(k, dims) for k in (*sizes, self.k)]

    def _one_of(self, k: int, dims: Dims) -> SetLayout:
        """One weight kept of each ``k`` neighbours in a set."""
        length = dims[1] if self.axis == "in" else dims[0]
        segment, within = np.divmod(np.arange(length), self.k * self.distance)
        whole, rest = divmod(length, self.k * self.distance)
        lanes = np.where(segment < whole, self.distance, max(1, -(-rest // self.k)))
        sets = segment * self.distance + within % lanes
        part = sets * self.k + within // lanes // k
        member_of = np.unique(part, return_inverse=True)[1]
        keep = np.ones(int(member_of.max(initial=-1)) + 1, dtype=np.int64)
        return SetLayout(self, 1 / k, self.axis, math.prod(dims[2:]), member_of, keep)
