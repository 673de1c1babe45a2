"""Square masks with the same number of entries in every row and column, for many tiles at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np

Solver = Literal["exact", "greedy"]

_ENUMERABLE = 4
"""Tiles up to this size are solved by trying all masks: 90 for 2:4."""


def exact(score: np.ndarray, n: int) -> np.ndarray:
    """The masks of highest sum.

    Args:
        score: float ``[T, M, M]``.
        n: entries in every row and column.

    Returns:
        bool ``[T, M, M]``.  Ties go to the first mask found; the result is the same in every run.
    """
    size = score.shape[1]
    if size > _ENUMERABLE:
        return _augmented(np.zeros(score.shape, dtype=bool), score, n)
    masks = all_masks(size, n)
    best = (score.reshape(-1, size * size) @ masks.reshape(len(masks), -1).T).argmax(1)
    return masks[best]


def greedy(score: np.ndarray, n: int) -> np.ndarray:
    """From the highest score down, an entry is kept if its row and column have room; rows left short are then completed.

    What is kept before the completion is at least half of the best sum (for scores of at least 0); completing takes shortest
    augmenting paths without regard to scores.
    """
    tiles, size = len(score), score.shape[1]
    mask = np.zeros(score.shape, dtype=bool)
    room_of_row, room_of_col = np.full((tiles, size), n), np.full((tiles, size), n)
    order = np.argsort(-score.reshape(tiles, -1), axis=1, kind="stable")
    every = np.arange(tiles)
    for k in range(size * size):
        row, col = np.divmod(order[:, k], size)
        fits = (room_of_row[every, row] > 0) & (room_of_col[every, col] > 0)
        mask[every, row, col] = fits
        room_of_row[every, row] -= fits
        room_of_col[every, col] -= fits
    return _augmented(mask, None, n)


SOLVERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"exact": exact, "greedy": greedy}


@cache
def all_masks(size: int, n: int) -> np.ndarray:
    """bool ``[masks, size, size]``: every mask with ``n`` entries in each row and column."""
    rows = np.array([[i in chosen for i in range(size)] for chosen in itertools.combinations(range(size), n)])
    masks = [rows[list(chosen)] for chosen in itertools.product(range(len(rows)), repeat=size)]
    return np.array([mask for mask in masks if (mask.sum(0) == n).all()])


def _augmented(mask: np.ndarray, score: np.ndarray | None, n: int) -> np.ndarray:
    """Complete masks to ``n`` in each row and column, one shortest path of the flow network at a time.

    Rows are sources and columns sinks, with room for ``n``; an entry that is not in the mask leads from its row to its column
    at the cost ``-score``, one that is leads back at ``+score``.  From an empty mask this is the successive shortest path
    method, so the result is the best; without scores every step costs 1.
    """
    mask = mask.copy()
    cost = np.ones(mask.shape) if score is None else -np.asarray(score, dtype=np.float64)
    short = np.flatnonzero((mask.sum(2) < n).any(1))
    while len(short):
        _augment(mask, cost, short, n, signed=score is not None)
        short = short[(mask[short].sum(2) < n).any(1)]
    return mask


def _augment(mask: np.ndarray, cost: np.ndarray, tiles: np.ndarray, n: int, *, signed: bool) -> None:
    """Change ``mask`` along one shortest path in each of ``tiles``."""
    held, price = mask[tiles], cost[tiles]
    forth = np.where(held, np.inf, price)
    back = np.where(held, -price if signed else price, np.inf)
    to_row = np.where(held.sum(2) < n, 0.0, np.inf)
    to_col = np.full_like(to_row, np.inf)
    from_row, from_col = np.full(to_row.shape, -1), np.full(to_row.shape, -1)
    for _ in range(mask.shape[1]):
        via = to_row[:, :, None] + forth
        better = via.min(1) < to_col - 1e-12
        from_row = np.where(better, via.argmin(1), from_row)
        to_col = np.where(better, via.min(1), to_col)
        via = to_col[:, None, :] + back
        closer = via.min(2) < to_row - 1e-12
        from_col = np.where(closer, via.argmin(2), from_col)
        to_row = np.where(closer, via.min(2), to_row)
        if not closer.any():
            break
    col = np.where(held.sum(1) < n, to_col, np.inf).argmin(1)
    going = np.arange(len(tiles))
    while len(going):
        row = from_row[going, col]
        mask[tiles[going], row, col] = True
        last = from_col[going, row]
        going, row, col = going[last >= 0], row[last >= 0], last[last >= 0]
        mask[tiles[going], row, col] = False
