"""Vectors of output channels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openwork.layouts.base import TOPOLOGY_BUDGET, check_sizes
from openwork.layouts.classes import best_of_classes
from openwork.layouts.exchange import keep_most
from openwork.layouts.grouping import group_rows
from openwork.layouts.shares import EdgeShares, GroupShares, Shares
from openwork.layouts.tiles import TileLayout
from openwork.pattern import Pattern, consecutive_rows
from openwork.scores import highest

Balance = Literal["layer", "group"]


class OutVector(TileLayout):
    """Vectors of ``v`` rows by one column (OVW, Tan et al. 2022).

    Rows keep their groups, so the vectors are fixed atoms and every method works on them in its original form, at the speed of
    ``v x v`` blocks: kernels care about the height of a group, not about the width of a block.

    Without ``cluster`` a group is ``v`` consecutive rows, and the first vectors are drawn at random.  With it, groups are found
    once, from the magnitudes of the weights that the layer comes with, and the first vectors are those of greatest l1 norm:
    rows are clustered by what an unstructured magnitude mask keeps of them (Jaccard similarity), groups of ``v`` are cut from
    the clusters, and rows change places while that keeps more.  Where consecutive rows keep more ``sum |w|`` than the clusters,
    they are what it begins with, so that the groups found never keep less.  That is for sparsifying a *trained* model, whose
    rows have something in common; in random initial weights there is next to nothing to find.  Finding groups takes memory of
    the dense weight's size, while ``sparsify`` holds that weight.  ``ShuffledVector`` groups rows anew during training.

    Args:
        v: rows of a vector.
        cluster: whether similar rows are put together; the seed then has no part in the first pattern.
        balance: ``"layer"``: the vectors of a layer lie in any of its groups; ``"group"``: every group keeps the same number of
            columns at all times, so a count goes up or down by a column of all groups, rounded up.

    Raises:
        ValueError: ``v`` is not a positive integer, ``cluster`` is no truth value, or ``balance`` is unknown.
    """

    def __init__(self, v: int, cluster: bool = False, balance: Balance = "layer") -> None:
        check_sizes(v=v)
        super().__init__(v, 1)
        if not isinstance(cluster, bool):
            raise ValueError(f"cluster={cluster!r} must be True or False")
        if balance not in ("layer", "group"):
            raise ValueError(f"balance={balance!r} is unknown; known: layer, group")
        self.v, self.cluster, self.balance = v, cluster, balance

    @property
    def resizable(self) -> bool:
        """Whether a single vector may come or go."""
        return self.balance == "layer"

    def shares(self, shape: tuple[int, int]) -> Shares:
        """Full vectors and those of a low last group, or every group for itself."""
        return (EdgeShares if self.balance == "layer" else GroupShares)(shape, self.v, 1)

    def start(self, shape: tuple[int, int], count: int, weight: Tensor) -> tuple[Tensor, np.ndarray] | None:
        """With ``cluster``, groups of similar rows and their vectors of greatest norm."""
        if not self.cluster:
            return None
        size = weight.detach().abs().cpu().reshape(shape)
        size = size.to(torch.promote_types(size.dtype, torch.float32))
        limits, every = self.limits(shape, count), np.arange(self.total_atoms(shape))
        flat = highest(size.view(-1).numpy(), self.weights_of(shape, count))
        similar = group_rows(flat, shape, self.v, q=0.0, linkage="average", budget=TOPOLOGY_BUDGET)

        def choose(norms: np.ndarray) -> np.ndarray:
            return best_of_classes(every, norms, self.classes(shape, every), limits)

        found = keep_most(size, [consecutive_rows(shape[0], self.v), similar], choose)
        return found.rows, found.ids

    def own_rows(self, pattern: Pattern) -> Tensor:
        """With ``cluster``, any whole groups of all rows."""
        whole = pattern.height == self.v and int((pattern.rows >= 0).sum()) == pattern.shape[0]
        return pattern.rows if self.cluster and whole else super().own_rows(pattern)
