"""Best-first search of the blocks of an outer product, without forming it (DSB, sec. 4, "block-wise grow criterion")."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from openwork.scores import member

_TOGETHER = 2**18
"""Weights of the blocks that are looked up at a time; a few arrays of 8 bytes for each."""


def block_order(row_norm: np.ndarray, col_norm: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs ``(u, v)`` by descending ``row_norm[u] * col_norm[v]``, for norms in descending order; ties by ``(u, v)``.

    The search starts at (0, 0) and keeps a frontier of the right and lower neighbours of what it has taken, which is exact
    because the products fall along both axes.
    """
    if not len(row_norm) or not len(col_norm):
        return
    frontier = [(-float(row_norm[0]) * float(col_norm[0]), 0, 0)]
    while frontier:
        _, u, v = heapq.heappop(frontier)
        yield u, v
        if v + 1 < len(col_norm):
            heapq.heappush(frontier, (-float(row_norm[u]) * float(col_norm[v + 1]), u, v + 1))
        # Every pair is reached once: downwards from the first column, to the right elsewhere.
        if v == 0 and u + 1 < len(row_norm):
            heapq.heappush(frontier, (-float(row_norm[u + 1]) * float(col_norm[0]), u + 1, 0))


def grow_blocks(
    row_norm: np.ndarray, col_norm: np.ndarray, block: tuple[int, int], active: np.ndarray, wanted: int
) -> np.ndarray:
    """The best blocks, until they hold ``wanted`` weights that are not active.

    Rows and columns are sorted by norm and cut into groups of ``block``; a block is worth the product of its groups' sums.

    Args:
        row_norm: ``[R]``, norms of the output gradient's rows.
        col_norm: ``[C]``, norms of the input's rows.
        block: rows and columns of a block to grow.
        active: int64, ascending flat positions of the active weights.
        wanted: how many new weights are needed.

    Returns:
        int64 ``[blocks, m * n]``: flat positions block by block, -1 where a block sticks out.
    """
    rows, row_sum = _groups(row_norm, block[0])
    cols, col_sum = _groups(col_norm, block[1])
    order = block_order(row_sum, col_sum)
    blocks, new = [np.empty((0, block[0] * block[1]), dtype=np.int64)], 0
    while new < wanted:
        # One membership test for many blocks at once, as many as are needed at least: the order does not depend on it.
        many = max(256, min(wanted - new, _TOGETHER) // (block[0] * block[1]))
        batch = [pair for _, pair in zip(range(many), order, strict=False)]
        if not batch:
            break
        u, v = np.array(batch).T
        flat = rows[u][:, :, None] * len(col_norm) + cols[v][:, None, :]
        flat[(rows[u] < 0)[:, :, None] | (cols[v] < 0)[:, None, :]] = -1
        flat = flat.reshape(len(batch), -1)
        reached = new + np.cumsum(((flat >= 0) & ~member(flat, active)).sum(1))
        enough = int(np.searchsorted(reached, wanted)) + 1
        blocks.append(flat[:enough])
        new = int(reached[min(enough, len(batch)) - 1])
    return np.concatenate(blocks)


def _groups(norm: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids in groups of ``size`` by descending norm, the last padded with -1, and the sum of each group."""
    order = np.argsort(-norm, kind="stable")
    padded = np.full(-(-len(norm) // size) * size, -1, dtype=np.int64)
    padded[: len(norm)] = order
    sums = np.add.reduceat(norm[order].astype(np.float64), np.arange(0, len(norm), size))
    return padded.reshape(-1, size), sums
