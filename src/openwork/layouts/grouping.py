"""Which rows should share their columns: Jaccard similarity, clustering, groups cut from clusters (DSB, sec. 4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork.layouts import compiled
from openwork.layouts.linkage import Linkage, cluster

_STRIP = 32
"""Rows of the similarity that are divided at a time: few calls, and a temporary that stays small."""


def group_rows(flat: np.ndarray, shape: tuple[int, int], height: int, *, q: float, linkage: Linkage, budget: int) -> Tensor:
    """Partition the rows of a sparse matrix into groups of ``height`` similar rows.

    A row takes part in the clustering iff it has more than a share ``q`` of its non-zeros in common with some other row; the
    others follow the clusters in their own order.  Clusters come from the largest to the smallest.

    Args:
        flat: int64, the flat positions of the non-zeros.
        shape: ``(R, C)``.
        height: rows in a group.
        q: in [0, 1].
        linkage: of the clustering.
        budget: bytes of temporaries.  The ``R x R`` similarity takes a quarter of it; a matrix with more rows than that allows
            is handled in panels of consecutive rows, and rows of different panels never meet.

    Returns:
        int32 ``[G, height]``, the last group padded with -1; rows ascend within a group.
    """
    n_rows = shape[0]
    panel = max(height, int((budget / 16) ** 0.5) // height * height)
    order = [
        first + _panel_order(flat, shape, range(first, min(first + panel, n_rows)), height, q, linkage, budget)
        for first in range(0, n_rows, panel)
    ]
    padded = np.full(-(-n_rows // height) * height, n_rows, dtype=np.int32)
    padded[:n_rows] = np.concatenate(order)
    rows = np.sort(padded.reshape(-1, height), axis=1)
    rows[rows == n_rows] = -1
    return torch.from_numpy(rows)


def intersections(flat: np.ndarray, shape: tuple[int, int], rows: range, budget: int) -> np.ndarray:
    """float32 ``[len(rows), len(rows)]``: common non-zero columns of every two rows, as one mask product in column chunks."""
    inside = flat[(flat >= rows.start * shape[1]) & (flat < rows.stop * shape[1])]
    # Column by column; 4 bytes are enough for either index.
    row, col = (part.astype(np.int32) for part in np.divmod(inside, shape[1]))
    order = np.argsort(col, kind="stable")
    row, col = row[order] - rows.start, col[order]
    del inside, order
    common = torch.zeros(len(rows), len(rows))
    width = max(1, min(shape[1], budget // (32 * len(rows))))
    for first in range(0, shape[1], width):
        lo, hi = np.searchsorted(col, [first, first + width])
        mask = torch.zeros(len(rows), min(width, shape[1] - first))
        mask[torch.from_numpy(row[lo:hi]), torch.from_numpy(col[lo:hi] - first)] = 1.0
        common.addmm_(mask, mask.t())
    return common.numpy()


def _panel_order(
    flat: np.ndarray, shape: tuple[int, int], rows: range, height: int, q: float, linkage: Linkage, budget: int
) -> np.ndarray:
    """The rows of a panel, counted from its first, clusters first."""
    count, form = (compiled.intersections, compiled.cluster) if compiled.built() else (intersections, cluster)
    common = count(flat, shape, rows, budget)
    size = common.diagonal().copy()
    np.fill_diagonal(common, 0.0)
    joined = common.max(axis=1) > q * size if len(rows) > 1 else np.zeros(len(rows), dtype=bool)
    taking = np.flatnonzero(joined)
    rest = np.flatnonzero(~joined)
    if len(taking) <= height:
        return np.concatenate([taking, rest])
    if len(rest):
        common = common[np.ix_(taking, taking)]
    size = size[taking]
    for first in range(0, len(common), _STRIP):
        own = common[first : first + _STRIP]
        own /= np.maximum(size[first : first + _STRIP, None] + size - own, 1.0)
    distance = np.subtract(1.0, common, out=common)
    labels = form(distance, max(1, len(taking) // height), linkage)
    members = np.bincount(labels)
    ranked = np.lexsort((taking, labels, -members[labels]))
    return np.concatenate([taking[ranked], rest])
