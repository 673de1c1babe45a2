"""What methods say and layouts hear: scores and proposals, no behaviour."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from openwork import compiled


class Evidence(Enum):
    """What a method needs to see of a layer's backward pass in the step of a topology update."""

    DENSE_GRAD = "dense gradient, in row chunks"
    L1_NORMS = "l1 norms of the rows of the input and of the output gradient"
    L2_NORMS = "l2 norms of the rows of the input and of the output gradient"
    SIGNED_SUMS = "rows of the input and of the output gradient, summed with the same random signs"
    GRAD_AT = "the gradient at chosen positions"


class Scores(NamedTuple):
    """How much each candidate is worth; higher is better.

    Args:
        value: float ``[n]``.
        ids: int64 ``[n]``, the candidates.  None: every inactive one, in ascending order.  -1 is padding.
    """

    value: Tensor
    ids: Tensor | None = None


class Refit(NamedTuple):
    """Asks a layout to treat single weights, not its atoms, as the units of drop and grow (DSB, sec. 4).

    Args:
        lift: the score of a new weight while the layout re-forms its units: the ``"max"`` (paper) or the ``"mean"`` (public
            code) of the active magnitudes.
        regroup: whether rows may change their group, in layouts that can move rows.
        block_aware: drop a small weight only where at least half of its row or of its column in the block is small too.
        batch: candidates come in batches of this many and a batch is taken whole.
        regrow: whether a weight dropped by this proposal may be grown by it.
    """

    lift: Literal["max", "mean"] = "max"
    regroup: bool = True
    block_aware: bool = False
    batch: int = 1
    regrow: bool = True


class Proposal(NamedTuple):
    """What a method wants of one layer at a topology update.

    Args:
        keep: float, one score for each active atom, in the layout's order (with ``refit``: for each active weight, in storage
            order).
        n_drop: how many of the lowest-scored should go; the layout may refuse some.
        grow: the candidates to take their place.
        count: units wanted afterwards, as ``Layout.fit`` counts them.
        refit: None, or how to move single weights.
    """

    keep: Tensor
    n_drop: int
    grow: Scores
    count: int  # type: ignore[assignment]  # the word of the design; nobody counts the entries of a proposal
    refit: Refit | None = None


class Selection(NamedTuple):
    """What a method that trains all weights wants of one layer: those of greatest magnitude, active or not.

    Args:
        density: of the layer afterwards.
    """

    density: float


def ascending(ids: np.ndarray) -> np.ndarray:
    """``ids`` sorted: itself where it is, and a few ascending runs are merged, both much faster than a sort."""
    falls = np.count_nonzero(ids[1:] < ids[:-1])
    return np.sort(ids, kind="stable" if falls < 4 else None) if falls else ids


_TABLE = 2**23
"""Bytes of the largest table of members: an eighth of what a topology update may hold beyond the layer's own."""


def member(ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Whether each of ``ids`` stands in the ascending array ``ranked``."""
    if not len(ranked):
        return np.zeros(ids.shape, dtype=bool)
    if 8 * ids.size > len(ranked) and compiled.takes(ids, ranked):
        found = compiled.member(ids, ranked)
        if found is not None:
            return found
    if ids.ndim == 1 and len(ids) > 1 and (ids[1:] > ids[:-1]).all():
        return _merged(ids, ranked) if 4 * len(ids) > len(ranked) else _searched(ids, ranked)
    if ranked[0] >= 0 and ranked[-1] < min(_TABLE, 64 * ids.size):
        return _looked_up(ids, ranked)
    if ids.ndim > 1 or len(ids) < 2:
        return _searched(ids, ranked)
    # Searches in order walk along ``ranked``; in any order they jump about it, which takes several times as long.
    found = np.empty(len(ids), dtype=bool)
    for first in range(0, len(ids), 1 << 16):
        some = ids[first : first + (1 << 16)]
        order = np.argsort(some)
        found[first + order] = _searched(some[order], ranked)
    return found


def _looked_up(ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """``member`` in any order by a byte for every number up to the last of ``ranked``: one look instead of a search."""
    table = np.zeros(int(ranked[-1]) + 1, dtype=bool)
    table[ranked] = True
    inside = (ids >= 0) & (ids < len(table))
    found: np.ndarray = table[np.where(inside, ids, 0)]
    found &= inside
    return found


def _searched(ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    at = np.searchsorted(ranked, ids)
    at[at == len(ranked)] = 0
    same: np.ndarray = ranked[at] == ids
    return same


def _merged(ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """``member`` of distinct ascending ids: a stable sort merges two runs in a quarter of the time of as many searches."""
    short = max(ids[-1], ranked[-1]) < 2**31
    both = np.concatenate([ids, ranked], dtype=np.int32 if short else np.int64, casting="same_kind")
    both.sort(kind="stable")
    twice = both[np.flatnonzero(both[1:] == both[:-1])]
    del both
    found = np.zeros(len(ids), dtype=bool)
    at = np.searchsorted(ids, twice.astype(ids.dtype))
    at[at == len(ids)] = 0
    found[at[ids[at] == twice]] = True  # what stands twice in ``ranked`` alone is none
    return found


def absent(ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """The distinct ``ids``, ascending, that do not stand in the ascending array ``ranked``."""
    if compiled.takes(ids, ranked):
        found = compiled.absent(ids, ranked)
        if found is not None:
            return found
    ids = np.sort(ids)
    distinct = ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
    return distinct[~member(distinct, ranked)]


def without(items: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``items`` but for those at the indices ``at``, which ascend and do not repeat."""
    if compiled.takes(at) and items.ndim == 1 and items.flags.c_contiguous:
        return compiled.without(items, at)
    return np.delete(items, at)


def arguments(thing: object) -> str:
    """``Name(argument=value, ...)`` of an object that keeps its arguments under their names; defaults are left out."""
    parameters = inspect.signature(type(thing)).parameters.values()
    given = [(p.name, getattr(thing, p.name)) for p in parameters if getattr(thing, p.name) != p.default]
    return f"{type(thing).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"


def lowest(score: np.ndarray, n: int) -> np.ndarray:
    """Indices of the ``n`` lowest scores, ties by lowest index: exact, where a threshold is not."""
    n = max(0, min(int(n), len(score)))
    if n == 0 or n == len(score):
        return np.arange(n)
    edge = np.partition(score, n - 1)[n - 1]
    chosen = np.flatnonzero(score <= edge)
    if len(chosen) == n:
        return chosen
    below = np.flatnonzero(score < edge)
    tied = np.flatnonzero(score == edge)[: n - len(below)]
    return np.sort(np.concatenate([below, tied]))


def highest(score: np.ndarray, n: int) -> np.ndarray:
    """Indices of the ``n`` highest scores, ties by lowest index."""
    return lowest(-score, n)


def descending(score: np.ndarray) -> np.ndarray:
    """Indices by falling score, ties by lowest index: a stable ``argsort``, several times as fast on a long array."""
    order = np.argsort(-score)
    ranked = score[order]
    same = (ranked[1:] == ranked[:-1]) | (np.isnan(ranked[1:]) & np.isnan(ranked[:-1]))
    if not same.any():
        return order
    # Within a run of equal scores the indices have to ascend: sort them together with the number of their run.
    run = np.concatenate([[0], np.cumsum(~same)]) * len(order)
    return np.sort(run + order) - run
