"""N:M sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openwork.layouts.base import Dims, check_sizes
from openwork.layouts.sets import SetLayout, SetRule


class NM(SetRule):
    """``n`` weights kept of every ``m`` consecutive input channels, at each output and tap (Zhou et al. 2021).

    The density is ``n / m``; ask ``sparsify`` for ``sparsity = 1 - n / m``.  Where the channels do not divide by ``m``, the
    last group is narrower and keeps at most ``n``.  Hubara et al. word it as ``n`` zeros; the two agree for ``n = m / 2``.

    Args:
        n: weights kept in a group.
        m: weights in a group.

    Raises:
        ValueError: ``n`` or ``m`` is not a positive integer, or ``n`` is not less than ``m``.
    """

    def __init__(self, n: int, m: int) -> None:
        check_sizes(n=n, m=m)
        if n >= m:
            raise ValueError(f"n={n} of m={m} is dense; n must be less than m")
        self.n, self.m = n, m

    def for_layer(self, name: str, dims: Dims) -> SetLayout:
        """Groups along the input channels of this layer."""
        return self._keeping(self.n, dims)

    def rungs(self, dims: Dims) -> Sequence[SetLayout]:
        """One weight less in every group from rung to rung."""
        return [self._keeping(n, dims) for n in range(self.m, self.n - 1, -1)]

    def _keeping(self, n: int, dims: Dims) -> SetLayout:
        member_of = np.arange(dims[1]) // self.m
        keep = np.minimum(n, np.bincount(member_of))
        return SetLayout(self, n / self.m, "in", math.prod(dims[2:]), member_of, keep)
