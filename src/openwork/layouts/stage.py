"""What a layer may hold on its way from dense to its layout's density, while all of its weights are kept."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from openwork.budgets import active_weights
from openwork.layouts.atoms import AtomLayout
from openwork.layouts.base import Dims, Layout, LayoutError, matrix
from openwork.layouts.classes import first_of_classes
from openwork.pattern import Pattern


class Stage:
    """A layout at some density at or above its own.

    A layout of any density is its own stage.  One of a single density is reached over its ``rungs``: between two of them, every
    set of the denser one keeps its best, and of these as many fall as the density says, those of least score first, as long as
    every set of the sparser rung keeps what it has to.

    Args:
        layout: where the way ends.
        dims: shape of the dense weight.
        density: of this stage.

    Attributes:
        count: units that this stage holds.

    Raises:
        LayoutError: the layout cannot be had at this density.
    """

    def __init__(self, layout: Layout, dims: Dims, density: float) -> None:
        self._low = layout
        self._high: AtomLayout | None = None
        self._shape = matrix(dims)
        rungs = layout.rungs(dims)
        if layout.density is None or density <= layout.density or len(rungs) == 1:
            self.count = layout.fit(dims, density)
            return
        total = self._shape[0] * self._shape[1]
        wanted = active_weights(total, density)
        for low, high in pairwise(rungs):
            assert isinstance(low, AtomLayout)
            assert isinstance(high, AtomLayout)
            self._low, self._high = low, high
            most, least = (int(rung.room(self._shape).sum()) for rung in (low, high))
            # A ragged layer may hold more than its density says, on the last rung.
            self.count = max(least, min(wanted, most))
            if wanted >= least:
                return

    def select(self, now: Pattern, chunks: Iterable[tuple[int, Tensor]]) -> Pattern:
        """The pattern of this stage, over the row groups of ``now``, that holds the most of ``chunks`` of element scores.

        Exact: between two rungs the choices are a laminar matroid, on which taking the best first is.
        """
        if self._high is None:
            return self._low.best(now, chunks, self.count)
        assert isinstance(self._low, AtomLayout)
        ranked = self._low.ranking(now, chunks, self.count)
        certain = first_of_classes(self._high.classes(now.shape, ranked), self._high.room(now.shape))
        others = np.delete(ranked, certain)[: self.count - len(certain)]
        return self._low.build(now.shape, np.concatenate([ranked[certain], others]), now.rows)

    def check(self, pattern: Pattern) -> None:
        """Raise ``LayoutError`` unless ``pattern`` is one of this stage."""
        if self._high is None:
            self._low.check(pattern, self.count)
            return
        assert isinstance(self._low, AtomLayout)
        pattern.validate()
        ids = self._low.atoms(pattern).numpy()
        held = [
            np.bincount(rung.classes(pattern.shape, ids), minlength=len(rung.room(pattern.shape)))
            for rung in (self._low, self._high)
        ]
        fits = (held[0] <= self._low.room(pattern.shape)).all() and (held[1] >= self._high.room(pattern.shape)).all()
        if not torch.equal(pattern.rows, self._low.rows(pattern.shape)) or len(ids) != self.count or not fits:
            raise LayoutError(
                f"the pattern is not one on the way from {self._low!r} to {self._high!r} with {self.count} weights"
            )
