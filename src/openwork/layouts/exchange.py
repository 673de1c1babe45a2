"""Groups of rows that keep the most weight: rows are exchanged between groups as long as that helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROUNDS = 50
"""Exchanges stop by themselves, most often after some ten rounds; this many at the most."""

PANEL = 2**22
"""Pairs of rows that are looked at together."""


class Grouping(NamedTuple):
    """Row groups and what is kept of them.

    Attributes:
        rows: int32 ``[G, h]``, -1 is padding; rows ascend within a group.
        ids: int64, the vectors that are kept; ``g * C + c`` is column ``c`` of group ``g``.
        mass: the sum of ``|w|`` in them.
    """

    rows: Tensor
    ids: np.ndarray
    mass: float


def keep_most(size: Tensor, starts: Sequence[Tensor], choose: Callable[[np.ndarray], np.ndarray]) -> Grouping:
    """The best of the groupings given, and a better one where exchanging rows leads to it.

    This is k-means with groups of fixed size, for the sum that is wanted itself.  Rounds alternate: with the kept columns
    fixed, a row is worth to any group what it holds in that group's columns, and pairs of rows are exchanged where both
    together gain, each row with the partner of greatest gain, all pairs at once; then the columns are chosen anew.  Neither
    lowers the mass, so none of ``starts`` keeps more than the result.

    Args:
        size: ``[R, C]``, ``|w|``; dense, as is a ``[R, G]`` table of worths.
        starts: int32 ``[G, h]`` each, row groups to begin with; the first of the best.
        choose: from the l1 norms of all vectors, flat, those to keep.

    Returns:
        A grouping that no single exchange betters, or that of the last round.
    """
    best = max((_judged(size, rows, choose) for rows in starts), key=lambda grouping: grouping.mass)
    for _ in range(ROUNDS):
        trial = _judged(size, _exchanged(size, best), choose)
        if not trial.mass > best.mass:
            break
        best = trial
    return best


def _judged(size: Tensor, rows: Tensor, choose: Callable[[np.ndarray], np.ndarray]) -> Grouping:
    norms = torch.zeros(len(rows), size.shape[1], dtype=torch.float64)
    for place in rows.long().t():
        real = place >= 0
        norms[real] += size[place[real]]
    flat = norms.view(-1).numpy()
    ids = choose(flat)
    return Grouping(rows, ids, float(flat[ids].sum()))


def _exchanged(size: Tensor, now: Grouping) -> Tensor:
    """The row groups after one round of exchanges."""
    kept = torch.zeros(len(now.rows), size.shape[1], dtype=size.dtype)
    kept.view(-1)[torch.from_numpy(now.ids)] = 1.0
    worth = (size @ kept.t()).numpy()
    place = np.empty(len(size), dtype=np.int64)  # of each row, among all places of the groups
    ids = now.rows.numpy().ravel()
    place[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
    group = place // now.rows.shape[1]
    partner, gain = _partners(worth, group)
    first = np.flatnonzero((partner[partner] == np.arange(len(group))) & (partner > np.arange(len(group))) & (gain > 0))
    second = partner[first]
    place[first], place[second] = place[second], place[first]
    moved = np.full(len(ids), len(size), dtype=np.int32)
    moved[place] = np.arange(len(size))
    rows = np.sort(moved.reshape(now.rows.shape), axis=1)
    rows[rows == len(size)] = -1
    return torch.from_numpy(rows)


def _partners(worth: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the row with which it would best change places (the lowest of equals), and what that gains."""
    n_rows = len(group)
    own = worth[np.arange(n_rows), group]
    partner, gain = np.empty(n_rows, dtype=np.int64), np.empty(n_rows, dtype=worth.dtype)
    step = max(1, PANEL // n_rows)
    for first in range(0, n_rows, step):
        part = slice(first, min(first + step, n_rows))
        # The same sums in the same order from either side: two rows agree on what their exchange gains.
        together = worth[part][:, group] + worth[:, group[part]].T
        together -= own[part, None] + own
        partner[part] = together.argmax(1)
        gain[part] = together.max(1)
    return partner, gain
